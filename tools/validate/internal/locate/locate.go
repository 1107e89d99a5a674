// Package locate finds the line that a person must edit.
//
// A finding is about a field of a rendered object, which is the work of many files: a base, patches, generators, images.
// The file that an object comes from is known to Kustomize, which writes it into an annotation on demand; that costs a
// second build, so it is done only for Kustomizations that have findings. From there on the field is searched:
//
//   - in the patches that speak about the object, strategic merges and JSON patches, in files and inline;
//   - in the generator that makes the object;
//   - in the document that the object comes from.
//
// A place counts if the value there is the rendered one. If no place does, for example because a field is missing, the
// answer is the deepest existing part of the field's path in the document that the object comes from.
package locate

import (
	"fmt"
	"path"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"aks-platform/tools/validate/internal/artifact"
	"aks-platform/tools/validate/internal/check"
	"aks-platform/tools/validate/internal/fluxgraph"
	"aks-platform/tools/validate/internal/render"
	"aks-platform/tools/validate/internal/yamldoc"
)

// Locator finds positions in the files of one artifact. It may be used by several goroutines.
type Locator struct {
	tree     *artifact.Tree
	renderer *render.Renderer

	mu      sync.Mutex
	origins map[*fluxgraph.Kustomization][]string
}

// New returns a Locator.
func New(tree *artifact.Tree, r *render.Renderer) *Locator {
	return &Locator{tree: tree, renderer: r, origins: make(map[*fluxgraph.Kustomization][]string)}
}

// Locate returns the place of a finding. It is exact if what is rendered stands there.
func (l *Locator) Locate(f fluxgraph.Finding) (pos check.Position, exact bool, err error) {
	if f.Pos.File != "" {
		return f.Pos, true, nil
	}
	if f.On == nil {
		if f.In == nil {
			return pos, false, fmt.Errorf("the finding %s %q names neither a file nor an object", f.Check.ID, f.Message)
		}
		if len(f.In.Sources) > 0 {
			return check.Position{File: f.In.Sources[0].File.Path}, false, nil
		}
		return check.Position{File: f.In.Folder}, false, nil
	}
	file, err := l.origin(f.On)
	if err != nil {
		return pos, false, err
	}
	s := search{
		sources: f.On.Kustomization.Sources,
		origin:  l.tree.File(file),
		kind:    f.On.GetKind(),
		name:    f.On.GetName(),
		object:  f.On.Object,
	}
	if s.origin == nil {
		return check.Position{File: file}, false, nil
	}
	if f.Text != "" {
		if pos, ok := s.text(f.Text, f.Value); ok {
			return pos, true, nil
		}
	}
	pos, exact = s.field(yamldoc.ParsePath(f.Field))
	return pos, exact, nil
}

// origin returns the file that an object comes from.
func (l *Locator) origin(o *fluxgraph.Object) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := o.Kustomization
	files, ok := l.origins[k]
	if !ok {
		rendering, err := k.Render(l.renderer, true)
		if err != nil {
			return "", err
		}
		for _, res := range rendering.Resources {
			file := k.Folder
			from, err := res.GetOrigin()
			if err != nil {
				return "", fmt.Errorf("read the origin of %s: %w", res.CurId(), err)
			}
			if from != nil {
				rel := from.Path
				if from.ConfiguredIn != "" {
					rel = from.ConfiguredIn
				}
				file = path.Join(k.Folder, rel)
			}
			files = append(files, file)
		}
		l.origins[k] = files
	}
	if o.Index >= len(files) {
		return "", fmt.Errorf("the second build of %s has %d objects, and number %d was expected", k.ID, len(files), o.Index)
	}
	return files[o.Index], nil
}

// search looks for one object in the files of its build.
type search struct {
	sources []render.Source
	origin  *artifact.File
	// kind and name are those of the rendered object. A build never changes the kind, but it may have put something
	// before or behind the name.
	kind, name string
	object     map[string]any
}

// speaksOf says how well the names in a document fit the object: 0 for not at all, more for a longer common name.
func (s *search) speaksOf(id yamldoc.ID) int {
	if id.Kind != s.kind || id.Name == "" || !strings.Contains(s.name, id.Name) {
		return 0
	}
	return len(id.Name)
}

