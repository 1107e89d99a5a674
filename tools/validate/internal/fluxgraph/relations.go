package fluxgraph

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"aks-platform/tools/validate/internal/check"
)

// The checks of this package.
var (
	MissingSource = &check.Check{
		ID:       "FX-002",
		Title:    "Source does not exist",
		Severity: check.Error,
		Why:      "The Kustomization stays at \"ArtifactFailed\" and applies nothing, and everything that depends on it waits.",
		Fix:      "Correct sourceRef. The source that every cluster has is GitRepository flux-system in the namespace flux-system.",
		Example: `kind: Kustomization
spec:
  sourceRef: {kind: GitRepository, name: flux-sytem}`,
	}
	MissingPath = &check.Check{
		ID:       "FX-003",
		Title:    "Path does not exist in the artifact",
		Severity: check.Error,
		Why:      "The Kustomization fails with \"kustomization path not found\". What it applied before stays and is updated no more. A folder that is in Git is still missing if .sourceignore leaves it out of the artifact.",
		Fix:      "Correct spec.path, which counts from the root of the repository, or let .sourceignore keep the folder.",
		Example: `kind: Kustomization
spec:
  path: ./app/overlays/dev   # the folder is called apps`,
	}
	MissingDependency = &check.Check{
		ID:       "FX-004",
		Title:    "dependsOn names something that does not exist",
		Severity: check.Error,
		Why:      "The Kustomization waits forever: \"dependency not found\".",
		Fix:      "Correct the name or the namespace in dependsOn, or remove the entry.",
		Example: `kind: Kustomization
spec:
  dependsOn: [{name: infra-config}]   # it is called infra-configs`,
	}
	Cycle = &check.Check{
		ID:       "FX-005",
		Title:    "dependsOn goes in a circle",
		Severity: check.Error,
		Why:      "Each waits for the next one, and none is ever applied.",
		Fix:      "Remove one of the dependencies, or split what both sides need into a Kustomization of its own.",
		Example: `# a
dependsOn: [{name: b}]
# b
dependsOn: [{name: a}]`,
	}
	TwoOwners = &check.Check{
		ID:       "FX-007",
		Title:    "Object is applied twice",
		Severity: check.Error,
		Why:      "Two Kustomizations overwrite each other's fields again and again, and the one that goes away may delete the object under the other.",
		Fix:      "Let one Kustomization render the object.",
		Example: `# apps/a and apps/b both list
resources:
  - ../shared/namespace.yaml`,
	}
	MissingVariables = &check.Check{
		ID:       "FX-009",
		Title:    "substituteFrom names something that does not exist",
		Severity: check.Error,
		Why:      "The Kustomization fails to build until the ConfigMap or Secret is there.",
		Fix:      "Correct the name, render the object in the Kustomization's namespace, or mark the entry optional.",
		Example: `postBuild:
  substituteFrom:
    - {kind: ConfigMap, name: clustervars}   # it is called cluster-vars`,
	}
	Undefined = &check.Check{
		ID:       "FX-010",
		Title:    "Variable has no value",
		Severity: check.Error,
		Why:      "Flux puts nothing in its place and says nothing. An image gets no registry, an URL no host.",
		Fix:      "Correct the name, give the variable a value in postBuild of the Kustomization, or write a default: ${name:=value}. A literal ${ is written $${.",
		Example:  `image: ${acr_login_sever}/backend-api   # it is called acr_login_server`,
	}
	Literal = &check.Check{
		ID:       "FX-017",
		Title:    "Variable is not substituted",
		Severity: check.Error,
		Why:      "Flux substitutes only for a Kustomization that has variables. Without them the text ${name} itself ends up in the cluster.",
		Fix:      "Add postBuild.substituteFrom to the Kustomization.",
		Example: `kind: Kustomization
spec:
  path: ./apps   # uses ${acr_login_server}, and there is no postBuild`,
	}
	Undeclared = &check.Check{
		ID:       "FX-018",
		Title:    "Variable is not declared in platform.yaml",
		Severity: check.Error,
		Why:      "platform.yaml is the list of all variables, with their meaning and where they come from. What is not in it, nobody can review or provide on the next cluster.",
		Fix:      "Declare the variable in platform.yaml, with a sample value.",
		Example:  `replicas: ${backend_replicas:=2}   # no such entry under variables`,
	}
	ForeignNamespace = &check.Check{
		ID:       "FX-019",
		Title:    "Source is in another namespace",
		Severity: check.Error,
		Why:      "AKS runs Flux with multi-tenancy locked down. The Kustomization fails with \"cross-namespace references have been blocked\".",
		Fix:      "Put the Kustomization into the namespace of its source.",
		Example: `metadata: {name: apps, namespace: apps}
spec:
  sourceRef: {kind: GitRepository, name: flux-system, namespace: flux-system}`,
	}
	Endless = &check.Check{
		ID:       "FX-020",
		Title:    "Kustomizations render each other without end",
		Severity: check.Error,
		Why:      "Each Kustomization brings another one, so that the cluster fills up with them.",
		Fix:      "Let no Kustomization render the folder that it is itself rendered from.",
		Example: `metadata: {name: "a-${n}"}
spec:
  path: ./this/folder
  postBuild: {substitute: {n: "${n}1"}}`,
	}
	BadSubstitution = &check.Check{
		ID:       "FX-021",
		Title:    "Substitution fails",
		Severity: check.Error,
		Why:      "Flux cannot build the Kustomization: a variable has a name that it does not accept, ${ is not closed, or a value breaks the YAML around it.",
		Fix:      "Correct the expression. A literal ${ is written $${, and the annotation kustomize.toolkit.fluxcd.io/substitute: disabled turns substitution off for one object.",
		Example:  `args: ["echo ${HOSTNAME%%.*"]   # not closed`,
	}
	NotFollowed = &check.Check{
		ID:       "FX-022",
		Title:    "Source is not this repository",
		Severity: check.Note,
		Why:      "What the Kustomization applies comes from elsewhere, so nothing of it was checked.",
		Fix:      "Nothing to do if that is intended.",
		Example:  `sourceRef: {kind: OCIRepository, name: other}`,
	}
)

