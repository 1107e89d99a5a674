// Package postbuild substitutes the variables of a Flux Kustomization in what it renders.
//
// The rules are those of kustomize-controller 1.7 and fluxcd/pkg/kustomize (kustomize_varsub.go), which does the work:
//
//   - Nothing is substituted unless the Kustomization has at least one variable. Without one, ${name} is applied as it
//     stands.
//   - An object with the label or annotation kustomize.toolkit.fluxcd.io/substitute: disabled is left alone.
//   - Inline variables (postBuild.substitute) win over those of ConfigMaps and Secrets (substituteFrom), among which the
//     last one wins. Line breaks are removed from values.
//   - The text of the object's YAML is substituted, comments and keys included, and parsed again. A value can therefore
//     change the type of a field, and break the document.
//   - $${name} stands for the text ${name}, and ${name:=default} needs no value. Everywhere else, too, $$ becomes $: the
//     $$(NAME) of a container's arguments must be written $$$(NAME).
//
// There is one difference: Flux replaces a variable that nobody defined by nothing. Uses tells which variables an object
// uses, so that the caller can refuse it.
package postbuild

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/fluxcd/pkg/envsubst/parse"
	fluxkustomize "github.com/fluxcd/pkg/kustomize"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/api/resource"
)

// switchKey is the label and annotation that turns the substitution off for one object.
const switchKey = "kustomize.toolkit.fluxcd.io/substitute"

// Variables maps names to values.
type Variables map[string]string

// Add sets variables as Flux reads them from a source.
func (v Variables) Add(values map[string]string) {
	for name, value := range values {
		v[name] = strings.ReplaceAll(value, "\n", "")
	}
}

var validName = regexp.MustCompile(`^[_[:alpha:]][_[:alpha:][:digit:]]*$`)

// Invalid returns the names that Flux refuses. One of them makes the whole Kustomization fail.
func (v Variables) Invalid() []string {
	var invalid []string
	for _, name := range slices.Sorted(maps.Keys(v)) {
		if !validName.MatchString(name) {
			invalid = append(invalid, name)
		}
	}
	return invalid
}

// Use is a variable in a text.
type Use struct {
	Name string
	// Needed says that at least one place has no default.
	Needed bool
}

// Enabled says whether Flux substitutes variables in the object at all.
func Enabled(res *resource.Resource) bool {
	return res.GetLabels()[switchKey] != fluxkustomize.DisabledValue && res.GetAnnotations()[switchKey] != fluxkustomize.DisabledValue
}

// Changes says whether a substitution can change the text.
func Changes(text string) bool {
	return strings.Contains(text, "${") || strings.Contains(text, "$$")
}

// Uses returns the variables in a text, sorted by name. The error is the one that Flux stops with.
func Uses(text string) ([]Use, error) {
	tree, err := parse.Parse(text)
	if err != nil {
		return nil, err
	}
	needed := make(map[string]bool)
	var walk func(parse.Node)
	walk = func(n parse.Node) {
		switch n := n.(type) {
		case *parse.ListNode:
			for _, child := range n.Nodes {
				walk(child)
			}
		case *parse.FuncNode:
			needed[n.Param] = needed[n.Param] || !hasDefault(n.Name)
			for _, arg := range n.Args {
				walk(arg)
			}
		}
	}
	walk(tree.Root)
	uses := make([]Use, 0, len(needed))
	for _, name := range slices.Sorted(maps.Keys(needed)) {
		uses = append(uses, Use{Name: name, Needed: needed[name]})
	}
	return uses, nil
}

// hasDefault says whether an operator gives a value to a variable that has none. The list is that of
// fluxcd/pkg/envsubst, which does not export it.
func hasDefault(operator string) bool {
	switch operator {
	case "-", "+", "=", "?", ":-", ":+", ":=", ":?":
		return true
	}
	return false
}

// Substitute replaces the variables in a resource. Without variables it leaves the resource as it is, as Flux does.
func Substitute(res *resource.Resource, v Variables) error {
	inline := make(map[string]any, len(v))
	for name, value := range v {
		inline[name] = value
	}
	// The caller has read the sources of the variables, so that the library finds all of them inline and asks no cluster.
	ks := unstructured.Unstructured{Object: map[string]any{
		"spec": map[string]any{"postBuild": map[string]any{"substitute": inline}},
	}}
	if _, err := fluxkustomize.SubstituteVariables(context.Background(), nil, ks, res, fluxkustomize.SubstituteWithDryRun(true)); err != nil {
		return fmt.Errorf("substitute variables: %w", err)
	}
	return nil
}
