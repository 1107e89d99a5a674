package gate

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"aks-platform/tools/internal/fluxcrd"
	"aks-platform/tools/validate/internal/check"
	"aks-platform/tools/validate/internal/crd"
	"aks-platform/tools/validate/internal/yamldoc"
)

// TestFixtures runs every fixture of testdata. A fixture is a small repository on top of base.txtar, in two variants:
// the files below bad/ make it one that has the findings that the comment wants, in their order and no others, those
// below good/ one that has none.
//
//	want ID file:line field     a finding; - for no field
//	link path target            makes a symbolic link in the bad variant
//	remove path                 removes a file of base.txtar from both variants
func TestFixtures(t *testing.T) {
	base := parseFile(t, "testdata/base.txtar")
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	covered := make(map[string]bool)
	for _, file := range files {
		if filepath.Base(file) == "base.txtar" {
			continue
		}
		fixture := parseFile(t, file)
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		var want []string
		for line := range strings.Lines(string(fixture.Comment)) {
			if rest, ok := strings.CutPrefix(line, "want "); ok {
				want = append(want, strings.TrimSpace(rest))
			}
		}
		if len(want) == 0 {
			t.Errorf("%s wants nothing", file)
		}
		for _, w := range want {
			id, _, _ := strings.Cut(w, " ")
			covered[id] = true
		}
		t.Run(name+"/bad", func(t *testing.T) {
			t.Parallel()
			got := run(t, tree(t, base, fixture, "bad"))
			if !slices.Equal(lines(got), want) {
				t.Errorf("findings\n%s\nwant\n  %s", describe(got), strings.Join(want, "\n  "))
			}
		})
		t.Run(name+"/good", func(t *testing.T) {
			t.Parallel()
			if got := run(t, tree(t, base, fixture, "good")); len(got) > 0 {
				t.Errorf("findings\n%s\nwant none", describe(got))
			}
		})
	}
	for _, c := range Checks() {
		if !covered[c.ID] {
			t.Errorf("no fixture wants %s", c.ID)
		}
	}
}

// TestThisRepository holds the repository that this package is part of to its own standard.
func TestThisRepository(t *testing.T) {
	root, err := filepath.Abs("../../../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("the root of the module is expected there: %v", err)
	}
	if got := run(t, root); len(got) > 0 {
		t.Errorf("findings\n%s", describe(got))
	}
}

func TestChecksAreDocumented(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range Checks() {
		if seen[c.ID] {
			t.Errorf("two checks have the id %s", c.ID)
		}
		seen[c.ID] = true
		for field, text := range map[string]string{"Title": c.Title, "Why": c.Why, "Fix": c.Fix, "Example": c.Example} {
			if strings.TrimSpace(text) == "" || strings.TrimSpace(text) != text {
				t.Errorf("%s: %s is empty or has space around it", c.ID, field)
			}
		}
		if strings.HasSuffix(c.Title, ".") || !strings.HasSuffix(c.Why, ".") || !strings.HasSuffix(c.Fix, ".") {
			t.Errorf("%s: Why and Fix are sentences, Title is none", c.ID)
		}
		if c.Severity.String() == "" {
			t.Errorf("%s has no severity", c.ID)
		}
	}
}

// TestFluxKinds looks every Flux kind up in the way that objects are looked up.
func TestFluxKinds(t *testing.T) {
	names, err := fs.Glob(fluxcrd.FS, "*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatalf("no definitions: %v", err)
	}
	catalog := crd.NewCatalog(fluxcrd.FS)
	for _, name := range names {
		data, err := fs.ReadFile(fluxcrd.FS, name)
		if err != nil {
			t.Fatal(err)
		}
		docs, err := yamldoc.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		spec := yamldoc.Child(docs[0].Root, "spec")
		kind := schema.GroupKind{Group: yamldoc.Value(spec, "group"), Kind: yamldoc.Value(yamldoc.Child(spec, "names"), "kind")}
		versions, err := catalog.Versions(kind)
		if err != nil || len(versions) == 0 {
			t.Errorf("%s: %s has the versions %v, %v", name, kind, versions, err)
		}
		for _, v := range versions {
			k, ok, err := catalog.Lookup(kind.WithVersion(v))
			if !ok || err != nil {
				t.Errorf("%s: %v, %v", kind, ok, err)
				continue
			}
			// An empty object misses required fields, which shows that the schema compiles.
			for _, f := range k.Check(map[string]any{"apiVersion": kind.Group + "/" + v, "kind": kind.Kind}) {
				if f.Check != crd.FluxObject {
					t.Errorf("%s: %s %s", kind, f.Check.ID, f.Message)
				}
			}
		}
	}
}

func TestNoCluster(t *testing.T) {
	_, _, err := Run(context.Background(), t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "there is no cluster to check") {
		t.Errorf("got %v", err)
	}
}

