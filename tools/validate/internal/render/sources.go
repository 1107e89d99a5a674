package render

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	fluxkustomize "github.com/fluxcd/pkg/kustomize"
	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kustomize/api/konfig"
	kustypes "sigs.k8s.io/kustomize/api/types"
	sigsyaml "sigs.k8s.io/yaml"

	"aks-platform/tools/validate/internal/artifact"
	"aks-platform/tools/validate/internal/check"
	"aks-platform/tools/validate/internal/yamldoc"
)

// Role says what a build uses a file for.
type Role int

// The roles.
const (
	Kustomization Role = iota
	Resource
	Patch
	// Config is YAML that configures the build: replacements, transformers, schemas.
	Config
	// Data is what a generator puts into an object: any text.
	Data
)

// Source is a file that a build reads.
type Source struct {
	File *artifact.File
	Role Role
}

// collector follows a kustomization file to everything that the build would read, before the build runs. It finds what
// the build would complain about, at the line that is to blame; it makes sure that no build ever leaves the artifact or
// the machine; and what it collects is where the position of a finding is searched later.
type collector struct {
	tree     *artifact.Tree
	visited  map[string]bool
	sources  []Source
	findings []check.Finding
	// stop says that the build must not run: it would fail, or reach out.
	stop bool
}

// kustomizationFile returns the path of the kustomization file of a folder, or "".
func kustomizationFile(tree *artifact.Tree, dir string) string {
	for _, name := range konfig.RecognizedKustomizationFileNames() {
		if p := path.Join(dir, name); tree.File(p) != nil {
			return p
		}
	}
	return ""
}

// kustomization is a kustomization file while it is followed.
type kustomization struct {
	dir string
	// file is the folder itself for one that Flux generated.
	file string
	root *yaml.Node // nil for one that Flux generated
}

// folder follows the kustomization file of a folder that another one names.
func (c *collector) folder(dir string, from check.Position) {
	if c.visited[dir] {
		return
	}
	c.visited[dir] = true
	p := kustomizationFile(c.tree, dir)
	if p == "" {
		c.fail(Unbuildable, from, fmt.Sprintf("the folder %s has no kustomization.yaml", dir))
		return
	}
	file := c.tree.File(p)
	root := c.kustomizationRoot(file)
	if root == nil {
		return
	}
	var k kustypes.Kustomization
	if err := sigsyaml.Unmarshal(file.Data, &k); err != nil {
		c.fail(Unbuildable, check.Position{File: p}, decodeMessage(err))
		return
	}
	in := kustomization{dir: dir, file: p, root: root}
	if c.unknownField(in, file.Data) {
		c.stop = true
	}
	c.follow(in, &k)
}

// kustomizationRoot collects a kustomization file and returns its document, or nil if it has none.
func (c *collector) kustomizationRoot(file *artifact.File) *yaml.Node {
	c.sources = append(c.sources, Source{file, Kustomization})
	if !c.sound(file) {
		return nil
	}
	docs, _ := file.Documents()
	if len(docs) == 0 {
		c.fail(Unbuildable, check.Position{File: file.Path}, "the file is empty")
		return nil
	}
	return docs[0].Root
}

// sound says whether the file is YAML with unique keys. Where it is not, the checks for YAML say so, and the build would
// only repeat it, less precisely.
func (c *collector) sound(file *artifact.File) bool {
	docs, err := file.Documents()
	if err != nil || slices.ContainsFunc(docs, func(d yamldoc.Document) bool { return len(yamldoc.Duplicates(d)) > 0 }) {
		c.stop = true
		return false
	}
	return true
}

// scan collects the manifests that Flux lists in the kustomization file that it generates.
func (c *collector) scan(dir string) {
	for _, f := range c.tree.Files() {
		if ext := path.Ext(f.Path); within(f.Path, dir) && (ext == ".yaml" || ext == ".yml") && !c.belowKustomization(f.Path, dir) {
			c.manifests(f)
		}
	}
}

