package postbuild

import (
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/provider"
	"sigs.k8s.io/kustomize/api/resource"
)

func TestUses(t *testing.T) {
	for text, want := range map[string][]Use{
		"no variables":          nil,
		"${a}":                  {{"a", true}},
		"${b}${a}":              {{"a", true}, {"b", true}},
		"${a:=x}":               {{"a", false}},
		"${a:-x}":               {{"a", false}},
		"${a=x}":                {{"a", false}},
		"${a:=x} ${a}":          {{"a", true}},
		"${a:=${b}}":            {{"a", false}, {"b", true}},
		"${a^^} ${#b} ${c/x/y}": {{"a", true}, {"b", true}, {"c", true}},
		"$${a}":                 nil,
		"$a $(b)":               nil,
	} {
		got, err := Uses(text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %v, %v; want %v", text, got, err, want)
		}
	}
	if _, err := Uses("${a"); err == nil {
		t.Error("an expression that is not closed has no error")
	}
}

func TestInvalid(t *testing.T) {
	v := Variables{}
	v.Add(map[string]string{"a_1": "x\ny\n", "1a": "", "a-b": "", "": ""})
	if got, want := v.Invalid(), []string{"", "1a", "a-b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if v["a_1"] != "xy" {
		t.Errorf("line breaks are still there: %q", v["a_1"])
	}
}

func TestSubstitute(t *testing.T) {
	for name, test := range map[string]struct {
		manifest  string
		variables Variables
		want      string // a line of the result, or the error
	}{
		"value":           {"data: {a: 'x-${v}-y'}", Variables{"v": "1"}, "a: x-1-y"},
		"type changes":    {"data: {a: '${v}'}", Variables{"v": "1"}, "a: 1"},
		"escape":          {"data: {a: '$${v}'}", Variables{"v": "1"}, "a: ${v}"},
		"two dollars":     {"data: {a: '$$(v)'}", Variables{"v": "1"}, "a: $(v)"},
		"default":         {"data: {a: '${w:=d}'}", Variables{"v": "1"}, "a: d"},
		"no variables":    {"data: {a: 'x-${v}'}", Variables{}, "a: x-${v}"},
		"breaks document": {"data: {a: '${v}'}", Variables{"v": "]["}, "error"},
	} {
		if !Changes(test.manifest) {
			t.Errorf("%s: Changes says no", name)
		}
		res := newResource(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"+test.manifest+"\n")
		err := Substitute(res, test.variables)
		if test.want == "error" {
			if err == nil {
				t.Errorf("%s: no error", name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text, err := res.AsYAML()
		if err != nil || !strings.Contains(string(text), test.want+"\n") {
			t.Errorf("%s: got\n%s(%v), want %q", name, text, err, test.want)
		}
	}
}

func TestEnabled(t *testing.T) {
	for metadata, want := range map[string]bool{
		"": true,
		", annotations: {kustomize.toolkit.fluxcd.io/substitute: disabled}": false,
		", labels: {kustomize.toolkit.fluxcd.io/substitute: disabled}":      false,
		", labels: {kustomize.toolkit.fluxcd.io/substitute: enabled}":       true,
	} {
		if got := Enabled(newResource(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x"+metadata+"}\n")); got != want {
			t.Errorf("%q: got %v", metadata, got)
		}
	}
}

func newResource(t *testing.T, text string) *resource.Resource {
	t.Helper()
	res, err := provider.NewDefaultDepProvider().GetResourceFactory().FromBytes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return res
}
