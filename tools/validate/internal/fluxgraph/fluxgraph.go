// Package fluxgraph follows the Flux objects of a cluster and renders all that Flux would apply to it.
//
// A cluster is a folder of clusters/. Two objects are not in Git, because Terraform creates them with the cluster (in
// Azure as one fluxConfiguration): the source GitRepository flux-system/flux-system, which is this repository, and the
// root Kustomization flux-system/flux-system-cluster, whose path is the cluster's folder. It substitutes the variables of
// platform.yaml; here their samples stand for the values. Every Kustomization that a Kustomization renders is followed in
// turn.
//
// The extension of AKS locks multi-tenancy down: no object may refer to a source in another namespace, and external
// artifacts are off.
//
// What is checked here is how the objects fit together: sources, paths, dependencies, variables, ownership. Whether an
// object is valid is asked by others.
package fluxgraph

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/yaml"

	"aks-platform/tools/validate/internal/artifact"
	"aks-platform/tools/validate/internal/check"
	"aks-platform/tools/validate/internal/platform"
	"aks-platform/tools/validate/internal/postbuild"
	"aks-platform/tools/validate/internal/render"
)

// Namespace is where all Flux objects live.
const Namespace = "flux-system"

// Root is the name of the Kustomization that Terraform creates: AKS puts the name of the fluxConfiguration, flux-system,
// in front of the Kustomization's own, cluster.
const Root = "flux-system-cluster"

// localCluster is the cluster of tools/local, whose root Kustomization substitutes nothing: no Terraform gives it values.
const localCluster = "local"

// sourceName is the name of the GitRepository that Terraform creates.
const sourceName = "flux-system"

// Limits of what one cluster may make of Kustomizations: a Kustomization can render others, which can render others, and
// with variables in their names that never ends.
const (
	maxDepth          = 16
	maxKustomizations = 5_000
)

// The API groups of Flux that the graph is made of.
const (
	kustomizeGroup = "kustomize.toolkit.fluxcd.io"
	sourceGroup    = "source.toolkit.fluxcd.io"
	helmGroup      = "helm.toolkit.fluxcd.io"
)

// Cluster is all that Flux applies to a cluster.
type Cluster struct {
	// Name is the folder's name.
	Name string
	// Kustomizations are in the order in which they were rendered; the root is the first.
	Kustomizations []*Kustomization
	// Objects are those of all Kustomizations.
	Objects []*Object
}

// Kustomization is a Flux Kustomization that was rendered, or should have been.
type Kustomization struct {
	ID types.NamespacedName
	// Spec is the object as kustomize-controller reads it.
	Spec *kustomizev1.Kustomization
	// Folder is the path in the artifact.
	Folder string
	// Object is the object in the manifests that describes it; nil for the root.
	Object *Object
	// Sources are the files of the build.
	Sources []render.Source

	depth int
}

// Render builds the Kustomization, without substitution. See render.Renderer about origins.
func (k *Kustomization) Render(r *render.Renderer, origins bool) (*render.Rendering, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(k.Spec)
	if err != nil {
		return nil, fmt.Errorf("convert Kustomization %s: %w", k.ID, err)
	}
	rendering, err := r.Render(&unstructured.Unstructured{Object: content}, k.Folder, origins)
	if err != nil {
		return nil, fmt.Errorf("render Kustomization %s: %w", k.ID, err)
	}
	return rendering, nil
}

// Object is an object that Flux applies, as it applies it.
type Object struct {
	*unstructured.Unstructured
	// Kustomization is the one that renders it.
	Kustomization *Kustomization
	// Index is its place in the build.
	Index int
}

