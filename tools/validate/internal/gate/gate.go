// Package gate runs all checks on a repository.
//
// The stages are: read the artifact; check its YAML files and platform.yaml; follow and render each cluster (package
// fluxgraph); judge each object that was rendered (packages apicheck and crd); find the line of each finding (package
// locate). A defect never stops the stages behind it, unless they would only repeat it.
package gate

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"aks-platform/tools/internal/fluxcrd"
	"aks-platform/tools/validate/internal/apicheck"
	"aks-platform/tools/validate/internal/artifact"
	"aks-platform/tools/validate/internal/check"
	"aks-platform/tools/validate/internal/crd"
	"aks-platform/tools/validate/internal/fluxgraph"
	"aks-platform/tools/validate/internal/locate"
	"aks-platform/tools/validate/internal/platform"
	"aks-platform/tools/validate/internal/render"
	"aks-platform/tools/validate/internal/report"
	"aks-platform/tools/validate/internal/yamldoc"
)

// clustersFolder has one folder for each cluster.
const clustersFolder = "clusters"

// The checks of this package.
var (
	Syntax = &check.Check{
		ID:       "YAML-001",
		Title:    "File is not YAML",
		Severity: check.Error,
		Why:      "Kustomize cannot read the file, so Flux applies nothing of the folder that uses it.",
		Fix:      "Correct the line; most often the indentation is wrong or a quote is missing.",
		Example: `metadata:
  name: a
 namespace: b   # one blank too few`,
	}
	Duplicate = &check.Check{
		ID:       "YAML-002",
		Title:    "Key is set twice",
		Severity: check.Error,
		Why:      "Which of the two values counts depends on the program that reads the file, and the other one is lost without a word.",
		Fix:      "Remove one of the two.",
		Example: `metadata:
  name: a
  name: b`,
	}
	Link = &check.Check{
		ID:       "KZ-006",
		Title:    "Symbolic link",
		Severity: check.Error,
		Why:      "Flux leaves symbolic links out of the artifact. What works in the checkout is missing in the cluster, and a link that leads out of the repository would read whatever lies there on this machine.",
		Fix:      "Replace the link by the file, or name the real path.",
		Example:  `apps/base/shared.yaml -> ../../shared/shared.yaml`,
	}
)

