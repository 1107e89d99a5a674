package yamldoc

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Path is the way from the top of a document to a field. Each step selects in what the step before it led to.
type Path []Step

// Step is one step of a Path.
type Step struct {
	// Key selects the value of a key of a mapping.
	Key string
	// Index selects an element of a sequence if IsIndex.
	Index   int
	IsIndex bool
	// Match selects the elements of a sequence whose key Match has the value Key.
	Match string
}

// ParsePath reads a field path as the API server writes it: spec.containers[0].image, metadata.labels[a.b/c],
// .spec.env[name="X"]. It reads every text; what is no path leads to nothing.
func ParsePath(text string) Path {
	var path Path
	for text != "" {
		switch text[0] {
		case '.':
			text = text[1:]
		case '[':
			end := strings.IndexByte(text, ']')
			if end < 0 {
				return path
			}
			path = append(path, bracket(text[1:end]))
			text = text[end+1:]
		default:
			end := strings.IndexAny(text, ".[")
			if end < 0 {
				end = len(text)
			}
			path = append(path, Step{Key: text[:end]})
			text = text[end:]
		}
	}
	return path
}

func bracket(text string) Step {
	if i, err := strconv.Atoi(text); err == nil {
		return Step{Index: i, IsIndex: true}
	}
	if key, value, ok := strings.Cut(text, "="); ok {
		if unquoted, err := strconv.Unquote(value); err == nil {
			return Step{Match: key, Key: unquoted}
		}
	}
	return Step{Key: strings.Trim(text, `"'`)}
}

// ParsePointer reads the path of a JSON patch (RFC 6901).
func ParsePointer(text string) Path {
	var path Path
	for _, token := range strings.Split(strings.TrimPrefix(text, "/"), "/") {
		token = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
		step := Step{Key: token}
		if i, err := strconv.Atoi(token); err == nil {
			step = Step{Index: i, IsIndex: true}
		}
		path = append(path, step)
	}
	return path
}

// Lookup follows the path below a node. It returns the place of the deepest field that exists: for a field the node of
// its key, for an element of a sequence the node itself. found says whether that is the whole path, value is what
// stands there.
//
// The messages of Go's JSON decoder name no indexes. A step with a key that meets a sequence therefore tries each of
// its elements.
func Lookup(node *yaml.Node, path Path) (place, value *yaml.Node, found bool) {
	place, value, _, found = lookup(node, node, path)
	return place, value, found
}

// lookup also returns how many steps it went.
func lookup(place, node *yaml.Node, path Path) (*yaml.Node, *yaml.Node, int, bool) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if len(path) == 0 {
		return place, node, 0, true
	}
	step, rest := path[0], path[1:]
	switch node.Kind {
	case yaml.DocumentNode:
		if len(node.Content) == 1 {
			return lookup(node.Content[0], node.Content[0], path)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			if !step.IsIndex && step.Match == "" && node.Content[i].Value == step.Key {
				p, v, depth, ok := lookup(node.Content[i], node.Content[i+1], rest)
				return p, v, depth + 1, ok
			}
		}
	case yaml.SequenceNode:
		switch {
		case step.IsIndex:
			if step.Index < len(node.Content) {
				p, v, depth, ok := lookup(node.Content[step.Index], node.Content[step.Index], rest)
				return p, v, depth + 1, ok
			}
		case step.Match != "":
			// Duplicates are what such a path is about: the last one is the one too many.
			for i := len(node.Content) - 1; i >= 0; i-- {
				if Value(node.Content[i], step.Match) == step.Key {
					p, v, depth, ok := lookup(node.Content[i], node.Content[i], rest)
					return p, v, depth + 1, ok
				}
			}
		default:
			deepPlace, deepNode, deepest := place, node, 0
			for _, element := range node.Content {
				p, v, depth, ok := lookup(element, element, path)
				if ok {
					return p, v, depth, true
				}
				if depth > deepest {
					deepPlace, deepNode, deepest = p, v, depth
				}
			}
			return deepPlace, deepNode, deepest, false
		}
	}
	return place, node, 0, false
}

// Value returns the scalar below a key of a mapping, or "".
func Value(node *yaml.Node, key string) string {
	if v := Child(node, key); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

// Child returns the value of a key of a mapping, or nil.
func Child(node *yaml.Node, key string) *yaml.Node {
	if node == nil {
		return nil
	}
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if node.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return node.Content[i+1]
		}
	}
	return nil
}
