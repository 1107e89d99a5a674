package crd

import (
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

const widgets = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  names: {kind: Widget, plural: widgets, singular: widget, listKind: WidgetList}
  scope: Cluster
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          required: [spec]
          properties:
            spec:
              type: object
              properties:
                size: {type: integer, default: 1}
                ports:
                  type: array
                  x-kubernetes-list-type: map
                  x-kubernetes-list-map-keys: [name]
                  items:
                    type: object
                    required: [name]
                    properties: {name: {type: string}}
              x-kubernetes-validations:
                - {rule: "self.size < 10", message: too large}
    - {name: v1beta1, served: true, storage: false, deprecated: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
    - {name: v1alpha1, served: false, storage: false, schema: {openAPIV3Schema: {type: object}}}
`

// countingFS counts how often a file is read.
type countingFS struct {
	fs.FS
	reads map[string]int
}

func (c countingFS) Open(name string) (fs.File, error) {
	c.reads[name]++
	return c.FS.Open(name)
}

func catalog() (*Catalog, map[string]int) {
	reads := make(map[string]int)
	return NewCatalog(countingFS{fstest.MapFS{
		"example.com_widgets.yaml": {Data: []byte(widgets)},
		"example.com_others.yaml":  {Data: []byte("not: [valid")},
	}, reads}), reads
}

func widget(version string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "example.com", Version: version, Kind: "Widget"}
}

func TestLookup(t *testing.T) {
	c, reads := catalog()
	extended := c.Extend()
	for range 2 {
		kind, ok, err := extended.Lookup(widget("v1"))
		if err != nil || !ok || kind.Namespaced || kind.Deprecated != "" {
			t.Fatalf("got %+v, %v, %v", kind, ok, err)
		}
	}
	if kind, ok, _ := extended.Lookup(widget("v1beta1")); !ok || kind.Deprecated != "example.com/v1beta1 Widget is deprecated" {
		t.Errorf("got %+v, %v", kind, ok)
	}
	if _, ok, err := extended.Lookup(widget("v1alpha1")); ok || err != nil {
		t.Errorf("a version that is not served is found: %v", err)
	}
	if got, err := extended.Versions(widget("").GroupKind()); !slices.Equal(got, []string{"v1", "v1beta1"}) || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if _, ok, err := extended.Lookup(schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Gadget"}); ok || err != nil {
		t.Errorf("an unknown kind is found: %v", err)
	}
	if _, _, err := extended.Lookup(schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Other"}); err == nil {
		t.Error("a broken definition gives no error")
	}
	if reads["example.com_widgets.yaml"] != 1 {
		t.Errorf("the definition was read %d times", reads["example.com_widgets.yaml"])
	}
}

func TestAdd(t *testing.T) {
	base, _ := catalog()
	c := base.Extend()
	if err := c.Add(object(t, strings.ReplaceAll(widgets, "scope: Cluster", "scope: Namespaced"))); err != nil {
		t.Fatal(err)
	}
	if kind, ok, err := c.Lookup(widget("v1")); !ok || err != nil || !kind.Namespaced {
		t.Error("the definition of the manifests does not win")
	}
	if kind, ok, err := base.Lookup(widget("v1")); !ok || err != nil || kind.Namespaced {
		t.Error("one cluster's definition is seen by the others")
	}
}

func TestCheck(t *testing.T) {
	c, _ := catalog()
	kind, ok, err := c.Lookup(widget("v1"))
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	const head = "apiVersion: example.com/v1\nkind: Widget\n"
	for name, test := range map[string]struct{ manifest, want string }{
		"valid":            {"metadata: {name: a}\nspec: {}\n", ""},
		"type":             {"metadata: {name: a}\nspec: {size: x}\n", `CRD-001 spec.size: Invalid value: "string"`},
		"required":         {"metadata: {name: a}\n", "CRD-001 spec: Required value"},
		"list key":         {"metadata: {name: a}\nspec: {ports: [{name: a}, {name: a}]}\n", `CRD-001 spec.ports[1]: Duplicate value`},
		"name":             {"metadata: {name: A_b}\nspec: {}\n", "CRD-001 metadata.name: Invalid value"},
		"metadata type":    {"metadata: {name: a, labels: {a: 1}}\nspec: {}\n", "CRD-001 metadata: "},
		"unknown":          {"metadata: {name: a}\nspec: {colour: red}\n", `CRD-002 spec.colour: unknown field "spec.colour"`},
		"unknown in list":  {"metadata: {name: a}\nspec: {ports: [{name: a, x: 1}]}\n", `CRD-002 spec.ports[0].x: unknown field`},
		"unknown metadata": {"metadata: {name: a, lables: {}}\nspec: {}\n", `CRD-002 metadata.lables: unknown field`},
		"rule":             {"metadata: {name: a}\nspec: {size: 10}\n", "CRD-003 spec: Invalid value: too large"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range kind.Check(object(t, head+test.manifest)) {
				got = append(got, f.Check.ID+" "+f.Field+": "+f.Message)
			}
			if test.want == "" && len(got) > 0 || test.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], test.want)) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestCheckDefinition(t *testing.T) {
	for name, test := range map[string]struct{ old, new, want string }{
		"valid":          {"", "", ""},
		"name":           {"name: widgets.example.com", "name: widget.example.com", "metadata.name: Invalid value"},
		"no schema type": {"type: object\n              properties:\n                size", "properties:\n                size", "spec.versions[0].schema.openAPIV3Schema.properties[spec].type: Required value"},
		"bad rule":       {"self.size < 10", "self.sise < 10", "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value"},
		"no storage":     {"storage: true", "storage: false", "spec.versions: Invalid value"},
		"unknown field":  {"scope: Cluster", "scope: Cluster\n  scopes: []", `: unknown field "spec.scopes"`},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(widgets, test.old) {
				t.Fatalf("no %q in the definition", test.old)
			}
			data, err := yaml.YAMLToJSON([]byte(strings.Replace(widgets, test.old, test.new, 1)))
			if err != nil {
				t.Fatal(err)
			}
			found := false
			findings := CheckDefinition(data)
			for _, f := range findings {
				found = found || strings.HasPrefix(f.Field+": "+f.Message, test.want)
			}
			if test.want == "" && len(findings) > 0 || test.want != "" && !found {
				t.Errorf("got %+v, want %q", findings, test.want)
			}
		})
	}
}

func object(t *testing.T, text string) map[string]any {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var u unstructured.Unstructured
	if err := u.UnmarshalJSON(data); err != nil {
		t.Fatal(err)
	}
	return u.Object
}
