// Package render builds the objects of one Flux Kustomization, up to the substitution of variables (package postbuild).
//
// It does what kustomize-controller 1.7 does (internal/controller/kustomization_controller.go, generate and build), with
// Flux's own library and the version of Kustomize that Flux pins:
//
//  1. The fields of the Kustomization (targetNamespace, namePrefix, nameSuffix, patches, components, images) are merged
//     into the kustomization file of its path, which is generated if there is none. That is fluxcd/pkg/kustomize's
//     Generator. It works on a folder on disk that it changes, so it gets a temporary one that holds nothing but the
//     files it reads.
//  2. Kustomize builds the result, with plugins off and without load restrictions, from the artifact in memory.
//
// Kustomize keeps its OpenAPI schema in a global variable. Flux therefore builds one Kustomization at a time; here builds
// run in parallel, unless a kustomization file of the artifact changes the schema (the fields `openapi` and `crds`).
// The package's tests compare its output with fluxcd/pkg/kustomize's own SecureBuild.
package render

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	fluxkustomize "github.com/fluxcd/pkg/kustomize"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/api/resource"
	kustypes "sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/openapi"
	sigsyaml "sigs.k8s.io/yaml"

	"aks-platform/tools/validate/internal/artifact"
	"aks-platform/tools/validate/internal/check"
)

// The checks of this package.
var (
	NotAnObject = &check.Check{
		ID:       "YAML-003",
		Title:    "Document is not a Kubernetes object",
		Severity: check.Error,
		Why:      "Every document of a file under `resources` becomes an object. Without apiVersion, kind and metadata.name Kustomize refuses the whole folder, and Flux applies nothing of it.",
		Fix:      "Add the missing field, or remove the document or the file from `resources`.",
		Example: `apiVersion: v1
metadata:
  name: settings   # kind is missing`,
	}
	Unbuildable = &check.Check{
		ID:       "KZ-001",
		Title:    "Kustomize cannot build the folder",
		Severity: check.Error,
		Why:      "Flux builds the folder in the cluster with the same code. The Kustomization turns to BuildFailed, and nothing of it is applied any more.",
		Fix:      "Correct what the message names; `kustomize build FOLDER` shows the same failure.",
		Example: `resources:
  - deploymnet.yaml   # the file is called deployment.yaml`,
	}
	Remote = &check.Check{
		ID:       "KZ-004",
		Title:    "Base is not in this repository",
		Severity: check.Error,
		Why:      "What is fetched at build time is not reviewed, not pinned, and gone when its host is. Flux refuses remote bases when multi-tenancy is locked down, and absolute paths lead out of the artifact.",
		Fix:      "Copy the base into the repository and name it by its relative path.",
		Example: `resources:
  - https://github.com/example/app//deploy?ref=main`,
	}
	Outside = &check.Check{
		ID:       "KZ-005",
		Title:    "Path leads out of the repository",
		Severity: check.Error,
		Why:      "Flux builds inside the artifact and refuses every path that leaves it.",
		Fix:      "Correct the number of `..`, or move the file into the repository.",
		Example: `resources:
  - ../../../../elsewhere`,
	}
	UnknownField = &check.Check{
		ID:       "KZ-007",
		Title:    "Unknown field in a kustomization file",
		Severity: check.Error,
		Why:      "Kustomize refuses it in a base. In the folder that a Flux Kustomization names, Flux drops it without a word, so what it was meant to do does not happen.",
		Fix:      "Correct the name of the field, or remove it.",
		Example: `resource:          # the field is called resources
  - deployment.yaml`,
	}
)

// Checks lists what this package finds.
var Checks = []*check.Check{NotAnObject, Unbuildable, Remote, Outside, UnknownField}

// Renderer builds Kustomizations from one artifact. It may be used by several goroutines.
type Renderer struct {
	tree *artifact.Tree
	// slots bounds the builds that run at the same time: more than there are processors cost memory only.
	slots chan struct{}
	// exclusive says that builds change Kustomize's schema.
	exclusive bool
}

