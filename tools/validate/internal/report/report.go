// Package report writes findings for people and for programs.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"aks-platform/tools/validate/internal/check"
)

// Summary says what was looked at.
type Summary struct {
	Clusters       []string `json:"clusters"`
	Kustomizations int      `json:"kustomizations"`
	Objects        int      `json:"objects"`
	Kubernetes     string   `json:"kubernetes"`
}

// Format writes findings, which are sorted by place.
type Format func(w io.Writer, findings []check.Finding, s Summary) error

// Formats are the names of the formats.
var Formats = map[string]Format{"text": Text, "json": JSON}

// Text writes one block for each file, and for each finding the place, the id, the object, the field and the reason, and
// on the next line what to do.
func Text(w io.Writer, findings []check.Finding, s Summary) error {
	var b strings.Builder
	file := ""
	for i := range findings {
		f := &findings[i]
		if i > 0 && f.Pos.File != file {
			b.WriteByte('\n')
		}
		file = f.Pos.File
		fmt.Fprintf(&b, "%s  %s", f.Pos, f.Check.ID)
		if object := f.Object.String(); object != "" {
			fmt.Fprintf(&b, "  %s", object)
		}
		b.WriteString("  ")
		if f.Field != "" {
			fmt.Fprintf(&b, "%s: ", f.Field)
		}
		b.WriteString(oneLine(f.Message))
		if f.Check.Severity != check.Error {
			fmt.Fprintf(&b, " (%s)", f.Check.Severity)
		}
		if len(f.Clusters) > 0 && len(f.Clusters) < len(s.Clusters) {
			fmt.Fprintf(&b, " [%s]", strings.Join(f.Clusters, ", "))
		}
		fmt.Fprintf(&b, "\n    %s\n", f.Advice())
	}
	if len(findings) > 0 {
		b.WriteByte('\n')
	}
	clusters := strings.Join(s.Clusters, ", ")
	if len(s.Clusters) > 10 {
		clusters = count(len(s.Clusters), "cluster")
	}
	fmt.Fprintf(&b, "%s: %s in %s (%s), judged as Kubernetes %s\n",
		clusters, count(s.Objects, "object"), count(s.Kustomizations, "Kustomization"), totals(findings), s.Kubernetes)
	_, err := io.WriteString(w, b.String())
	return err
}

func totals(findings []check.Finding) string {
	if len(findings) == 0 {
		return "no findings"
	}
	bySeverity := make(map[check.Severity]int)
	for _, f := range findings {
		bySeverity[f.Check.Severity]++
	}
	var parts []string
	for _, severity := range []check.Severity{check.Error, check.Warning, check.Note} {
		if n := bySeverity[severity]; n > 0 {
			parts = append(parts, count(n, severity.String()))
		}
	}
	return strings.Join(parts, ", ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// oneLine keeps a message of several lines on the line of its finding.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// finding is a finding in JSON.
type finding struct {
	ID       string         `json:"id"`
	Severity check.Severity `json:"severity"`
	Title    string         `json:"title"`
	check.Position
	Object   *check.Object `json:"object,omitempty"`
	Field    string        `json:"field,omitempty"`
	Message  string        `json:"message"`
	Fix      string        `json:"fix"`
	Clusters []string      `json:"clusters,omitempty"`
}

// JSON writes one document.
func JSON(w io.Writer, findings []check.Finding, s Summary) error {
	out := struct {
		Summary  Summary   `json:"summary"`
		Findings []finding `json:"findings"`
	}{Summary: s, Findings: []finding{}}
	for _, f := range findings {
		j := finding{
			ID: f.Check.ID, Severity: f.Check.Severity, Title: f.Check.Title, Position: f.Pos,
			Field: f.Field, Message: f.Message, Fix: f.Advice(), Clusters: f.Clusters,
		}
		if f.Object != (check.Object{}) {
			j.Object = &f.Object
		}
		out.Findings = append(out.Findings, j)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(out)
}
