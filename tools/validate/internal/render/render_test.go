package render

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	fluxkustomize "github.com/fluxcd/pkg/kustomize"
	"golang.org/x/tools/txtar"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"aks-platform/tools/validate/internal/artifact"
)

// TestSameAsFlux renders each folder of the fixtures in both ways, with this package and as kustomize-controller does
// with files on disk, and compares every byte. In a fixture, NAME.spec is the spec of a Kustomization.
func TestSameAsFlux(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			name, ok := strings.CutSuffix(f.Name, ".spec")
			if !ok {
				continue
			}
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar")+"/"+name, func(t *testing.T) {
				ks := fluxKustomization(t, f.Data)
				path, _, err := unstructured.NestedString(ks.Object, "spec", "path")
				if err != nil {
					t.Fatal(err)
				}
				got := ours(t, extract(t, archive), ks, path, false)
				want := flux(t, extract(t, archive), ks, path)
				if got != want {
					t.Errorf("we render\n%s\nFlux renders\n%s", got, want)
				}
				if got == "" {
					t.Error("nothing was rendered")
				}
				if origins := ours(t, extract(t, archive), ks, path, true); strings.Count(origins, "config.kubernetes.io/origin") == 0 {
					t.Errorf("no origin in\n%s", origins)
				}
			})
		}
	}
}

// TestThisRepository compares the renderings of the overlays of this repository.
func TestThisRepository(t *testing.T) {
	root, err := filepath.Abs("../../../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, env := range []string{"dev", "prod", "local"} {
		t.Run(env, func(t *testing.T) {
			copied := t.TempDir()
			if err := os.CopyFS(filepath.Join(copied, "apps"), os.DirFS(filepath.Join(root, "apps"))); err != nil {
				t.Fatal(err)
			}
			path := "./apps/overlays/" + env
			ks := fluxKustomization(t, []byte("path: "+path))
			if got, want := ours(t, copied, ks, path, false), flux(t, copied, ks, path); got != want || got == "" {
				t.Errorf("we render\n%s\nFlux renders\n%s", got, want)
			}
		})
	}
}

// TestParallel renders from several goroutines, for the race detector.
func TestParallel(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/merge.txtar")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := artifact.Load(extract(t, archive), artifact.DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	r := New(tree)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ks := fluxKustomization(t, []byte("targetNamespace: x"))
			rendering, err := r.Render(ks, "overlay", false)
			if err != nil || len(rendering.Resources) == 0 || len(rendering.Findings) > 0 {
				t.Errorf("got %+v, %v", rendering, err)
			}
		})
	}
	wg.Wait()
}

func TestFolder(t *testing.T) {
	for spec, want := range map[string]string{"": ".", "./": ".", "./a/b": "a/b", "/a": "a", "../../a": "a", "a/../..": "."} {
		if got := Folder(spec); got != want {
			t.Errorf("Folder(%q) = %q, want %q", spec, got, want)
		}
	}
}

// TestSchemaChanges says that a build which changes Kustomize's global schema keeps others out, and leaves no trace.
func TestSchemaChanges(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"a/kustomization.yaml": "resources: [x.yaml]\ncrds: [crd.json]\n",
		"a/crd.json":           "{}",
		"a/x.yaml":             "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n",
		"b/kustomization.yaml": "resources: [../a]\n",
	} {
		p := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := artifact.Load(root, artifact.DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	r := New(tree)
	if !r.exclusive {
		t.Error("the field crds was not seen")
	}
	rendering, err := r.Render(fluxKustomization(t, []byte("path: ./b")), "b", false)
	if err != nil || len(rendering.Findings) > 0 || len(rendering.Resources) != 1 {
		t.Errorf("got %+v, %v", rendering, err)
	}
	var roles []Role
	for _, s := range rendering.Sources {
		roles = append(roles, s.Role)
	}
	if len(roles) != 4 || roles[0] != Kustomization || roles[1] != Kustomization || roles[2] != Resource || roles[3] != Config {
		t.Errorf("sources have the roles %v", roles)
	}
}

func fluxKustomization(t *testing.T, spec []byte) *unstructured.Unstructured {
	t.Helper()
	var fields map[string]any
	if err := yaml.Unmarshal(spec, &fields); err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization",
		"metadata": map[string]any{"name": "test", "namespace": "flux-system"}, "spec": fields,
	}}
}

func extract(t *testing.T, archive *txtar.Archive) string {
	t.Helper()
	fsys, err := txtar.FS(archive)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.CopyFS(root, fsys); err != nil {
		t.Fatal(err)
	}
	return root
}

func ours(t *testing.T, root string, ks *unstructured.Unstructured, path string, origins bool) string {
	t.Helper()
	tree, err := artifact.Load(root, artifact.DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	rendering, err := New(tree).Render(ks, Folder(path), origins)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range rendering.Findings {
		t.Errorf("%s %s %s", f.Check.ID, f.Pos, f.Message)
	}
	var out strings.Builder
	for i, r := range rendering.Resources {
		if i > 0 {
			out.WriteString("---\n")
		}
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		out.Write(text)
	}
	return out.String()
}

func flux(t *testing.T, root string, ks *unstructured.Unstructured, path string) string {
	t.Helper()
	dir := filepath.Join(root, filepath.FromSlash(Folder(path)))
	if _, err := fluxkustomize.NewGenerator(root, *ks).WriteFile(dir); err != nil {
		t.Fatal(err)
	}
	m, err := fluxkustomize.SecureBuild(root, dir, false)
	if err != nil {
		t.Fatal(err)
	}
	text, err := m.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
