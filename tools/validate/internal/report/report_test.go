package report

import (
	"encoding/json"
	"strings"
	"testing"

	"aks-platform/tools/validate/internal/check"
)

var (
	broken = &check.Check{ID: "A-001", Title: "Broken", Severity: check.Error, Fix: "Repair it."}
	doubt  = &check.Check{ID: "B-001", Title: "Doubtful", Severity: check.Warning, Fix: "Think again."}
	list   = []check.Finding{
		{Check: broken, Pos: check.Position{File: "a.yaml", Line: 3, Column: 5}, Object: check.Object{Kind: "Pod", Namespace: "n", Name: "p"}, Field: "spec.x", Message: "is\nwrong", Clusters: []string{"dev"}},
		{Check: doubt, Pos: check.Position{File: "a.yaml"}, Message: "hm", Clusters: []string{"dev", "prod"}},
		{Check: broken, Pos: check.Position{File: "b.yaml", Line: 1}, Message: "<broken>", Fix: "Do this."},
	}
	summary = Summary{Clusters: []string{"dev", "prod"}, Kustomizations: 1, Objects: 20, Kubernetes: "1.36"}
)

func TestText(t *testing.T) {
	var b strings.Builder
	if err := Text(&b, list, summary); err != nil {
		t.Fatal(err)
	}
	want := `a.yaml:3  A-001  Pod n/p  spec.x: is wrong [dev]
    Repair it.
a.yaml  B-001  hm (warning)
    Think again.

b.yaml:1  A-001  <broken>
    Do this.

dev, prod: 20 objects in 1 Kustomization (2 errors, 1 warning), judged as Kubernetes 1.36
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	if err := Text(&b, nil, summary); err != nil {
		t.Fatal(err)
	}
	if want := "dev, prod: 20 objects in 1 Kustomization (no findings), judged as Kubernetes 1.36\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestJSON(t *testing.T) {
	var b strings.Builder
	if err := JSON(&b, list, summary); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Summary  Summary
		Findings []map[string]any
	}
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Findings) != 3 || got.Summary.Objects != 20 {
		t.Fatalf("got %+v", got)
	}
	for key, want := range map[string]any{"id": "A-001", "severity": "error", "title": "Broken", "file": "a.yaml", "line": 3.0, "column": 5.0, "field": "spec.x", "message": "is\nwrong", "fix": "Repair it."} {
		if got.Findings[0][key] != want {
			t.Errorf("%s: got %v, want %v", key, got.Findings[0][key], want)
		}
	}
	if _, ok := got.Findings[1]["object"]; ok {
		t.Error("a finding about a file has an object")
	}
	if !strings.Contains(b.String(), "<broken>") {
		t.Error("text is escaped for HTML")
	}
	b.Reset()
	if err := JSON(&b, nil, summary); err != nil || !strings.Contains(b.String(), `"findings": []`) {
		t.Errorf("got %s, %v", b.String(), err)
	}
}
