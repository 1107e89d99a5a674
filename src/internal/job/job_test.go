package job

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"aks-platform/src/internal/store"
)

func TestValidID(t *testing.T) {
	for range 100 {
		if id := NewID(); !ValidID(id) {
			t.Errorf("new id %q is not valid", id)
		}
	}
	good := strings.Repeat("A", idLen)
	for _, id := range []string{
		"", good[1:], good + "A", strings.ToLower(good), good[1:] + "1", good[1:] + "/", good[1:] + ".", good[1:] + "-", good[1:] + "%",
		"../leak" + good[7:], "..%2Fleak" + good[9:], good[2:] + "\u00e9", good[1:] + "\x00", good[1:] + "\n",
	} {
		if ValidID(id) {
			t.Errorf("%q is valid", id)
		}
	}
}

func TestKeyedID(t *testing.T) {
	seen := map[string]string{}
	for _, c := range [][2]string{{"", "k"}, {"a", "k"}, {"a", "bk"}, {"ab", "k"}, {"a", ""}, {"", "a"}, {"1:a", "k"}, {"a1:", "k"}} {
		id := KeyedID(c[0], c[1])
		if !ValidID(id) || id != KeyedID(c[0], c[1]) {
			t.Errorf("%q: id %q is not valid, or not the same twice", c, id)
		}
		if other, ok := seen[id]; ok {
			t.Errorf("%q has the id of %s", c, other)
		}
		seen[id] = fmt.Sprint(c)
	}
}

func TestSpecRoundTrip(t *testing.T) {
	for _, options := range []map[string]string{nil, {"delimiter": "tab", "b": "2"}} {
		want := NewSpec(NewID(), "csv-profile", options)
		got, err := ParseSpec(want.ID, want.Meta())
		if err != nil || got.ID != want.ID || got.Run != want.Run || got.Kind != want.Kind || !got.Created.Equal(want.Created) || !maps.Equal(got.Options, want.Options) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
		if other := NewSpec(want.ID, "csv-profile", options); other.ResultName() == want.ResultName() {
			t.Error("two runs of one id share the name of their outcome")
		}
	}
	good := NewSpec(NewID(), "digest", nil).Meta()
	for key := range good {
		meta := maps.Clone(good)
		delete(meta, key)
		if _, err := ParseSpec("X", meta); err == nil {
			t.Errorf("metadata without %s are a job", key)
		}
	}
}

func TestOutcomeRoundTrip(t *testing.T) {
	for _, state := range []State{Succeeded, Failed} {
		want := NewOutcome(state)
		if got, err := ParseOutcome(want.Meta()); err != nil || got.State != state || !got.Finished.Equal(want.Finished) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
	}
	for _, meta := range []map[string]string{nil, {"state": "succeeded"}, {"state": "pending", "finished": time.Now().Format(time.RFC3339)}} {
		if o, err := ParseOutcome(meta); err == nil {
			t.Errorf("%v is the outcome %+v", meta, o)
		}
	}
}

// List finds each job once, with its own outcome, however the pages fall, and however many outcomes have lost their jobs.
func TestList(t *testing.T) {
	s, err := store.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, meta map[string]string) {
		t.Helper()
		if err := s.Create(context.Background(), name, meta, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]State{}
	for i := range 23 {
		spec := NewSpec(NewID(), "digest", nil)
		state := []State{Pending, Succeeded, Failed}[i%3]
		want[spec.ID] = state
		put(InputName(spec.ID), spec.Meta())
		if state != Pending {
			put(spec.ResultName(), NewOutcome(state).Meta())
		}
		// An outcome of an earlier run of the same id, and one of a job that is gone.
		put(NewSpec(spec.ID, "digest", nil).ResultName(), NewOutcome(Failed).Meta())
		put(NewSpec(NewID(), "digest", nil).ResultName(), NewOutcome(Failed).Meta())
	}
	put(InputName(NewID()), map[string]string{"not": "a job"})
	for _, max := range []int{1, 2, 7, 23, 24, 25, 100} {
		got := map[string]State{}
		var ids []string
		bad := 0
		for after := ""; ; {
			entries, next, err := List(t.Context(), s, after, max)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if ids = append(ids, e.ID); e.Err != nil {
					bad++
					continue
				}
				got[e.ID] = Pending
				if e.Outcome != nil {
					got[e.ID] = e.Outcome.State
				}
			}
			if next == "" {
				break
			}
			after = next
		}
		if !maps.Equal(got, want) || bad != 1 || len(ids) != 24 || !slices.IsSorted(ids) {
			t.Errorf("in pages of %d: %d ids, %d not jobs, states %v, want %v", max, len(ids), bad, got, want)
		}
	}
}
