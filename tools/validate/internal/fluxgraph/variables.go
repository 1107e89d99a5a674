package fluxgraph

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/kustomize/api/resource"

	"aks-platform/tools/validate/internal/check"
	"aks-platform/tools/validate/internal/platform"
	"aks-platform/tools/validate/internal/postbuild"
)

// variables collects the variables of a Kustomization. They are incomplete if one of their sources is missing.
func (f *follower) variables(k *Kustomization) (variables postbuild.Variables, complete bool, findings []Finding) {
	variables, complete = make(postbuild.Variables), true
	post := k.Spec.Spec.PostBuild
	if post == nil {
		return variables, true, nil
	}
	for i, ref := range post.SubstituteFrom {
		values, found := f.values(k, ref)
		if !found && !ref.Optional {
			complete = false
			findings = append(findings, Finding{On: k.Object, In: k, Finding: check.Finding{
				Check: MissingVariables, Field: fmt.Sprintf("spec.postBuild.substituteFrom[%d].name", i),
				Message: fmt.Sprintf("no Kustomization of this cluster renders the %s %s/%s", ref.Kind, k.ID.Namespace, ref.Name),
			}})
		}
		variables.Add(values)
	}
	variables.Add(post.Substitute)
	for _, name := range variables.Invalid() {
		findings = append(findings, Finding{On: k.Object, In: k, Finding: check.Finding{
			Check: BadSubstitution, Field: "spec.postBuild",
			Message: fmt.Sprintf("%q cannot be the name of a variable: letters, digits and _ only, and no digit first", name),
		}})
	}
	return variables, complete, findings
}

// values reads the ConfigMap or Secret that a Kustomization takes variables from.
func (f *follower) values(k *Kustomization, ref kustomizev1.SubstituteReference) (map[string]string, bool) {
	o := f.find(schema.GroupKind{Kind: ref.Kind}, k.ID.Namespace, ref.Name)
	if o == nil {
		return nil, false
	}
	values := make(map[string]string)
	data, _, _ := unstructured.NestedMap(o.Object, "data")
	for name, v := range data {
		text, ok := v.(string)
		if !ok {
			continue // the API server refuses it, which is reported where objects are judged
		}
		if ref.Kind == "Secret" {
			decoded, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				continue // likewise
			}
			text = string(decoded)
		}
		values[name] = text
	}
	if ref.Kind == "Secret" {
		plain, _, _ := unstructured.NestedStringMap(o.Object, "stringData")
		maps.Copy(values, plain)
	}
	return values, true
}

// substitute replaces the variables in one resource, which has the given text. It says whether the resource has changed.
func (f *follower) substitute(o *Object, res *resource.Resource, text string, variables postbuild.Variables, complete bool) (bool, []Finding) {
	k := o.Kustomization
	var findings []Finding
	report := func(which *check.Check, name, message string) {
		text := "${" + name
		where, value, _ := fieldWith(o.Object, text)
		findings = append(findings, Finding{
			On: o, Text: text, Value: value,
			Finding: check.Finding{Check: which, Field: strings.TrimPrefix(where, "."), Message: message},
		})
	}
	uses, err := postbuild.Uses(text)
	if err != nil {
		if len(variables) > 0 {
			report(BadSubstitution, "", fmt.Sprintf("Flux cannot substitute the variables of this object: %v", err))
		}
		return false, findings
	}
	for _, use := range uses {
		_, defined := variables[use.Name]
		declared := f.declared(use.Name)
		switch {
		case len(variables) == 0:
			if complete && declared {
				report(Literal, use.Name, fmt.Sprintf("the Kustomization %s has no variables, so ${%s} is applied as it stands", k.ID.Name, use.Name))
			}
		case use.Needed && !defined && !complete:
			// The source of the values is missing, which is reported once.
		case use.Needed && !defined && f.contract != nil && !declared:
			report(Undefined, use.Name, fmt.Sprintf("${%s} is neither defined for the Kustomization %s nor declared in %s", use.Name, k.ID.Name, platform.FileName))
		case use.Needed && !defined:
			report(Undefined, use.Name, fmt.Sprintf("${%s} is not defined for the Kustomization %s", use.Name, k.ID.Name))
		case f.contract != nil && !declared:
			report(Undeclared, use.Name, fmt.Sprintf("${%s} is not declared in %s", use.Name, platform.FileName))
		}
	}
	if len(variables) == 0 || len(variables.Invalid()) > 0 {
		return false, findings
	}
	if err := postbuild.Substitute(res, f.standIns(variables, uses)); err != nil {
		report(BadSubstitution, "", err.Error())
		return false, findings
	}
	return true, findings
}

// standIns adds a value for each variable that has none. Flux would put nothing in its place, and whatever the API server
// then says is a consequence of what has been reported.
func (f *follower) standIns(variables postbuild.Variables, uses []postbuild.Use) postbuild.Variables {
	all := maps.Clone(variables)
	for _, use := range uses {
		if _, defined := variables[use.Name]; defined || !use.Needed {
			continue
		}
		all[use.Name] = use.Name
		if f.contract != nil {
			all[use.Name] = cmp.Or(f.contract.Samples()[use.Name], use.Name)
		}
	}
	return all
}

func (f *follower) declared(name string) bool {
	return f.contract != nil && slices.ContainsFunc(f.contract.Variables, func(v platform.Variable) bool { return v.Name == name })
}

// fieldWith returns the path and the value of the first field that contains a text.
func fieldWith(value any, text string) (where, found string, ok bool) {
	switch v := value.(type) {
	case string:
		return "", v, strings.Contains(v, text)
	case []any:
		for i, element := range v {
			if where, found, ok := fieldWith(element, text); ok {
				return fmt.Sprintf("[%d]%s", i, where), found, true
			}
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			step := "." + key
			if strings.ContainsAny(key, "./") {
				step = "[" + key + "]"
			}
			if where, found, ok := fieldWith(v[key], text); ok {
				return step + where, found, true
			}
		}
	}
	return "", "", false
}
