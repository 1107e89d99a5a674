package storage

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aks-platform/src/internal/queue"
	"aks-platform/src/internal/queue/queuetest"
	"aks-platform/src/internal/store"
	"aks-platform/src/internal/store/storetest"
)

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b%2f\u00e9") // a path is not a URL
	u := url.URL{Scheme: "file", Path: dir}
	for range 2 { // two processes
		q, s, err := Open(t.Context(), u.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Send(t.Context(), "m"); err != nil {
			t.Error(err)
		}
		if err := s.Create(t.Context(), "jobs/A", nil, strings.NewReader("x")); err != nil && !errors.Is(err, store.ErrExists) {
			t.Error(err)
		}
		if _, err := Probe(t.Context(), q, s); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"queue", "store/jobs/A"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, good := range []string{"file:///data", "file:///data/", "file://localhost/data", "file:///a/../b"} {
		if err := Check(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		"":                                      "scheme",
		"data":                                  "scheme",
		"/data":                                 "scheme",
		"file:data":                             "path",
		"file://":                               "path",
		"file:///":                              "path",
		"file:///..":                            "path",
		"file://data":                           "three slashes",
		"file:///data?x=y":                      "query",
		"file:///data#x":                        "fragment",
		"s3://bucket":                           "scheme",
		"http://127.0.0.1/dev":                  "scheme",
		"https://account.blob.core.windows.net": "no Azure storage",
		"file:///%zz":                           "not a URL",
	} {
		if err := Check(bad); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "file:///absolute/path") {
			t.Errorf("%q: %v, want an error with %q and what would do", bad, err, want)
		}
	}
}

// The probe fails if either of the two does.
func TestProbe(t *testing.T) {
	q, err := queue.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	down := errors.New("down")
	if err := q.Send(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	if n, err := Probe(t.Context(), q, s); n != 1 || err != nil {
		t.Errorf("got %d, %v, want 1", n, err)
	}
	if _, err := Probe(t.Context(), &queuetest.Faults{Queue: q, Before: func(string) error { return down }}, s); !errors.Is(err, down) {
		t.Errorf("queue is down: %v", err)
	}
	if _, err := Probe(t.Context(), q, &storetest.Faults{Store: s, Before: func(string, string) error { return down }}); !errors.Is(err, down) {
		t.Errorf("store is down: %v", err)
	}
}