// Checks returns all checks, sorted by id.
func Checks() []*check.Check {
	all := slices.Concat([]*check.Check{Syntax, Duplicate, Link},
		platform.Checks, render.Checks, fluxgraph.Checks, apicheck.Checks, crd.Checks)
	slices.SortFunc(all, func(a, b *check.Check) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// Run checks the repository at root. An error means that it could not be checked.
func Run(ctx context.Context, root string) ([]check.Finding, report.Summary, error) {
	log := zerolog.Ctx(ctx)
	summary := report.Summary{Kubernetes: apicheck.Release()}
	tree, err := artifact.Load(root, artifact.DefaultLimits)
	if err != nil {
		return nil, summary, err
	}
	contract, findings, err := platform.Load(root)
	if err != nil {
		return nil, summary, err
	}
	findings = append(findings, checkFiles(tree)...)
	for _, name := range tree.Folder(clustersFolder) {
		if tree.IsFolder(path.Join(clustersFolder, name)) {
			summary.Clusters = append(summary.Clusters, name)
		}
	}
	if len(summary.Clusters) == 0 {
		return nil, summary, fmt.Errorf("the artifact of %s has no folder %s/NAME: there is no cluster to check", root, clustersFolder)
	}
	log.Debug().Int("files", len(tree.Files())).Strs("clusters", summary.Clusters).Msg("artifact read")

	g := &gate{tree: tree, contract: contract, renderer: render.New(tree), catalog: crd.NewCatalog(fluxcrd.FS)}
	g.locator = locate.New(tree, g.renderer)
	results := make([]clusterResult, len(summary.Clusters))
	group, groupCtx := errgroup.WithContext(ctx)
	// More clusters at a time would only keep more objects in memory.
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, name := range summary.Clusters {
		group.Go(func() error {
			var err error
			results[i], err = g.cluster(groupCtx, path.Join(clustersFolder, name))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, summary, err
	}
	for i, r := range results {
		findings = append(findings, r.findings...)
		summary.Kustomizations += r.kustomizations
		summary.Objects += r.objects
		log.Debug().Str("cluster", summary.Clusters[i]).Int("kustomizations", r.kustomizations).Int("objects", r.objects).
			Int("findings", len(r.findings)).Msg("cluster checked")
	}
	return check.Merge(findings), summary, nil
}

// checkFiles checks the YAML files of the artifact, whether something uses them or not.
func checkFiles(tree *artifact.Tree) []check.Finding {
	var findings []check.Finding
	for _, l := range tree.Links() {
		message := fmt.Sprintf("the link leads to %s, and Flux leaves it out", l.Target)
		if l.Leaves {
			message = fmt.Sprintf("the link leads out of the repository or nowhere: %s", l.Target)
		}
		findings = append(findings, check.Finding{Check: Link, Pos: check.Position{File: l.Path}, Message: message})
	}
	for _, f := range tree.Files() {
		if ext := path.Ext(f.Path); ext != ".yaml" && ext != ".yml" && path.Base(f.Path) != "Kustomization" {
			continue
		}
		docs, err := f.Documents()
		if syntax := (*yamldoc.SyntaxError)(nil); errors.As(err, &syntax) {
			findings = append(findings, check.Finding{Check: Syntax, Pos: check.Position{File: f.Path, Line: syntax.Line}, Message: syntax.Message})
			continue
		}
		for _, d := range docs {
			for _, dup := range yamldoc.Duplicates(d) {
				findings = append(findings, check.Finding{
					Check: Duplicate, Pos: check.Position{File: f.Path, Line: dup.Line, Column: dup.Column}, Field: dup.Key,
					Message: fmt.Sprintf("the key is already set at line %d", dup.FirstLine),
				})
			}
		}
	}
	return findings
}

type gate struct {
	tree     *artifact.Tree
	contract *platform.Contract
	renderer *render.Renderer
	catalog  *crd.Catalog
	locator  *locate.Locator
}

type clusterResult struct {
	findings                []check.Finding
	kustomizations, objects int
}

// cluster renders a cluster and judges its objects.
func (g *gate) cluster(ctx context.Context, folder string) (clusterResult, error) {
	c, found, err := fluxgraph.Follow(ctx, folder, g.renderer, g.tree, g.contract)
	if err != nil {
		return clusterResult{}, err
	}
	catalog := g.catalog.Extend()
	for _, o := range c.Objects {
		if o.GroupVersionKind().GroupKind() == definitionKind {
			if err := catalog.Add(o.Object); err != nil {
				// CheckDefinition says why, in the words of the API server.
				zerolog.Ctx(ctx).Debug().Err(err).Str("name", o.GetName()).Msg("definition not usable")
			}
		}
	}
	judged := make([][]fluxgraph.Finding, len(c.Objects))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, o := range c.Objects {
		group.Go(func() error {
			if err := groupCtx.Err(); err != nil {
				return err
			}
			list, err := judge(o, catalog)
			for _, f := range list {
				f.Object = o.Ref()
				f.Clusters = []string{c.Name}
				judged[i] = append(judged[i], fluxgraph.Finding{Finding: f, On: o})
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return clusterResult{}, fmt.Errorf("cluster %s: %w", c.Name, err)
	}
	out := clusterResult{kustomizations: len(c.Kustomizations), objects: len(c.Objects)}
	for _, f := range slices.Concat(append(judged, found)...) {
		var exact bool
		if f.Pos, exact, err = g.locator.Locate(f); err != nil {
			return clusterResult{}, fmt.Errorf("cluster %s: %w", c.Name, err)
		}
		if f.Check == apicheck.Scope && f.Object.Namespace != "" && !exact {
			// Kustomize or Flux added the namespace, because they do not know the scopes of custom resources. It does
			// no harm, and nobody wrote it.
			continue
		}
		out.findings = append(out.findings, f.Finding)
	}
	return out, nil
}

var definitionKind = schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}

// judge asks the API server's code about one object.
func judge(o *fluxgraph.Object, catalog *crd.Catalog) ([]check.Finding, error) {
	gvk := o.GroupVersionKind()
	data, err := o.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", o.Ref(), err)
	}
	switch {
	case gvk.GroupKind() == definitionKind:
		return append(scope(o, false), crd.CheckDefinition(data)...), nil
	case apicheck.Known(gvk.GroupKind()):
		return append(scope(o, apicheck.Namespaced(gvk.GroupKind())), apicheck.Check(data)...), nil
	}
	kind, ok, err := catalog.Lookup(gvk)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", gvk, err)
	}
	if ok {
		var findings []check.Finding
		if kind.Deprecated != "" {
			findings = append(findings, check.Finding{Check: apicheck.Deprecated, Field: "apiVersion", Message: kind.Deprecated})
		}
		findings = append(findings, scope(o, kind.Namespaced)...)
		return append(findings, kind.Check(o.DeepCopy().Object)...), nil
	}
	versions, err := catalog.Versions(gvk.GroupKind())
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", gvk, err)
	}
	if len(versions) > 0 {
		return []check.Finding{{
			Check: apicheck.Removed, Field: "apiVersion",
			Message: fmt.Sprintf("%s %s is not served; the definition serves %s", gvk.GroupVersion(), gvk.Kind, strings.Join(versions, ", ")),
		}}, nil
	}
	return []check.Finding{{Check: apicheck.UnknownKind, Field: "kind", Message: fmt.Sprintf("no matches for kind %q in version %q", gvk.Kind, gvk.GroupVersion())}}, nil
}

// scope compares the namespace of an object with the kind's scope.
func scope(o *fluxgraph.Object, namespaced bool) []check.Finding {
	switch {
	case namespaced && o.GetNamespace() == "":
		return []check.Finding{{Check: apicheck.Scope, Field: "metadata.namespace", Message: "namespace not specified"}}
	case !namespaced && o.GetNamespace() != "":
		return []check.Finding{{
			Check: apicheck.Scope, Field: "metadata.namespace", Fix: "Remove the field.",
			Message: fmt.Sprintf("a %s is in no namespace, so %q has no effect", o.GetKind(), o.GetNamespace()),
		}}
	}
	return nil
}