// Checks lists what this package finds.
var Checks = []*check.Check{
	MissingSource, MissingPath, MissingDependency, Cycle, TwoOwners, MissingVariables, Undefined, Literal, Undeclared,
	ForeignNamespace, Endless, BadSubstitution, NotFollowed,
}

// fromThisRepository says whether a Kustomization's source is the one that Terraform creates.
func (k *Kustomization) fromThisRepository() bool {
	ref := k.Spec.Spec.SourceRef
	return ref.Kind == "GitRepository" && ref.Name == sourceName && cmp.Or(ref.Namespace, k.ID.Namespace) == Namespace
}

// checkSource says whether the Kustomization can be rendered from this repository. Whether another source exists is only
// known when all is rendered.
func (f *follower) checkSource(k *Kustomization) bool {
	ref := k.Spec.Spec.SourceRef
	if ref.Namespace != "" && ref.Namespace != k.ID.Namespace {
		f.report(k.Object, ForeignNamespace, "spec.sourceRef.namespace",
			fmt.Sprintf("the Kustomization is in the namespace %s, its source in %s", k.ID.Namespace, ref.Namespace))
		return false
	}
	return k.fromThisRepository()
}

func (f *follower) checkPath(k *Kustomization) {
	message := fmt.Sprintf("the artifact has no folder %s", k.Folder)
	switch reason, ok := f.tree.LeftOut(k.Folder); {
	case ok:
		message = fmt.Sprintf("%s exists in the checkout, but %s", k.Folder, reason)
	case f.tree.File(k.Folder) != nil:
		message = fmt.Sprintf("%s is a file, not a folder", k.Folder)
	}
	f.report(k.Object, MissingPath, "spec.path", message)
}

// checkReferences looks for the sources and dependencies that Flux objects name.
func (f *follower) checkReferences() {
	for _, id := range slices.SortedFunc(maps.Keys(f.seen), compareIDs) {
		k := f.seen[id]
		if k.Object != nil && !k.fromThisRepository() {
			f.checkOtherSource(k)
		}
	}
	for _, o := range f.cluster.Objects {
		for _, d := range dependencies(o) {
			if f.exists(o, d) {
				continue
			}
			f.report(o, MissingDependency, d.field, fmt.Sprintf("there is no %s %s in this cluster", o.GetKind(), d.id))
		}
	}
}

