package fluxgraph

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/tools/txtar"

	"aks-platform/tools/validate/internal/artifact"
	"aks-platform/tools/validate/internal/platform"
	"aks-platform/tools/validate/internal/render"
)

// follow renders the cluster dev of a repository that is given as txtar.
func follow(t *testing.T, text string, contract *platform.Contract) (*Cluster, []Finding) {
	t.Helper()
	fsys, err := txtar.FS(txtar.Parse([]byte(text)))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.CopyFS(filepath.Join(root, "repository"), fsys); err != nil {
		t.Fatal(err)
	}
	tree, err := artifact.Load(filepath.Join(root, "repository"), artifact.DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	c, findings, err := Follow(context.Background(), "clusters/dev", render.New(tree), tree, contract)
	if err != nil {
		t.Fatal(err)
	}
	return c, findings
}

func object(t *testing.T, c *Cluster, kind, name string) *Object {
	t.Helper()
	for _, o := range c.Objects {
		if o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	t.Fatalf("no %s %s was rendered", kind, name)
	return nil
}

// TestVariables has every way that a variable gets its value, and the order in which they count.
func TestVariables(t *testing.T) {
	contract := &platform.Contract{Variables: []platform.Variable{{Name: "top", Sample: "sample"}, {Name: "low"}, {Name: "both"}, {Name: "secret"}, {Name: "inline"}}}
	c, findings := follow(t, `
-- clusters/dev/a.yaml --
apiVersion: kustomize.toolkit.fluxcd.io/v1
kind: Kustomization
metadata: {name: a, namespace: flux-system}
spec:
  interval: 1h
  path: ./apps
  prune: true
  sourceRef: {kind: GitRepository, name: flux-system}
  postBuild:
    substitute: {inline: from-inline}
    substituteFrom:
      - {kind: ConfigMap, name: values}
      - {kind: Secret, name: values}
      - {kind: ConfigMap, name: nowhere, optional: true}
-- clusters/dev/values.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: values, namespace: flux-system}
data:
  low: "${top}-${top}"
  both: from-map
  inline: from-map
---
apiVersion: v1
kind: Secret
metadata: {name: values, namespace: flux-system}
data: {secret: ZnJvbS1zZWNyZXQ=}
stringData: {both: from-secret}
-- apps/a.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: result, namespace: default}
data: {low: "x${low}", both: "${both}", secret: "${secret}", inline: "${inline}"}
`, contract)
	for _, f := range findings {
		t.Errorf("%s %s", f.Check.ID, f.Message)
	}
	want := map[string]any{"low": "xsample-sample", "both": "from-secret", "secret": "from-secret", "inline": "from-inline"}
	if got := object(t, c, "ConfigMap", "result").Object["data"]; !maps.Equal(got.(map[string]any), want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestMetadata wants what kustomize-controller adds after the build.
func TestMetadata(t *testing.T) {
	c, _ := follow(t, `
-- clusters/dev/a.yaml --
apiVersion: kustomize.toolkit.fluxcd.io/v1
kind: Kustomization
metadata: {name: a, namespace: flux-system}
spec:
  interval: 1h
  path: ./apps
  prune: true
  sourceRef: {kind: GitRepository, name: flux-system}
  commonMetadata:
    labels: {team: blue, own: flux}
    annotations: {note: common}
-- apps/a.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: result, namespace: default, labels: {own: manifest}}
`, nil)
	o := object(t, c, "ConfigMap", "result")
	wantLabels := map[string]string{"team": "blue", "own": "flux", "kustomize.toolkit.fluxcd.io/name": "a", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}
	if got := o.GetLabels(); !maps.Equal(got, wantLabels) {
		t.Errorf("labels %v, want %v", got, wantLabels)
	}
	if got := o.GetAnnotations(); !maps.Equal(got, map[string]string{"note": "common"}) {
		t.Errorf("annotations %v", got)
	}
	if got := object(t, c, "Kustomization", "a").GetLabels()["kustomize.toolkit.fluxcd.io/name"]; got != Root {
		t.Errorf("the Kustomization belongs to %q, want %q", got, Root)
	}
}

// TestReferences looks at what only some objects may do.
func TestReferences(t *testing.T) {
	const kustomization = `
apiVersion: kustomize.toolkit.fluxcd.io/v1
kind: Kustomization
metadata: {name: a, namespace: flux-system}
spec:
  interval: 1h
  path: ./apps
  prune: true
`
	const helm = `
apiVersion: helm.toolkit.fluxcd.io/v2
kind: HelmRelease
metadata: {name: %, namespace: default}
spec: {interval: 1h, chartRef: {kind: OCIRepository, name: x}, dependsOn: [{name: @}]}
`
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"root as dependency":   {"-- clusters/dev/a.yaml --" + kustomization + "  sourceRef: {kind: GitRepository, name: flux-system}\n  dependsOn: [{name: flux-system-cluster}]\n-- apps/kustomization.yaml --\nnamespace: x\n", nil},
		"depends on itself":    {"-- clusters/dev/a.yaml --" + kustomization + "  sourceRef: {kind: GitRepository, name: flux-system}\n  dependsOn: [{name: a}]\n-- apps/kustomization.yaml --\nnamespace: x\n", []string{"FX-005 spec.dependsOn[0].name"}},
		"external artifact":    {"-- clusters/dev/a.yaml --" + kustomization + "  sourceRef: {kind: ExternalArtifact, name: x}\n", []string{"FX-002 spec.sourceRef.kind"}},
		"path is a file":       {"-- clusters/dev/a.yaml --" + kustomization + "  sourceRef: {kind: GitRepository, name: flux-system}\n-- apps --\n", []string{"FX-003 spec.path"}},
		"path outside is root": {"-- clusters/dev/a.yaml --" + kustomization[:len(kustomization)-len("  path: ./apps\n  prune: true\n")] + "  path: ../../apps\n  prune: true\n  sourceRef: {kind: GitRepository, name: flux-system}\n-- apps/kustomization.yaml --\nnamespace: x\n", nil},
		"refused object":       {"-- clusters/dev/a.yaml --" + kustomization, nil},
		"releases":             {"-- clusters/dev/a.yaml --" + replace(helm, "one", "two") + "---" + replace(helm, "two", "three"), []string{"FX-004 spec.dependsOn[0].name"}},
		"shared":               {"-- clusters/dev/x/kustomization.yaml --\nresources: [a.yaml]\nnamePrefix: x-\n-- clusters/dev/x/a.yaml --" + replace(helm, "one", "one") + "", []string{"FX-004 spec.dependsOn[0].name"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, findings := follow(t, test.text, nil)
			var got []string
			for _, f := range findings {
				got = append(got, f.Check.ID+" "+f.Field)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func replace(text, name, dependency string) string {
	out := []byte{}
	for _, c := range []byte(text) {
		switch c {
		case '%':
			out = append(out, name...)
		case '@':
			out = append(out, dependency...)
		default:
			out = append(out, c)
		}
	}
	return string(out)
}