// belowKustomization says whether a folder between dir and the file has a kustomization file, which then stands for the
// whole folder.
func (c *collector) belowKustomization(p, dir string) bool {
	for p = path.Dir(p); p != dir && p != "."; p = path.Dir(p) {
		if kustomizationFile(c.tree, p) != "" {
			return true
		}
	}
	return false
}

// unknownField reports a field that Kustomize does not know.
func (c *collector) unknownField(k kustomization, data []byte) bool {
	var strict kustypes.Kustomization
	err := sigsyaml.UnmarshalStrict(data, &strict)
	if err == nil {
		return false
	}
	_, name, ok := strings.Cut(err.Error(), `unknown field "`)
	if !ok {
		return false // the build reports what is not a matter of names
	}
	name = strings.TrimSuffix(name, `"`)
	name = name[strings.LastIndexByte(name, '.')+1:]
	pos := check.Position{File: k.file}
	if key := findKey(k.root, name); key != nil {
		pos.Line = key.Line
	}
	c.findings = append(c.findings, check.Finding{Check: UnknownField, Pos: pos, Field: name, Message: fmt.Sprintf("unknown field %q", name)})
	return true
}

func findKey(n *yaml.Node, name string) *yaml.Node {
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && child.Value == name {
			return child
		}
		if found := findKey(child, name); found != nil {
			return found
		}
	}
	return nil
}

// follow collects what one kustomization names.
func (c *collector) follow(k kustomization, spec *kustypes.Kustomization) {
	for _, r := range slices.Concat(spec.Resources, spec.Bases) {
		c.resource(k, r)
	}
	for _, r := range spec.Components {
		if p, ok := c.local(k, r); ok {
			if c.tree.IsFolder(p) {
				c.folder(p, c.at(k, r))
			} else {
				c.missing(k, r, p)
			}
		}
	}
	for _, p := range slices.Concat(spec.Patches, spec.PatchesJson6902) {
		c.file(k, p.Path, Patch)
		c.inline(k, p.Patch)
	}
	for _, p := range spec.PatchesStrategicMerge {
		if strings.ContainsRune(string(p), '\n') {
			c.inline(k, string(p))
		} else {
			c.file(k, string(p), Patch)
		}
	}
	for _, r := range spec.Replacements {
		c.file(k, r.Path, Config)
	}
	for _, list := range [][]string{spec.Configurations, spec.Crds} {
		for _, p := range list {
			c.file(k, p, Config)
		}
	}
	c.file(k, spec.OpenAPI["path"], Config)
	for _, list := range [][]string{spec.Generators, spec.Transformers, spec.Validators} {
		for _, p := range list {
			if strings.ContainsRune(p, '\n') {
				c.inline(k, p)
			} else {
				c.plugin(k, p)
			}
		}
	}
	for _, g := range spec.ConfigMapGenerator {
		c.generator(k, g.KvPairSources)
	}
	for _, g := range spec.SecretGenerator {
		c.generator(k, g.KvPairSources)
	}
}

// inline checks YAML inside the kustomization file, or inside the Flux Kustomization.
func (c *collector) inline(k kustomization, text string) {
	if _, err := yamldoc.Parse([]byte(text)); err != nil {
		c.fail(Unbuildable, c.at(k, text), fmt.Sprintf("the text of a patch or plugin is no YAML: %v", err))
	}
}

func (c *collector) generator(k kustomization, from kustypes.KvPairSources) {
	for _, f := range from.FileSources {
		if _, p, ok := strings.Cut(f, "="); ok {
			f = p
		}
		c.file(k, f, Data)
	}
	for _, f := range from.EnvSources {
		c.file(k, f, Data)
	}
	c.file(k, from.EnvSource, Data)
}

// resource collects an entry of resources: a file with manifests, or a folder with a kustomization file.
func (c *collector) resource(k kustomization, entry string) {
	p, ok := c.local(k, entry)
	if !ok {
		return
	}
	switch {
	case c.tree.IsFolder(p):
		c.folder(p, c.at(k, entry))
	case c.tree.File(p) != nil:
		c.manifests(c.tree.File(p))
	default:
		c.missing(k, entry, p)
	}
}

