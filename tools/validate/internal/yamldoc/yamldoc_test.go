package yamldoc

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	docs, err := Parse([]byte("# only a comment\n---\na: 1\n---\n---\nb: 2\nmetadata: {name: x}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) != 2 || docs[0].Line() != 3 || docs[1].Line() != 6 || docs[1].ID().Name != "x" {
		t.Errorf("got %+v", docs)
	}
}

func TestSyntaxErrors(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		line int
	}{
		"indentation": {"a:\n   b: 1\n  c: 2\n", 3},
		"tab":         {"a:\n\tb: 1\n", 2},
		"quote":       {"a: \"x\nb: 1\n", 3},
		"second":      {"a: 1\n---\nb: [1\nc: 2\n", 3},
		"cycle":       {"a: 1\nb: &b\n  c: *b\n", 3},
		"alias":       {"a: *nothing\n", 1},
	} {
		_, err := Parse([]byte(test.text))
		var syntax *SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if syntax.Line != test.line || strings.Contains(syntax.Message, "yaml:") || strings.Contains(syntax.Message, "line ") {
			t.Errorf("%s: line %d, %q; want line %d", name, syntax.Line, syntax.Message, test.line)
		}
	}
}

func TestTooManyDocuments(t *testing.T) {
	_, err := Parse([]byte(strings.Repeat("a: 1\n---\n", MaxDocuments+1)))
	if err == nil || !strings.Contains(err.Error(), "more than 10000 documents") {
		t.Errorf("got %v", err)
	}
}

func TestAliases(t *testing.T) {
	text := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 7; i++ {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
		_, err := Parse([]byte(text))
		if tooMany := i >= 5; tooMany != (err != nil) {
			t.Errorf("%d times ten: got %v", i, err)
		}
	}
}

func TestDuplicates(t *testing.T) {
	docs, err := Parse([]byte("base: &base {x: 1}\nlist:\n  - k: 1\n    k: 2\nx:\n  <<: *base\n  <<: *base\n\"list\": 3\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Duplicate{{Key: "list", Line: 8, Column: 1, FirstLine: 2}, {Key: "k", Line: 4, Column: 5, FirstLine: 3}}
	if got := Duplicates(docs[0]); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParsePath(t *testing.T) {
	for text, want := range map[string]Path{
		"":                       nil,
		"spec.a[0].b":            {{Key: "spec"}, {Key: "a"}, {Index: 0, IsIndex: true}, {Key: "b"}},
		"metadata.labels[a.b/c]": {{Key: "metadata"}, {Key: "labels"}, {Key: "a.b/c"}},
		`.env[name="A"].value`:   {{Key: "env"}, {Match: "name", Key: "A"}, {Key: "value"}},
		"open[1":                 {{Key: "open"}},
	} {
		if got := ParsePath(text); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
	if got, want := ParsePointer("/a~1b/0/c~0d"), (Path{{Key: "a/b"}, {Index: 0, IsIndex: true}, {Key: "c~d"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("pointer: got %+v, want %+v", got, want)
	}
}

func TestLookup(t *testing.T) {
	docs, err := Parse([]byte(`
spec: &spec
  list:
    - name: a
      port: 1
    - name: b
      port: 2
      extra: {deep: x}
copy: *spec
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path  string
		line  int
		found bool
	}{
		{"", 2, true},
		{"spec.list[1].port", 7, true},
		{"spec.list[1]", 6, true},
		{`spec.list[name="b"].port`, 7, true},
		{"spec.list.extra.deep", 8, true},   // a path without indexes tries each element
		{"spec.list.extra.other", 8, false}, // and keeps the element that fits best
		{"spec.list[1].missing", 6, false},
		{"spec.list[5]", 3, false},
		{"missing", 2, false},
		{"copy.list[0].port", 5, true},
	} {
		place, _, found := Lookup(docs[0].Root, ParsePath(test.path))
		if place.Line != test.line || found != test.found {
			t.Errorf("%q: line %d, found %v; want line %d, found %v", test.path, place.Line, found, test.line, test.found)
		}
	}
}