// text returns the place of a text that is in a field of the object before substitution: in the document of the object, or
// in another file of the build. Of several places it prefers one that is a part of the field's value.
func (s *search) text(text, value string) (check.Position, bool) {
	if node := s.document(); node != nil {
		if n := scalarWith(node, text, value); n != nil {
			return line(s.origin, n, text), true
		}
	}
	for _, accept := range []string{value, text} {
		for _, source := range s.sources {
			docs, err := source.File.Documents()
			if source.Role == render.Resource || err != nil {
				continue
			}
			for _, d := range docs {
				if n := scalarWith(d.Root, text, accept); n != nil {
					return line(source.File, n, text), true
				}
			}
		}
	}
	// A file of a generator need not be YAML.
	for _, source := range s.sources {
		if source.Role == render.Data {
			if i := strings.Index(string(source.File.Data), text); i >= 0 {
				return check.Position{File: source.File.Path, Line: 1 + strings.Count(string(source.File.Data[:i]), "\n")}, true
			}
		}
	}
	return check.Position{}, false
}

// line returns the line of a text inside a scalar, which may have many.
func line(file *artifact.File, n *yaml.Node, text string) check.Position {
	lines := strings.Split(string(file.Data), "\n")
	for i := n.Line; i <= len(lines); i++ {
		if column := strings.Index(lines[i-1], text); column >= 0 {
			return check.Position{File: file.Path, Line: i, Column: column + 1}
		}
	}
	return position(file, n)
}

// scalarWith returns the first scalar that has the text and is a part of the value; for a literal of a generator, what
// stands behind the name. A text as value means any scalar that has it.
func scalarWith(n *yaml.Node, text, value string) *yaml.Node {
	if n.Kind == yaml.ScalarNode && strings.Contains(n.Value, text) {
		_, literal, _ := strings.Cut(n.Value, "=")
		if value == text || strings.Contains(value, n.Value) || literal != "" && strings.Contains(value, literal) {
			return n
		}
	}
	for _, child := range n.Content {
		if found := scalarWith(child, text, value); found != nil {
			return found
		}
	}
	return nil
}

func position(file *artifact.File, n *yaml.Node) check.Position {
	return check.Position{File: file.Path, Line: n.Line, Column: n.Column}
}

// field returns the place of a field.
func (s *search) field(p yamldoc.Path) (check.Position, bool) {
	rendered, scalar := scalarAt(s.object, p)
	same := func(n *yaml.Node) bool {
		return !scalar || n.Kind != yaml.ScalarNode || n.Value == rendered
	}
	if len(p) > 0 {
		for _, source := range s.sources {
			var pos check.Position
			var value *yaml.Node
			switch source.Role {
			case render.Patch:
				pos, value = s.inPatch(source.File, p)
			case render.Kustomization:
				pos, value = s.inKustomization(source.File, p)
			}
			if value != nil && same(value) {
				return pos, true
			}
		}
	}
	if node := s.document(); node != nil {
		place, value, found := yamldoc.Lookup(node, p)
		return position(s.origin, place), found && same(value)
	}
	if pos, ok := s.generator(p); ok {
		return pos, true
	}
	return check.Position{File: s.origin.Path}, false
}

// document returns the document that the object comes from, or nil for an object that is generated. A name may be made by
// a variable, so the only document of the right kind will do too.
func (s *search) document() *yaml.Node {
	docs, err := s.origin.Documents()
	if err != nil {
		return nil
	}
	var best, last *yaml.Node
	length, ofKind := 0, 0
	var look func(*yaml.Node)
	look = func(root *yaml.Node) {
		if items := yamldoc.Child(root, "items"); items != nil && items.Kind == yaml.SequenceNode {
			for _, item := range items.Content {
				look(item)
			}
		}
		id := yamldoc.Document{Root: root}.ID()
		if id.Kind == s.kind {
			last, ofKind = root, ofKind+1
		}
		if n := s.speaksOf(id); n > length {
			best, length = root, n
		}
	}
	for _, d := range docs {
		look(d.Root)
	}
	if best == nil && ofKind == 1 {
		return last
	}
	return best
}

// inPatch looks for a field in the documents of a patch file. It returns a value of nil if the field is not there.
func (s *search) inPatch(file *artifact.File, p yamldoc.Path) (check.Position, *yaml.Node) {
	docs, err := file.Documents()
	if err != nil {
		return check.Position{}, nil
	}
	for _, d := range docs {
		if place, value := s.inPatchNode(d.Root, p); value != nil {
			return position(file, place), value
		}
	}
	return check.Position{}, nil
}

