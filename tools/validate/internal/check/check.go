// Package check defines the vocabulary of the validator: what a check is, and what a finding is.
//
// A check is a value, like an analyzer of golang.org/x/tools/go/analysis: it has an id that never changes its meaning,
// a title, a severity and the three things that a person wants to know when it fires: why it matters, what to do, and
// how the defect looks. The package that detects a defect declares its checks as variables and lists them in a variable
// named Checks; package gate joins those lists. There is no other registration.
//
// Ids have an area and a number:
//
//	YAML  a file cannot be read for what it is
//	KZ    Kustomize cannot render a folder, or Flux would render something else
//	FX    the Flux objects of a cluster do not fit together
//	API   the API server would refuse an object of a built-in kind, or lose a part of it
//	CRD   the same for custom resources and their definitions
//	PF    platform.yaml, the contract of the repository
package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity says how a finding counts.
type Severity int

// The severities, from harmless to fatal.
const (
	// Note informs: something could not be judged.
	Note Severity = iota + 1
	// Warning is accepted by the cluster, and wrong or soon to be.
	Warning
	// Error makes Flux fail, the API server refuse, or the cluster differ from what the repository says.
	Error
)

var severityNames = map[Severity]string{Note: "note", Warning: "warning", Error: "error"}

// String returns the name that ParseSeverity reads.
func (s Severity) String() string { return severityNames[s] }

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseSeverity reads the name of a severity.
func ParseSeverity(name string) (Severity, error) {
	for s, n := range severityNames {
		if n == name {
			return s, nil
		}
	}
	return 0, fmt.Errorf("unknown severity %q: want note, warning or error", name)
}

// Check describes one thing that the validator looks for.
type Check struct {
	// ID is stable: it is what a person searches for and what other tools store.
	ID string
	// Title is a short noun phrase without a full stop.
	Title    string
	Severity Severity
	// Why says what happens on a cluster when the finding is ignored.
	Why string
	// Fix says what to do, in one or two sentences.
	Fix string
	// Example is the smallest manifest that has the defect.
	Example string
}

// Object names a Kubernetes object. The zero value means that the finding is about a file, not about an object.
type Object struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

// String returns Kind namespace/name, or Kind name for an object without a namespace.
func (o Object) String() string {
	switch {
	case o == Object{}:
		return ""
	case o.Namespace == "":
		return o.Kind + " " + o.Name
	default:
		return o.Kind + " " + o.Namespace + "/" + o.Name
	}
}

// Position is a place in a file of the repository. The path is relative to the root and has forward slashes. Line and
// Column count from one; zero means unknown.
type Position struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String returns file:line, or the file alone when the line is unknown.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Finding is one defect at one place.
type Finding struct {
	Check  *Check
	Pos    Position
	Object Object
	// Field is the path of the field inside the object, as the API server writes it.
	Field string
	// Message says what is wrong, in the words of the software that would refuse it where there is any.
	Message string
	// Fix replaces the check's general advice when something more precise can be said.
	Fix string
	// Clusters are the folders of clusters/ that show the finding. Empty means that it belongs to none in particular.
	Clusters []string
}

// Advice returns what to do about the finding.
func (f *Finding) Advice() string {
	if f.Fix != "" {
		return f.Fix
	}
	return f.Check.Fix
}

// Merge sorts findings by place, and joins those that differ only in the cluster that shows them: most manifests are
// shared, and one defect is one finding.
func Merge(findings []Finding) []Finding {
	type key struct {
		check          *Check
		pos            Position
		object         Object
		field, message string
	}
	index := make(map[key]int)
	var merged []Finding
	for _, f := range findings {
		k := key{f.Check, f.Pos, f.Object, f.Field, f.Message}
		i, seen := index[k]
		if !seen {
			index[k] = len(merged)
			f.Clusters = slices.Clone(f.Clusters)
			merged = append(merged, f)
			continue
		}
		merged[i].Clusters = append(merged[i].Clusters, f.Clusters...)
	}
	for i := range merged {
		slices.Sort(merged[i].Clusters)
		merged[i].Clusters = slices.Compact(merged[i].Clusters)
	}
	slices.SortStableFunc(merged, func(a, b Finding) int {
		return cmp.Or(
			strings.Compare(a.Pos.File, b.Pos.File),
			cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Column, b.Pos.Column),
			strings.Compare(a.Check.ID, b.Check.ID),
			strings.Compare(a.Object.String(), b.Object.String()),
			strings.Compare(a.Field, b.Field),
			strings.Compare(a.Message, b.Message),
		)
	})
	return merged
}