// schema guards Kustomize's global schema: builds that change it take it alone.
var schema sync.RWMutex

// New returns a Renderer for the artifact.
func New(tree *artifact.Tree) *Renderer {
	return &Renderer{tree: tree, slots: make(chan struct{}, runtime.GOMAXPROCS(0)), exclusive: changesSchema(tree)}
}

// changesSchema says whether any kustomization file of the artifact changes Kustomize's global schema.
func changesSchema(tree *artifact.Tree) bool {
	names := konfig.RecognizedKustomizationFileNames()
	for _, f := range tree.Files() {
		for _, name := range names {
			if path.Base(f.Path) != name {
				continue
			}
			var k kustypes.Kustomization
			// What does not decode does not build either.
			if sigsyaml.Unmarshal(f.Data, &k) == nil && (len(k.OpenAPI) > 0 || len(k.Crds) > 0) {
				return true
			}
		}
	}
	return false
}

// Rendering is the result of one build.
type Rendering struct {
	// Resources are the objects in the order of the build. There are none if Findings say why.
	Resources []*resource.Resource
	// Sources are the files that the build read, from the Kustomization's own folder to the last base.
	Sources  []Source
	Findings []check.Finding
}

// Folder returns the folder of the artifact that a Kustomization's spec.path means. Flux never leaves the artifact here:
// excess ".." end at its root.
func Folder(specPath string) string {
	p := strings.TrimPrefix(path.Clean("/"+filepath.ToSlash(specPath)), "/")
	if p == "" {
		return "."
	}
	return p
}

// Render builds the folder dir for a Flux Kustomization. With origins, each resource carries Kustomize's annotation that
// says which file it comes from; that costs as much time again. The error is about this machine, never about the
// repository.
func (r *Renderer) Render(ks *unstructured.Unstructured, dir string, origins bool) (*Rendering, error) {
	r.slots <- struct{}{}
	defer func() { <-r.slots }()

	// What Kustomize reads must be known to be sound before it reads it: it recovers from a panic, but not from an
	// endless recursion.
	c := collector{tree: r.tree, visited: map[string]bool{dir: true}}
	k := kustomization{dir: dir, file: dir}
	if file := kustomizationFile(r.tree, dir); file != "" {
		k.file = file
		if k.root = c.kustomizationRoot(r.tree.File(file)); k.root != nil {
			// In this file Flux drops an unknown field, so the build goes on.
			c.unknownField(k, r.tree.File(file).Data)
		}
	} else {
		c.scan(dir)
	}
	if c.stop {
		return &Rendering{Sources: c.sources, Findings: c.findings}, nil
	}
	file, content, err := r.merge(ks, dir)
	if refusal := (*refusedError)(nil); errors.As(err, &refusal) {
		c.fail(Unbuildable, check.Position{File: k.file}, refusal.message)
		return &Rendering{Sources: c.sources, Findings: c.findings}, nil
	}
	if err != nil {
		return nil, err
	}
	var spec kustypes.Kustomization
	if err := sigsyaml.Unmarshal(content, &spec); err != nil {
		return nil, fmt.Errorf("read the kustomization that Flux generated for %s: %w", dir, err)
	}
	c.follow(k, &spec)
	out := &Rendering{Sources: c.sources, Findings: c.findings}
	if c.stop {
		return out, nil
	}

	if origins {
		spec.BuildMetadata = append(spec.BuildMetadata, kustypes.OriginAnnotations)
		if content, err = sigsyaml.Marshal(spec); err != nil {
			return nil, fmt.Errorf("write the kustomization of %s: %w", dir, err)
		}
	}
	resources, err := r.build(&view{tree: r.tree, file: file, content: content}, dir)
	if err != nil {
		message := strings.ReplaceAll(err.Error(), mount+"/", "")
		out.Findings = append(out.Findings, check.Finding{Check: Unbuildable, Pos: check.Position{File: k.file}, Message: message})
		return out, nil
	}
	out.Resources = resources.Resources()
	return out, nil
}

