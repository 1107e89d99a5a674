// Package crd judges custom resources, and the definitions of them, with the code of the API server
// (k8s.io/apiextensions-apiserver).
//
// A Catalog knows the definitions: those of Flux, which are compiled in, and those that the cluster's own manifests
// bring along. A definition is read when the first object of its kind turns up, its schema is compiled then, and its CEL
// rules when an object has passed the schema: a start pays for nothing that it does not need.
//
// An object goes the way of a request: unknown fields, defaults, schema, metadata, list keys, CEL rules.
package crd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"aks-platform/tools/validate/internal/check"
)

// The checks of this package.
var (
	FluxObject = &check.Check{
		ID:       "FX-001",
		Title:    "Flux object is not valid",
		Severity: check.Error,
		Why:      "The API server refuses the object by the schema and the rules of its definition. The Kustomization that brings it fails, and nothing behind it is updated any more.",
		Fix:      "Correct the field. The schema is that of the Flux release that AKS ships; a field of a newer Flux is unknown to it.",
		Example: `apiVersion: kustomize.toolkit.fluxcd.io/v1
kind: Kustomization
spec:
  interval: 5minutes   # a duration is 5m
  prune: true
  sourceRef: {kind: GitRepository, name: flux-system}`,
	}
	Schema = &check.Check{
		ID:       "CRD-001",
		Title:    "Custom resource does not fit its schema",
		Severity: check.Error,
		Why:      "The API server refuses the object.",
		Fix:      "Correct the field as the message says.",
		Example: `kind: ScaledObject
spec:
  minReplicaCount: "1"   # a number`,
	}
	UnknownField = &check.Check{
		ID:       "CRD-002",
		Title:    "Custom resource has an unknown field",
		Severity: check.Error,
		Why:      "The API server refuses to apply a field that the definition does not declare.",
		Fix:      "Correct the name or the indentation of the field, or remove it.",
		Example: `kind: ScaledObject
spec:
  scaleTargetReference: {}   # the field is called scaleTargetRef`,
	}
	Rule = &check.Check{
		ID:       "CRD-003",
		Title:    "Custom resource breaks a rule of its definition",
		Severity: check.Error,
		Why:      "The definition has CEL rules (x-kubernetes-validations). The API server evaluates them and refuses the object.",
		Fix:      "Change the object so that the rule in the message holds.",
		Example: `# rule: self.min <= self.max
spec: {min: 3, max: 2}`,
	}
	Definition = &check.Check{
		ID:       "CRD-004",
		Title:    "CustomResourceDefinition is not valid",
		Severity: check.Error,
		Why:      "The API server refuses the definition, or accepts it and never serves it. No object of the kind can be applied.",
		Fix:      "Correct the field; a schema must be structural.",
		Example: `kind: CustomResourceDefinition
spec:
  versions:
    - name: v1
      served: true
      storage: true   # schema is missing`,
	}
)

// Checks lists what this package finds.
var Checks = []*check.Check{FluxObject, Schema, UnknownField, Rule, Definition}

// fluxSuffix ends the API groups of Flux.
const fluxSuffix = ".toolkit.fluxcd.io"

// Catalog finds the definition of a kind. It may be used by several goroutines.
type Catalog struct {
	// base answers what this catalog does not know; files does if there is none.
	base  *Catalog
	files fs.FS

	mu    sync.Mutex
	known map[schema.GroupKind]*definition
}

// NewCatalog returns a catalog of the definitions in files, which are named GROUP_PLURAL.yaml, as generators name them.
func NewCatalog(files fs.FS) *Catalog {
	return &Catalog{files: files, known: make(map[schema.GroupKind]*definition)}
}

// Add puts a definition of the cluster's manifests into the catalog, in front of what it knows about the kind: the one in
// the manifests is the one that will be installed.
func (c *Catalog) Add(object map[string]any) error {
	text, err := yaml.Marshal(object)
	if err != nil {
		return fmt.Errorf("write the definition: %w", err)
	}
	d, err := parse(text)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[d.kind] = d
	return nil
}

// Extend returns a catalog that knows the same, and that can be added to without changing this one.
func (c *Catalog) Extend() *Catalog {
	return &Catalog{base: c, known: make(map[schema.GroupKind]*definition)}
}

// find returns the definition of a kind, or nil if the catalog has none.
func (c *Catalog) find(kind schema.GroupKind) (*definition, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := c.known[kind]; ok {
		return d, nil
	}
	if c.base != nil {
		return c.base.find(kind)
	}
	plural, _ := meta.UnsafeGuessKindToResource(kind.WithVersion(""))
	name := kind.Group + "_" + plural.Resource + ".yaml"
	text, err := fs.ReadFile(c.files, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read definition: %w", err)
	}
	d, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	c.known[kind] = d
	return d, nil
}

// Versions returns the versions of a kind that are served. It is empty for a kind that the catalog does not know.
func (c *Catalog) Versions(kind schema.GroupKind) ([]string, error) {
	d, err := c.find(kind)
	if d == nil || err != nil {
		return nil, err
	}
	return d.order, nil
}

// Kind is a version of a kind that the catalog knows.
type Kind struct {
	// Namespaced says whether objects live in namespaces.
	Namespaced bool
	// Deprecated is the warning of the API server, or "".
	Deprecated string

	def *definition
	ver *version
	gvk schema.GroupVersionKind
}