// Ref returns how findings name the object.
func (o *Object) Ref() check.Object {
	return check.Object{APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (o *Object) kind() schema.GroupKind { return o.GroupVersionKind().GroupKind() }

// Finding is a finding whose place in the files is not known yet.
type Finding struct {
	check.Finding
	// On is the object whose manifest is to blame, if it is known.
	On *Object
	// In is the Kustomization whose files are to blame if On is nil.
	In *Kustomization
	// Text is what to look for in the files, and Value the text of the field that it was found in, before substitution.
	// An empty Text means to look for the field.
	Text, Value string
}

// Follow renders the cluster whose folder is given. The contract may be nil.
func Follow(ctx context.Context, folder string, r *render.Renderer, tree *artifact.Tree, contract *platform.Contract) (*Cluster, []Finding, error) {
	f := &follower{
		cluster:  &Cluster{Name: path.Base(folder)},
		renderer: r, tree: tree, contract: contract,
		seen:  make(map[types.NamespacedName]*Kustomization),
		index: make(map[objectKey][]*Object),
	}
	if err := f.run(ctx, f.root(folder)); err != nil {
		return nil, nil, fmt.Errorf("cluster %s: %w", f.cluster.Name, err)
	}
	f.checkReferences()
	f.checkCycles()
	f.checkOwners()
	for i := range f.findings {
		f.findings[i].Clusters = []string{f.cluster.Name}
		if on := f.findings[i].On; on != nil && f.findings[i].Object == (check.Object{}) {
			f.findings[i].Object = on.Ref()
		}
	}
	return f.cluster, f.findings, nil
}

type objectKey struct {
	kind schema.GroupKind
	id   types.NamespacedName
}

type follower struct {
	cluster  *Cluster
	renderer *render.Renderer
	tree     *artifact.Tree
	contract *platform.Contract

	seen     map[types.NamespacedName]*Kustomization
	index    map[objectKey][]*Object
	findings []Finding
}

// root returns the Kustomization that Terraform creates for a cluster.
func (f *follower) root(folder string) *Kustomization {
	k := &kustomizev1.Kustomization{}
	k.APIVersion, k.Kind = kustomizev1.GroupVersion.String(), kustomizev1.KustomizationKind
	k.Name, k.Namespace = Root, Namespace
	k.Spec.Path = "./" + folder
	k.Spec.Prune = true
	k.Spec.SourceRef = kustomizev1.CrossNamespaceSourceReference{Kind: "GitRepository", Name: sourceName}
	if f.contract != nil && len(f.contract.Variables) > 0 && path.Base(folder) != localCluster {
		k.Spec.PostBuild = &kustomizev1.PostBuild{Substitute: f.contract.Samples()}
	}
	return &Kustomization{ID: types.NamespacedName{Namespace: Namespace, Name: Root}, Spec: k, Folder: folder}
}

// run renders Kustomizations until there are no more. One that takes variables from a ConfigMap waits for the one that
// renders the ConfigMap; if nothing is left but such, they go on without.
func (f *follower) run(ctx context.Context, root *Kustomization) error {
	f.seen[root.ID] = root
	pending := []*Kustomization{root}
	for len(pending) > 0 {
		ready, waiting := f.split(pending)
		results := make([]result, len(ready))
		group, groupCtx := errgroup.WithContext(ctx)
		for i, k := range ready {
			group.Go(func() error {
				if err := groupCtx.Err(); err != nil {
					return err
				}
				var err error
				results[i], err = f.render(k)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		pending = waiting
		for i, k := range ready {
			f.cluster.Kustomizations = append(f.cluster.Kustomizations, k)
			f.findings = append(f.findings, results[i].findings...)
			pending = append(pending, f.add(k, results[i].objects)...)
		}
	}
	return nil
}

// split chooses the Kustomizations to render next: those whose variables are all there, else those that lack only
// optional ones, else all.
func (f *follower) split(pending []*Kustomization) (ready, waiting []*Kustomization) {
	for _, optionalCounts := range []bool{true, false} {
		ready, waiting = nil, nil
		for _, k := range pending {
			if f.lacksVariables(k, optionalCounts) {
				waiting = append(waiting, k)
			} else {
				ready = append(ready, k)
			}
		}
		if len(ready) > 0 {
			return ready, waiting
		}
	}
	return pending, nil
}

func (f *follower) lacksVariables(k *Kustomization, optionalCounts bool) bool {
	if k.Spec.Spec.PostBuild == nil {
		return false
	}
	for _, ref := range k.Spec.Spec.PostBuild.SubstituteFrom {
		if (optionalCounts || !ref.Optional) && f.find(schema.GroupKind{Kind: ref.Kind}, k.ID.Namespace, ref.Name) == nil {
			return true
		}
	}
	return false
}

func (f *follower) find(kind schema.GroupKind, namespace, name string) *Object {
	if found := f.index[objectKey{kind, types.NamespacedName{Namespace: namespace, Name: name}}]; len(found) > 0 {
		return found[0]
	}
	return nil
}

// add takes over what a Kustomization rendered, and returns the Kustomizations among it that are new.
func (f *follower) add(parent *Kustomization, objects []*Object) []*Kustomization {
	var children []*Kustomization
	for _, o := range objects {
		f.cluster.Objects = append(f.cluster.Objects, o)
		key := objectKey{o.kind(), types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}}
		f.index[key] = append(f.index[key], o)
		if o.kind() != (schema.GroupKind{Group: kustomizeGroup, Kind: kustomizev1.KustomizationKind}) {
			continue
		}
		if child := f.child(parent, o); child != nil {
			children = append(children, child)
		}
	}
	return children
}

// child reads a Kustomization that was rendered, and decides whether Flux would render it.
func (f *follower) child(parent *Kustomization, o *Object) *Kustomization {
	spec := &kustomizev1.Kustomization{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, spec); err != nil || spec.Spec.SourceRef.Name == "" {
		return nil // the API server refuses it, which is reported where objects are judged
	}
	k := &Kustomization{
		ID:     types.NamespacedName{Namespace: cmp.Or(o.GetNamespace(), parent.ID.Namespace), Name: o.GetName()},
		Spec:   spec,
		Folder: render.Folder(spec.Spec.Path),
		Object: o,
		depth:  parent.depth + 1,
	}
	if f.seen[k.ID] != nil {
		return nil // rendered twice, which is a question of ownership
	}
	f.seen[k.ID] = k
	if k.depth > maxDepth || len(f.seen) > maxKustomizations {
		f.report(o, Endless, "", fmt.Sprintf("%d Kustomizations, one rendered by the other up to %d deep: not followed any further", len(f.seen), k.depth))
		return nil
	}
	if !f.checkSource(k) {
		return nil
	}
	if !f.tree.IsFolder(k.Folder) {
		f.checkPath(k)
		return nil
	}
	return k
}

// result is what one Kustomization rendered.
type result struct {
	objects  []*Object
	findings []Finding
}

// render does for a Kustomization what kustomize-controller does up to the apply. It only reads the follower.
func (f *follower) render(k *Kustomization) (result, error) {
	var out result
	rendering, err := k.Render(f.renderer, false)
	if err != nil {
		return out, err
	}
	k.Sources = rendering.Sources
	for _, finding := range rendering.Findings {
		out.findings = append(out.findings, Finding{Finding: finding})
	}
	variables, complete, problems := f.variables(k)
	out.findings = append(out.findings, problems...)
	for i, res := range rendering.Resources {
		text, before, err := readAgain(res)
		if err != nil {
			out.findings = append(out.findings, unreadable(k, res, err))
			continue
		}
		o := &Object{Unstructured: before, Kustomization: k, Index: i}
		if postbuild.Enabled(res) && postbuild.Changes(text) {
			ok, problems := f.substitute(o, res, text, variables, complete)
			out.findings = append(out.findings, problems...)
			if ok {
				if _, o.Unstructured, err = readAgain(res); err != nil {
					out.findings = append(out.findings, unreadable(k, res, err))
					continue
				}
			}
		}
		finish(o.Unstructured, k)
		out.objects = append(out.objects, o)
	}
	return out, nil
}

// unreadable reports a resource that Kustomize renders and nobody can read.
func unreadable(k *Kustomization, res *resource.Resource, err error) Finding {
	return Finding{In: k, Finding: check.Finding{
		Check: render.Unbuildable, Message: err.Error(),
		Object: check.Object{APIVersion: res.GetApiVersion(), Kind: res.GetKind(), Namespace: res.GetNamespace(), Name: res.GetName()},
	}}
}

// readAgain takes the same way as Flux: the build's YAML is parsed again by the Kubernetes library, which reads some
// words, for example an unquoted on, in another way than Kustomize.
func readAgain(res *resource.Resource) (string, *unstructured.Unstructured, error) {
	text, err := res.AsYAML()
	if err != nil {
		return "", nil, fmt.Errorf("write %s: %w", res.CurId(), err)
	}
	u := new(unstructured.Unstructured)
	data, err := yaml.YAMLToJSON(text)
	if err != nil {
		return "", nil, fmt.Errorf("read %s again: %w", res.CurId(), err)
	}
	if err := u.UnmarshalJSON(data); err != nil {
		return "", nil, fmt.Errorf("read %s again: %w", res.CurId(), err)
	}
	return string(text), u, nil
}

// finish adds what kustomize-controller adds after the build: the common metadata, and the labels by which it knows its
// own objects.
func finish(o *unstructured.Unstructured, k *Kustomization) {
	labels, annotations := map[string]string{}, map[string]string{}
	if m := k.Spec.Spec.CommonMetadata; m != nil {
		maps.Copy(labels, m.Labels)
		maps.Copy(annotations, m.Annotations)
	}
	labels[kustomizeGroup+"/name"] = k.ID.Name
	labels[kustomizeGroup+"/namespace"] = k.ID.Namespace
	// What is in these fields may be of any type here; what is no map of strings is reported by the checks for objects
	// and must not be touched.
	merge(o.Object, labels, "metadata", "labels")
	merge(o.Object, annotations, "metadata", "annotations")
}

func merge(object map[string]any, values map[string]string, fields ...string) {
	if len(values) == 0 {
		return
	}
	existing, found, err := unstructured.NestedFieldNoCopy(object, fields...)
	if err != nil {
		return
	}
	target, ok := existing.(map[string]any)
	if !ok {
		if found && existing != nil {
			return
		}
		target = make(map[string]any, len(values))
	}
	for name, value := range values {
		target[name] = value
	}
	// The parents exist: the object has a name.
	_ = unstructured.SetNestedField(object, target, fields...)
}

func (f *follower) report(o *Object, which *check.Check, fieldPath, message string) {
	f.findings = append(f.findings, Finding{On: o, Finding: check.Finding{Check: which, Field: fieldPath, Message: message}})
}
