// Package yamldoc reads YAML files and keeps the positions of what it reads.
//
// The renderer and the API server work on values, which have lost where they came from. This package answers the two
// questions about positions: is the file sound (it parses, and no mapping has a key twice), and at which line does a
// field path end.
package yamldoc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxDocuments limits the documents of one file.
const MaxDocuments = 10_000

// maxNodes limits what a document may have when all its aliases are written out. Kustomize does write them out.
const maxNodes = 1_000_000

// Document is one document of a file that is not empty.
type Document struct {
	// Root is the node of the document's value.
	Root *yaml.Node
}

// Line returns the line that the document's content starts at.
func (d Document) Line() int { return d.Root.Line }

// ID is how a manifest names its object.
type ID struct{ APIVersion, Kind, Namespace, Name string }

// ID returns the names in the document; what is missing is "".
func (d Document) ID() ID {
	meta := Child(d.Root, "metadata")
	return ID{
		APIVersion: Value(d.Root, "apiVersion"),
		Kind:       Value(d.Root, "kind"),
		Namespace:  Value(meta, "namespace"),
		Name:       Value(meta, "name"),
	}
}

// SyntaxError says that a text is no YAML.
type SyntaxError struct {
	Line    int
	Message string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Message) }

// Duplicate is a key that a mapping has a second time.
type Duplicate struct {
	Key                     string
	Line, Column, FirstLine int
}

var lineOfError = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// Parse returns the documents of a text that are not empty. A text that is no YAML is a *SyntaxError.
func Parse(data []byte) ([]Document, error) {
	var docs []Document
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var node yaml.Node
		err := dec.Decode(&node)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return docs, syntaxError(err)
		}
		if len(node.Content) == 0 || node.Content[0].Tag == "!!null" {
			continue
		}
		if len(docs) == MaxDocuments {
			return docs, &SyntaxError{Line: node.Content[0].Line, Message: fmt.Sprintf("more than %d documents in one file", MaxDocuments)}
		}
		root := node.Content[0]
		if line, message := aliases(root); message != "" {
			return docs, &SyntaxError{Line: line, Message: message}
		}
		docs = append(docs, Document{Root: root})
	}
}

// aliases looks for aliases that a program could follow forever, or nearly so: Kustomize dies of the first and takes all
// memory for the second.
func aliases(root *yaml.Node) (line int, message string) {
	const open = -1
	sizes := make(map[*yaml.Node]int)
	var size func(*yaml.Node) int
	size = func(n *yaml.Node) int {
		if message != "" {
			return 0
		}
		if n.Kind == yaml.AliasNode {
			switch known := sizes[n.Alias]; known {
			case open:
				line, message = n.Line, fmt.Sprintf("the alias *%s contains itself", n.Value)
				return 0
			default:
				return known
			}
		}
		if n.Anchor != "" {
			sizes[n] = open
		}
		total := 1
		for _, child := range n.Content {
			if total += size(child); total > maxNodes && message == "" {
				line, message = child.Line, fmt.Sprintf("the aliases stand for more than %d values", maxNodes)
			}
		}
		if n.Anchor != "" {
			sizes[n] = total
		}
		return total
	}
	size(root)
	return line, message
}

// syntaxError takes the line out of a message of the YAML library, which says it in words only.
func syntaxError(err error) *SyntaxError {
	line := 1
	if m := lineOfError.FindStringSubmatch(err.Error()); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	message := lineOfError.ReplaceAllString(err.Error(), "")
	// The library counts from zero in the errors of its parser, and from one in those of its scanner.
	if strings.HasPrefix(message, "did not find expected") {
		line++
	}
	return &SyntaxError{Line: line, Message: message}
}

// Duplicates returns the keys that a mapping of the document has more than once.
func Duplicates(d Document) []Duplicate {
	var found []Duplicate
	var walk func(*yaml.Node)
	walk = func(n *yaml.Node) {
		if n.Kind == yaml.MappingNode {
			first := make(map[string]int, len(n.Content)/2)
			for i := 0; i+1 < len(n.Content); i += 2 {
				key := n.Content[i]
				if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
					continue
				}
				if line, ok := first[key.Value]; ok {
					found = append(found, Duplicate{Key: key.Value, Line: key.Line, Column: key.Column, FirstLine: line})
					continue
				}
				first[key.Value] = key.Line
			}
		}
		// The target of an alias is visited where it stands.
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(d.Root)
	return found
}