// Lookup returns what the catalog knows about a kind; ok is false if it knows nothing, or not this version.
func (c *Catalog) Lookup(gvk schema.GroupVersionKind) (k Kind, ok bool, err error) {
	d, err := c.find(gvk.GroupKind())
	if d == nil || err != nil {
		return Kind{}, false, err
	}
	v := d.versions[gvk.Version]
	if v == nil {
		return Kind{}, false, nil
	}
	return Kind{Namespaced: d.namespaced, Deprecated: v.deprecated, def: d, ver: v, gvk: gvk}, true, nil
}

// definition is a CustomResourceDefinition.
type definition struct {
	kind       schema.GroupKind
	namespaced bool
	order      []string
	versions   map[string]*version
}

// version is one served version of a definition.
type version struct {
	deprecated string
	raw        *apiextensionsv1.CustomResourceValidation

	compile    sync.Once
	validator  validation.SchemaValidator
	structural *structuralschema.Structural
	err        error

	compileRules sync.Once
	rules        *cel.Validator
}

func parse(text []byte) (*definition, error) {
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(text, &crd); err != nil {
		return nil, fmt.Errorf("decode the definition: %w", err)
	}
	apiextensionsv1.SetDefaults_CustomResourceDefinition(&crd)
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&crd.Spec)
	d := &definition{
		kind:       schema.GroupKind{Group: crd.Spec.Group, Kind: crd.Spec.Names.Kind},
		namespaced: crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
		versions:   make(map[string]*version),
	}
	for _, v := range crd.Spec.Versions {
		if !v.Served {
			continue
		}
		deprecated := ""
		if v.Deprecated {
			deprecated = fmt.Sprintf("%s/%s %s is deprecated", crd.Spec.Group, v.Name, crd.Spec.Names.Kind)
			if v.DeprecationWarning != nil {
				deprecated = *v.DeprecationWarning
			}
		}
		raw := v.Schema
		if raw == nil {
			raw = &apiextensionsv1.CustomResourceValidation{}
		}
		d.order = append(d.order, v.Name)
		d.versions[v.Name] = &version{deprecated: deprecated, raw: raw}
	}
	return d, nil
}

// schema compiles the schema when it is first needed.
func (v *version) schema() error {
	v.compile.Do(func() {
		var internal apiextensions.CustomResourceValidation
		if v.err = apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(v.raw, &internal, nil); v.err != nil {
			return
		}
		if internal.OpenAPIV3Schema == nil {
			v.err = errors.New("the version has no schema")
			return
		}
		if v.validator, _, v.err = validation.NewSchemaValidator(internal.OpenAPIV3Schema); v.err != nil {
			return
		}
		v.structural, v.err = structuralschema.NewStructural(internal.OpenAPIV3Schema)
	})
	return v.err
}

func (v *version) celRules() *cel.Validator {
	v.compileRules.Do(func() { v.rules = cel.NewValidator(v.structural, true, celconfig.PerCallLimit) })
	return v.rules
}

// Check judges an object of the kind. It sets the defaults of the definition in the object.
func (k Kind) Check(object map[string]any) []check.Finding {
	report := func(which *check.Check, fieldPath, message string) check.Finding {
		if strings.HasSuffix(k.gvk.Group, fluxSuffix) {
			which = FluxObject
		}
		return check.Finding{Check: which, Field: fieldPath, Message: message}
	}
	if err := k.ver.schema(); err != nil {
		return []check.Finding{report(Definition, "", fmt.Sprintf("the definition of %s cannot be compiled: %v", k.gvk.Kind, err))}
	}
	structural := k.ver.structural

	var findings []check.Finding
	unknown := pruning.PruneWithOptions(object, structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	// The metadata are no part of the schema.
	_, _, unknownMeta, err := objectmeta.GetObjectMetaWithOptions(object, objectmeta.ObjectMetaOptions{ReturnUnknownFieldPaths: true})
	if err != nil {
		return []check.Finding{report(Schema, "metadata", err.Error())}
	}
	unknown = append(unknown, unknownMeta...)
	slices.Sort(unknown)
	for _, p := range unknown {
		findings = append(findings, report(UnknownField, p, fmt.Sprintf("unknown field %q", p)))
	}
	defaulting.PruneNonNullableNullsWithoutDefaults(object, structural)
	defaulting.Default(object, structural)

	var errs field.ErrorList
	accessor := &unstructured.Unstructured{Object: object}
	for _, e := range apivalidation.ValidateObjectMetaAccessor(accessor, k.Namespaced, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata")) {
		if e.Field == "metadata.namespace" {
			continue // the scope is a check of its own
		}
		errs = append(errs, e)
	}
	errs = append(errs, validation.ValidateCustomResource(nil, object, k.ver.validator)...)
	errs = append(errs, objectmeta.Validate(nil, object, structural, false)...)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, structural, object)...)
	for _, e := range errs {
		findings = append(findings, report(Schema, fieldOf(e), e.ErrorBody()))
	}
	// As in the server, rules see only objects that fit the schema.
	if rules := k.ver.celRules(); rules != nil && len(errs) == 0 {
		broken, _ := rules.Validate(context.Background(), nil, structural, object, nil, celconfig.RuntimeCELCostBudget)
		for _, e := range broken {
			findings = append(findings, report(Rule, fieldOf(e), e.ErrorBody()))
		}
	}
	return findings
}

// fieldOf returns the field of an error; the library calls the whole object <nil>.
func fieldOf(e *field.Error) string {
	if e.Field == "<nil>" {
		return ""
	}
	return e.Field
}