// plugin collects the configuration of a generator or transformer, a file or a folder.
func (c *collector) plugin(k kustomization, entry string) {
	if p, ok := c.local(k, entry); ok && c.tree.IsFolder(p) {
		c.folder(p, c.at(k, entry))
		return
	}
	c.file(k, entry, Config)
}

// manifests collects a file whose documents become objects.
func (c *collector) manifests(file *artifact.File) {
	if c.visited[file.Path] {
		return
	}
	c.visited[file.Path] = true
	c.sources = append(c.sources, Source{file, Resource})
	if !c.sound(file) {
		return
	}
	docs, _ := file.Documents()
	for _, d := range docs {
		id := d.ID()
		var missing []string
		if id.APIVersion == "" {
			missing = append(missing, "apiVersion")
		}
		if id.Kind == "" {
			missing = append(missing, "kind")
		}
		if id.Name == "" && !strings.HasSuffix(id.Kind, "List") {
			missing = append(missing, "metadata.name")
		}
		if len(missing) > 0 {
			c.fail(NotAnObject, check.Position{File: file.Path, Line: d.Line()}, "missing "+strings.Join(missing, " and "))
		}
	}
}

// file collects a file that is no manifest. An empty entry is a field that is not set.
func (c *collector) file(k kustomization, entry string, role Role) {
	if entry == "" {
		return
	}
	p, ok := c.local(k, entry)
	if !ok {
		return
	}
	file := c.tree.File(p)
	if file == nil {
		c.missing(k, entry, p)
		return
	}
	if !c.visited[p] {
		c.visited[p] = true
		c.sources = append(c.sources, Source{file, role})
		if role != Data {
			c.sound(file)
		}
	}
}

// local resolves an entry, and refuses what is not in the artifact's tree of paths.
func (c *collector) local(k kustomization, entry string) (string, bool) {
	if strings.Contains(entry, "://") || !fluxkustomize.IsLocalRelativePath(entry) {
		c.fail(Remote, c.at(k, entry), fmt.Sprintf("%q is not a path in this repository", entry))
		return "", false
	}
	p, err := artifact.Join(k.dir, entry)
	if errors.Is(err, artifact.ErrOutside) {
		c.fail(Outside, c.at(k, entry), fmt.Sprintf("%q leads out of the repository", entry))
		return "", false
	}
	return p, true
}

func (c *collector) missing(k kustomization, entry, p string) {
	message := p + " does not exist"
	if reason, ok := c.tree.LeftOut(p); ok {
		message = fmt.Sprintf("%s exists in the checkout, but %s", p, reason)
	}
	c.fail(Unbuildable, c.at(k, entry), message)
}

// at returns the place of an entry in its kustomization file.
func (c *collector) at(k kustomization, entry string) check.Position {
	pos := check.Position{File: k.file}
	if k.root != nil {
		if n := findScalar(k.root, entry); n != nil {
			pos.Line, pos.Column = n.Line, n.Column
		}
	}
	return pos
}

func findScalar(n *yaml.Node, value string) *yaml.Node {
	if n.Kind == yaml.ScalarNode && (n.Value == value || strings.HasSuffix(n.Value, "="+value)) {
		return n
	}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			continue
		}
		if found := findScalar(child, value); found != nil {
			return found
		}
	}
	return nil
}

// fail reports what keeps the build from running.
func (c *collector) fail(which *check.Check, pos check.Position, message string) {
	c.stop = true
	c.findings = append(c.findings, check.Finding{Check: which, Pos: pos, Message: message})
}

func decodeMessage(err error) string {
	message := err.Error()
	for _, prefix := range []string{"error unmarshaling JSON: ", "while decoding JSON: ", "error converting YAML to JSON: "} {
		message = strings.TrimPrefix(message, prefix)
	}
	return message
}
