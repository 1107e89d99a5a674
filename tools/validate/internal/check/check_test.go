package check

import (
	"reflect"
	"testing"
)

func TestMerge(t *testing.T) {
	a, b := &Check{ID: "A-001"}, &Check{ID: "B-001"}
	at := func(file string, line int) Position { return Position{File: file, Line: line} }
	got := Merge([]Finding{
		{Check: b, Pos: at("x", 2), Message: "m", Clusters: []string{"prod"}},
		{Check: a, Pos: at("x", 10), Message: "m"},
		{Check: b, Pos: at("x", 2), Message: "m", Clusters: []string{"dev", "prod"}},
		{Check: b, Pos: at("x", 2), Message: "other", Clusters: []string{"dev"}},
		{Check: a, Pos: at("a", 99), Message: "m"},
		{Check: a, Pos: at("x", 2), Message: "m"},
	})
	want := []Finding{
		{Check: a, Pos: at("a", 99), Message: "m"},
		{Check: a, Pos: at("x", 2), Message: "m"},
		{Check: b, Pos: at("x", 2), Message: "m", Clusters: []string{"dev", "prod"}},
		{Check: b, Pos: at("x", 2), Message: "other", Clusters: []string{"dev"}},
		{Check: a, Pos: at("x", 10), Message: "m"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

func TestSeverity(t *testing.T) {
	for _, s := range []Severity{Note, Warning, Error} {
		if got, err := ParseSeverity(s.String()); got != s || err != nil {
			t.Errorf("%v: got %v, %v", s, got, err)
		}
	}
	if _, err := ParseSeverity("fatal"); err == nil {
		t.Error("an unknown name is accepted")
	}
}

func TestStrings(t *testing.T) {
	for got, want := range map[string]string{
		Object{Kind: "Namespace", Name: "a"}.String():           "Namespace a",
		Object{Kind: "Pod", Namespace: "n", Name: "a"}.String(): "Pod n/a",
		Object{}.String():                     "",
		Position{File: "f", Line: 3}.String(): "f:3",
		Position{File: "f"}.String():          "f",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f := Finding{Check: &Check{Fix: "general"}}
	if f.Advice() != "general" {
		t.Errorf("got %q", f.Advice())
	}
	f.Fix = "special"
	if f.Advice() != "special" {
		t.Errorf("got %q", f.Advice())
	}
}