func run(t *testing.T, root string) []check.Finding {
	t.Helper()
	findings, _, err := Run(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	return findings
}

func lines(findings []check.Finding) []string {
	var out []string
	for _, f := range findings {
		field := f.Field
		if field == "" {
			field = "-"
		}
		out = append(out, fmt.Sprintf("%s %s %s", f.Check.ID, f.Pos, field))
	}
	return out
}

func describe(findings []check.Finding) string {
	var b strings.Builder
	for i, l := range lines(findings) {
		fmt.Fprintf(&b, "  %s  (%s: %s)\n", l, findings[i].Object, findings[i].Message)
	}
	return b.String()
}

func parseFile(t *testing.T, name string) *txtar.Archive {
	t.Helper()
	a, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// tree writes one variant of a fixture to disk.
func tree(t *testing.T, base, fixture *txtar.Archive, variant string) string {
	t.Helper()
	root := t.TempDir()
	write := func(name string, data []byte) {
		p := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range base.Files {
		write(f.Name, f.Data)
	}
	for _, f := range fixture.Files {
		if !strings.HasPrefix(f.Name, "good/") && !strings.HasPrefix(f.Name, "bad/") {
			write(f.Name, f.Data)
		}
	}
	for _, f := range fixture.Files {
		if name, ok := strings.CutPrefix(f.Name, variant+"/"); ok {
			write(name, f.Data)
		}
	}
	for line := range strings.Lines(string(fixture.Comment)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 3 && fields[0] == "link" && variant == "bad":
			if err := os.Symlink(fields[2], filepath.Join(root, filepath.FromSlash(fields[1]))); err != nil {
				t.Fatal(err)
			}
		case len(fields) == 2 && fields[0] == "remove":
			if err := os.Remove(filepath.Join(root, filepath.FromSlash(fields[1]))); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

// TestHostileInput wants a finding for each file that no honest person writes, and that nothing panics or hangs.
func TestHostileInput(t *testing.T) {
	const object = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\n"
	bomb := "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 12; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), ", "))
	}
	base := parseFile(t, "testdata/base.txtar")
	for name, text := range map[string]string{
		"metadata is text":        "apiVersion: v1\nkind: ConfigMap\nmetadata: text\n",
		"metadata is a list":      "apiVersion: v1\nkind: ConfigMap\nmetadata: [a]\n",
		"name is a map":           "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {a: b}}\n",
		"name is empty":           "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ''}\n",
		"labels are a list":       object + "  labels: [a]\n",
		"labels are a number":     object + "  labels: 5\n",
		"annotations are text":    object + "  annotations: text\n",
		"label is a map":          object + "  labels: {a: {b: c}}\n",
		"kind is a number":        "apiVersion: v1\nkind: 5\nmetadata: {name: a}\n",
		"apiVersion is a path":    "apiVersion: a/b/c\nkind: ConfigMap\nmetadata: {name: a}\n",
		"apiVersion leaves":       "apiVersion: ../../x/v1\nkind: Y\nmetadata: {name: a}\n",
		"document is text":        "text\n",
		"document is a list":      "[1, 2]\n",
		"binary":                  "\x00\x01\x02",
		"alias of itself":         "a: &a [*a]\n" + object,
		"aliases without end":     object + "data:\n  " + strings.ReplaceAll(strings.TrimSpace(bomb), "\n", "\n  ") + "\n",
		"deep":                    strings.Repeat("[", 20_000),
		"merge key of a scalar":   object + "data:\n  <<: text\n",
		"key is a map":            object + "data:\n  {a: b}: c\n",
		"list of lists":           "apiVersion: v1\nkind: List\nitems: [[a]]\n",
		"list item without kind":  "apiVersion: v1\nkind: List\nitems: [{metadata: {name: a}}]\n",
		"Kustomization of a list": "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nmetadata: {name: a, namespace: flux-system}\nspec: [a]\n",
		"Kustomization of maps":   "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nmetadata: {name: a, namespace: flux-system}\nspec: {interval: 1h, prune: true, path: [a], sourceRef: {kind: GitRepository, name: flux-system}, dependsOn: [[a], {name: 5}]}\n",
		"components leave":        "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nmetadata: {name: a, namespace: flux-system}\nspec: {interval: 1h, prune: true, path: ./clusters, sourceRef: {kind: GitRepository, name: flux-system}, components: [../../../../../../../tmp]}\n",
		"a definition of nothing": "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: a}\nspec: {versions: [{name: v1, served: true}]}\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := run(t, tree(t, base, &txtar.Archive{Files: []txtar.File{{Name: "bad/apps/hostile.yaml", Data: []byte(text)}}}, "bad"))
			if len(got) == 0 {
				t.Error("no finding")
			}
			for _, f := range got {
				if f.Pos.File == "" {
					t.Errorf("%s %s has no file", f.Check.ID, f.Message)
				}
			}
		})
	}
}