func (s *search) inPatchNode(root *yaml.Node, p yamldoc.Path) (place, value *yaml.Node) {
	if root.Kind == yaml.SequenceNode {
		return jsonPatch(root, p)
	}
	// A strategic merge may leave the name to its target, but never the kind.
	if id := (yamldoc.Document{Root: root}).ID(); id.Kind != "" && id.Kind != s.kind || !strings.Contains(s.name, id.Name) {
		return nil, nil
	}
	if place, value, found := yamldoc.Lookup(root, p); found {
		return place, value
	}
	return nil, nil
}

// jsonPatch looks for the last operation that sets the field or something around it.
func jsonPatch(operations *yaml.Node, p yamldoc.Path) (place, value *yaml.Node) {
	for _, op := range operations.Content {
		target := yamldoc.ParsePointer(yamldoc.Value(op, "path"))
		if !prefix(target, p) {
			continue
		}
		v := yamldoc.Child(op, "value")
		if v == nil {
			continue
		}
		if deeper, deeperValue, found := yamldoc.Lookup(v, p[len(target):]); found {
			place, value = deeper, deeperValue
		}
	}
	return place, value
}

func prefix(target, p yamldoc.Path) bool {
	if len(target) > len(p) {
		return false
	}
	for i := range target {
		if target[i] != p[i] {
			return false
		}
	}
	return true
}

// inKustomization looks into the inline patches of a kustomization file, and into its generators.
func (s *search) inKustomization(file *artifact.File, p yamldoc.Path) (check.Position, *yaml.Node) {
	docs, err := file.Documents()
	if err != nil || len(docs) == 0 {
		return check.Position{}, nil
	}
	patches := yamldoc.Child(docs[0].Root, "patches")
	if patches == nil {
		return check.Position{}, nil
	}
	for _, entry := range patches.Content {
		text := yamldoc.Child(entry, "patch")
		if text == nil || !s.targets(yamldoc.Child(entry, "target")) {
			continue
		}
		inner, err := yamldoc.Parse([]byte(text.Value))
		if err != nil || len(inner) == 0 {
			continue // the build refuses it
		}
		place, value := s.inPatchNode(inner[0].Root, p)
		if value == nil {
			continue
		}
		pos := position(file, text)
		if text.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
			pos.Line, pos.Column = text.Line+place.Line, 0
		}
		return pos, value
	}
	return check.Position{}, nil
}

// targets says whether the target of a patch may be the object. Selectors beyond kind and name are not looked at: the
// value decides.
func (s *search) targets(target *yaml.Node) bool {
	kind := yamldoc.Value(target, "kind")
	return target == nil || kind == "" || kind == s.kind
}

// generator returns the place of a generator's entry: of the literal that gives the field, or of the entry.
func (s *search) generator(p yamldoc.Path) (check.Position, bool) {
	var entryAt *check.Position
	for _, source := range s.sources {
		docs, err := source.File.Documents()
		if source.Role != render.Kustomization || err != nil || len(docs) == 0 {
			continue
		}
		for _, field := range []string{"configMapGenerator", "secretGenerator"} {
			list := yamldoc.Child(docs[0].Root, field)
			if list == nil {
				continue
			}
			for _, entry := range list.Content {
				if name := yamldoc.Value(entry, "name"); name == "" || !strings.Contains(s.name, name) {
					continue
				}
				if n := literal(entry, p); n != nil {
					return position(source.File, n), true
				}
				if source.File == s.origin {
					pos := position(source.File, entry)
					entryAt = &pos
				}
			}
		}
	}
	if entryAt != nil {
		return *entryAt, true
	}
	return check.Position{}, false
}

func literal(entry *yaml.Node, p yamldoc.Path) *yaml.Node {
	literals := yamldoc.Child(entry, "literals")
	if literals == nil || len(p) == 0 {
		return nil
	}
	for _, n := range literals.Content {
		if strings.HasPrefix(n.Value, p[len(p)-1].Key+"=") {
			return n
		}
	}
	return nil
}

// scalarAt returns the text of a value that is neither a mapping nor a list.
func scalarAt(value any, p yamldoc.Path) (string, bool) {
	for _, step := range p {
		switch v := value.(type) {
		case map[string]any:
			value = v[step.Key]
		case []any:
			if !step.IsIndex || step.Index >= len(v) {
				return "", false
			}
			value = v[step.Index]
		default:
			return "", false
		}
	}
	switch value.(type) {
	case nil, map[string]any, []any:
		return "", false
	}
	return fmt.Sprint(value), true
}