func (f *follower) checkOtherSource(k *Kustomization) {
	ref := k.Spec.Spec.SourceRef
	if ref.Namespace != "" && ref.Namespace != k.ID.Namespace {
		return // refused already
	}
	source := fmt.Sprintf("%s %s/%s", ref.Kind, k.ID.Namespace, ref.Name)
	switch {
	case ref.Kind == "ExternalArtifact":
		f.report(k.Object, MissingSource, "spec.sourceRef.kind", "the feature gate ExternalArtifact is off on AKS")
	case f.find(schema.GroupKind{Group: sourceGroup, Kind: ref.Kind}, k.ID.Namespace, ref.Name) == nil:
		f.report(k.Object, MissingSource, "spec.sourceRef.name", fmt.Sprintf("no Kustomization of this cluster renders the %s", source))
	default:
		f.report(k.Object, NotFollowed, "spec.sourceRef", fmt.Sprintf("the content of %s is not in this repository", source))
	}
}

// dependency is an entry of dependsOn.
type dependency struct {
	id    types.NamespacedName
	field string
}

// dependencies returns what a Flux object waits for. Dependencies are objects of the same kind.
func dependencies(o *Object) []dependency {
	if o.kind().Group != kustomizeGroup && o.kind().Group != helmGroup {
		return nil
	}
	list, _, err := unstructured.NestedSlice(o.Object, "spec", "dependsOn")
	if err != nil {
		return nil // the API server refuses it, which is reported where objects are judged
	}
	var found []dependency
	for i, entry := range list {
		m, ok := entry.(map[string]any)
		if !ok {
			continue // likewise
		}
		name, _, _ := unstructured.NestedString(m, "name")
		namespace, _, _ := unstructured.NestedString(m, "namespace")
		if name == "" {
			continue // likewise
		}
		found = append(found, dependency{
			id:    types.NamespacedName{Namespace: cmp.Or(namespace, o.GetNamespace(), o.Kustomization.ID.Namespace), Name: name},
			field: fmt.Sprintf("spec.dependsOn[%d].name", i),
		})
	}
	return found
}

// exists says whether the object that an entry of dependsOn means is there.
func (f *follower) exists(o *Object, d dependency) bool {
	if f.find(o.kind(), d.id.Namespace, d.id.Name) != nil {
		return true
	}
	// The root is not in Git.
	return o.kind().Group == kustomizeGroup && d.id == f.cluster.Kustomizations[0].ID
}

// checkCycles reports each circle of dependencies once.
func (f *follower) checkCycles() {
	const visiting, done = 1, 2
	state := make(map[*Object]int)
	var stack []*Object
	var visit func(*Object)
	visit = func(o *Object) {
		state[o] = visiting
		stack = append(stack, o)
		for _, d := range dependencies(o) {
			next := f.find(o.kind(), d.id.Namespace, d.id.Name)
			switch {
			case next == nil || state[next] == done:
			case state[next] == visiting:
				circle := stack[slices.Index(stack, next):]
				names := make([]string, 0, len(circle)+1)
				for _, c := range circle {
					names = append(names, c.GetName())
				}
				f.report(o, Cycle, d.field, strings.Join(append(names, next.GetName()), " → "))
			default:
				visit(next)
			}
		}
		stack = stack[:len(stack)-1]
		state[o] = done
	}
	for _, o := range f.cluster.Objects {
		if state[o] == 0 && len(dependencies(o)) > 0 {
			visit(o)
		}
	}
}

// shareKey is the label and annotation by which an object may say that Flux does not own it alone.
const shareKey = kustomizeGroup + "/ssa"

func (f *follower) checkOwners() {
	for _, key := range slices.SortedFunc(maps.Keys(f.index), func(a, b objectKey) int {
		return cmp.Or(strings.Compare(a.kind.String(), b.kind.String()), compareIDs(a.id, b.id))
	}) {
		owners := slices.DeleteFunc(slices.Clone(f.index[key]), func(o *Object) bool {
			return o.GetLabels()[shareKey] != "" || o.GetAnnotations()[shareKey] != ""
		})
		if len(owners) < 2 {
			continue
		}
		for _, o := range owners[1:] {
			f.report(o, TwoOwners, "", fmt.Sprintf("the Kustomizations %s and %s both apply it", owners[0].Kustomization.ID.Name, o.Kustomization.ID.Name))
		}
	}
}

func compareIDs(a, b types.NamespacedName) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