// build runs Kustomize. It panics for some invalid input, which Flux reports as an error too.
func (r *Renderer) build(v *view, dir string) (_ resmap.ResMap, err error) {
	if r.exclusive {
		schema.Lock()
		defer schema.Unlock()
		defer openapi.ResetOpenAPI()
	} else {
		schema.RLock()
		defer schema.RUnlock()
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("kustomize panicked: %v", p)
		}
	}()
	k := krusty.MakeKustomizer(&krusty.Options{
		LoadRestrictions: kustypes.LoadRestrictionsNone,
		PluginConfig:     kustypes.DisabledPluginConfig(),
	})
	return k.Run(v, path.Join(mount, dir))
}

func within(p, dir string) bool { return dir == "." || strings.HasPrefix(p, dir+"/") }

// refusedError is what Flux's generator says about its input.
type refusedError struct{ message string }

func (e *refusedError) Error() string { return e.message }

// merge returns the kustomization file that Flux builds for a Kustomization, and its path in the artifact.
func (r *Renderer) merge(ks *unstructured.Unstructured, dir string) (file string, content []byte, err error) {
	tmp, err := os.MkdirTemp("", "validate-")
	if err != nil {
		return "", nil, fmt.Errorf("make a folder for Flux's generator: %w", err)
	}
	defer func() {
		if rmErr := os.RemoveAll(tmp); err == nil && rmErr != nil {
			err = fmt.Errorf("remove the folder of Flux's generator: %w", rmErr)
		}
	}()
	// The generator compares paths as text, so links have to go.
	if tmp, err = filepath.EvalSymlinks(tmp); err != nil {
		return "", nil, fmt.Errorf("resolve the folder of Flux's generator: %w", err)
	}
	file = kustomizationFile(r.tree, dir)
	if err := r.copyInput(tmp, ks, dir, file); err != nil {
		return "", nil, fmt.Errorf("prepare the folder of Flux's generator: %w", err)
	}
	if file == "" {
		file = path.Join(dir, konfig.DefaultKustomizationFileName())
	}
	if _, err := fluxkustomize.NewGenerator(tmp, *ks).WriteFile(filepath.Join(tmp, filepath.FromSlash(dir))); err != nil {
		return file, nil, &refusedError{strings.ReplaceAll(err.Error(), tmp+string(filepath.Separator), "")}
	}
	content, err = os.ReadFile(filepath.Join(tmp, filepath.FromSlash(file)))
	if err != nil {
		return "", nil, fmt.Errorf("read what Flux's generator wrote: %w", err)
	}
	return file, content, nil
}

// copyInput writes what the generator looks at: the kustomization file if there is one, all manifests below the folder
// if not, and the folders of the components, of which only the existence counts.
func (r *Renderer) copyInput(tmp string, ks *unstructured.Unstructured, dir, file string) error {
	onDisk := func(p string) string { return filepath.Join(tmp, filepath.FromSlash(p)) }
	if err := os.MkdirAll(onDisk(dir), 0o700); err != nil {
		return err
	}
	components, _, err := unstructured.NestedStringSlice(ks.Object, "spec", "components")
	if err != nil {
		return err
	}
	for _, c := range components {
		if p, err := artifact.Join(dir, c); err == nil && r.tree.IsFolder(p) {
			if err := os.MkdirAll(onDisk(p), 0o700); err != nil {
				return err
			}
		}
	}
	if file != "" {
		return os.WriteFile(onDisk(file), r.tree.File(file).Data, 0o600)
	}
	for _, f := range r.tree.Files() {
		if !within(f.Path, dir) {
			continue
		}
		if ext := path.Ext(f.Path); ext != ".yaml" && ext != ".yml" && path.Base(f.Path) != "Kustomization" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(onDisk(f.Path)), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(onDisk(f.Path), f.Data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
