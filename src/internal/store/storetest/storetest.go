// Package storetest tests implementations of store.Store, and breaks them on purpose.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"aks-platform/src/internal/store"
)

// Run tests that an implementation does what store.Store promises. open returns a function that opens one and the same
// new, empty store each time it is called, as several processes would.
func Run(t *testing.T, open func(t *testing.T) func() store.Store) {
	ctx := t.Context()

	t.Run("an object comes back as it was created", func(t *testing.T) {
		reopen := open(t)
		large := make([]byte, 5<<20+1)
		random := rand.NewChaCha8([32]byte{1})
		random.Read(large)
		for name, c := range map[string]struct {
			meta map[string]string
			body []byte
		}{
			"jobs/EMPTY":     {nil, nil},
			"jobs/small":     {map[string]string{"kind": "digest", "option_x": `a "quoted" <value> = 1`}, []byte("line\nfeed\x00\xff")},
			"results/A-b_.c": {map[string]string{"a": strings.Repeat("x", store.MaxMeta-1)}, []byte("{}")},
			"jobs/large":     {map[string]string{"kind": "large"}, large},
		} {
			// A reader that returns little at a time, and its last bytes together with the end.
			if err := reopen().Create(ctx, name, c.meta, iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(c.body)))); err != nil {
				t.Fatalf("Create %s: %v", name, err)
			}
			o, err := reopen().Open(ctx, name)
			if err != nil {
				t.Fatalf("Open %s: %v", name, err)
			}
			if o.Name != name || o.Size != int64(len(c.body)) || o.Created.IsZero() || !maps.Equal(o.Meta, c.meta) {
				t.Errorf("%s is described as %+v, want %d bytes and %v", name, o.Info, len(c.body), c.meta)
			}
			body, err := io.ReadAll(o)
			if err := errors.Join(err, o.Close()); err != nil || !bytes.Equal(body, c.body) {
				t.Errorf("%s has %d bytes, %v; not what was stored", name, len(body), err)
			}
		}
	})

	t.Run("what is not there", func(t *testing.T) {
		s := open(t)()
		if _, err := s.Open(ctx, "jobs/A"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Open: %v, want ErrNotFound", err)
		}
		if err := s.Delete(ctx, "jobs/A"); err != nil {
			t.Errorf("Delete: %v", err)
		}
		if infos, err := s.List(ctx, "jobs/", "", 10); len(infos) != 0 || err != nil {
			t.Errorf("List: %v, %v", infos, err)
		}
	})

	t.Run("an object is never replaced", func(t *testing.T) {
		s := open(t)()
		create(t, s, "jobs/A", "first")
		if err := s.Create(ctx, "jobs/A", map[string]string{"x": "y"}, strings.NewReader("second")); !errors.Is(err, store.ErrExists) {
			t.Errorf("second Create: %v, want ErrExists", err)
		}
		wantBody(t, s, "jobs/A", "first")
	})

	t.Run("one of many creators wins", func(t *testing.T) {
		reopen := open(t)
		var wins atomic.Int32
		var winner atomic.Pointer[string]
		var all sync.WaitGroup
		for i := range 8 {
			s := reopen()
			all.Go(func() {
				body := strings.Repeat(fmt.Sprint(i), 100_000)
				switch err := s.Create(ctx, "results/R", nil, strings.NewReader(body)); {
				case err == nil:
					wins.Add(1)
					winner.Store(&body)
				case !errors.Is(err, store.ErrExists):
					t.Error(err)
				}
			})
		}
		all.Wait()
		if wins.Load() != 1 {
			t.Fatalf("%d creators were told that they won", wins.Load())
		}
		wantBody(t, reopen(), "results/R", *winner.Load())
	})

	t.Run("a body that fails leaves nothing", func(t *testing.T) {
		s := open(t)()
		broken := errors.New("the line is cut")
		for _, size := range []int{0, 10, 3 << 20} {
			body := io.MultiReader(bytes.NewReader(make([]byte, size)), iotest.ErrReader(broken))
			if err := s.Create(ctx, "jobs/A", nil, body); !errors.Is(err, broken) {
				t.Errorf("Create: %v, want the error of the body", err)
			}
			if _, err := s.Open(ctx, "jobs/A"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("after %d bytes and an error there is an object: %v", size, err)
			}
		}
		if infos, err := s.List(ctx, "jobs/", "", 10); len(infos) != 0 || err != nil {
			t.Errorf("List shows what was not stored: %v, %v", infos, err)
		}
		create(t, s, "jobs/A", "and now it works")
		wantBody(t, s, "jobs/A", "and now it works")
	})

	t.Run("names", func(t *testing.T) {
		s := open(t)()
		for _, name := range []string{
			"", "/", "jobs", "jobs/", "/A", "jobs//A", "jobs/A/B", "../A", "jobs/..", "jobs/.", "jobs/.hidden", "./A", "jobs/../A",
			"jobs/../../etc/passwd", "jobs/a b", "jobs/a\x00b", `jobs\A`, "jobs/A\n", "jobs/\u00e9", "jobs/%2e%2e", "jobs/" + strings.Repeat("x", store.MaxName),
		} {
			if err := s.Create(ctx, name, nil, strings.NewReader("x")); !errors.Is(err, store.ErrName) {
				t.Errorf("Create(%.40q): %v, want ErrName", name, err)
			}
			if _, err := s.Open(ctx, name); !errors.Is(err, store.ErrName) {
				t.Errorf("Open(%.40q): %v, want ErrName", name, err)
			}
			if err := s.Delete(ctx, name); !errors.Is(err, store.ErrName) {
				t.Errorf("Delete(%.40q): %v, want ErrName", name, err)
			}
		}
		for _, prefix := range []string{"", "jobs", "..", "../", "/", "jobs/../", "jobs/a/"} {
			if _, err := s.List(ctx, prefix, "", 10); !errors.Is(err, store.ErrName) {
				t.Errorf("List(%q): %v, want ErrName", prefix, err)
			}
		}
	})

	t.Run("metadata", func(t *testing.T) {
		s := open(t)()
		for _, meta := range []map[string]string{
			{"": "x"}, {"Upper": "x"}, {"a-b": "x"}, {"1a": "x"}, {"a": "line\nfeed"}, {"a": "caf\u00e9"}, {"a": " x"}, {"a": "x "},
			{"a": strings.Repeat("x", store.MaxMeta)},
		} {
			if err := s.Create(ctx, "jobs/A", meta, strings.NewReader("x")); !errors.Is(err, store.ErrMeta) {
				t.Errorf("Create with %.40q: %v, want ErrMeta", meta, err)
			}
		}
	})

	t.Run("listing", func(t *testing.T) {
		reopen := open(t)
		s := reopen()
		var want []string
		for i := range 25 {
			name := fmt.Sprintf("jobs/%c%d", 'A'+i%3, i)
			create(t, s, name, name)
			want = append(want, name)
		}
		create(t, s, "jobs2/A", "another collection")
		create(t, s, "results/A", "another collection")
		slices.Sort(want)
		only := func(prefix, after string) (names []string) {
			for _, n := range want {
				if strings.HasPrefix(n, prefix) && n > after {
					names = append(names, n)
				}
			}
			return names
		}
		for _, c := range []struct {
			prefix, after string
			max           int
		}{
			{"jobs/", "", 25}, {"jobs/", "", 26}, {"jobs/", "", 1}, {"jobs/", "", store.MaxList}, {"jobs/B", "", 100}, {"jobs/", "jobs/B", 4},
			{"jobs/", want[10], 100}, {"jobs/", want[24], 100}, {"jobs/B", "jobs/A9", 3}, {"jobs/Z", "", 10}, {"jobs/", "zzz", 10},
		} {
			infos, err := reopen().List(ctx, c.prefix, c.after, c.max)
			if err != nil {
				t.Fatal(err)
			}
			expect := only(c.prefix, c.after)
			expect = expect[:min(c.max, len(expect))]
			var got []string
			for _, i := range infos {
				got = append(got, i.Name)
				if i.Meta["name"] != strings.ReplaceAll(i.Name, "/", "_") || i.Size != int64(len(i.Name)) || i.Created.IsZero() {
					t.Errorf("%s is listed as %+v", i.Name, i)
				}
			}
			if !slices.Equal(got, expect) {
				t.Errorf("List(%q, %q, %d) = %q, want %q", c.prefix, c.after, c.max, got, expect)
			}
		}
	})

	t.Run("deleting", func(t *testing.T) {
		reopen := open(t)
		s := reopen()
		create(t, s, "jobs/A", strings.Repeat("x", 1<<20))
		create(t, s, "jobs/B", "b")
		o, err := s.Open(ctx, "jobs/A")
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		if err := reopen().Delete(ctx, "jobs/A"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(ctx, "jobs/A"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("deleted object: %v, want ErrNotFound", err)
		}
		if n, err := io.Copy(io.Discard, o); err == nil && n != 1<<20 {
			t.Errorf("reading a deleted object ended after %d bytes without an error", n)
		}
		wantBody(t, s, "jobs/B", "b")
		create(t, s, "jobs/A", "anew")
		wantBody(t, s, "jobs/A", "anew")
	})

	t.Run("a context that has ended", func(t *testing.T) {
		s := open(t)()
		create(t, s, "jobs/A", "a")
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.Create(ended, "jobs/B", nil, strings.NewReader("b")); !errors.Is(err, context.Canceled) {
			t.Errorf("Create: %v, want context.Canceled", err)
		}
		if err := s.Delete(ended, "jobs/A"); !errors.Is(err, context.Canceled) {
			t.Errorf("Delete: %v, want context.Canceled", err)
		}
		wantBody(t, s, "jobs/A", "a")
	})
}

func create(t *testing.T, s store.Store, name, body string) {
	t.Helper()
	if err := s.Create(t.Context(), name, map[string]string{"name": strings.ReplaceAll(name, "/", "_")}, strings.NewReader(body)); err != nil {
		t.Fatalf("Create %s: %v", name, err)
	}
}

func wantBody(t *testing.T, s store.Store, name, want string) {
	t.Helper()
	o, err := s.Open(t.Context(), name)
	if err != nil {
		t.Errorf("Open %s: %v", name, err)
		return
	}
	body, err := io.ReadAll(o)
	if err := errors.Join(err, o.Close()); err != nil || string(body) != want {
		t.Errorf("%s is %.40q, %v; want %.40q", name, body, err, want)
	}
}

// Faults is a store that can be broken. Its functions get the name of an operation, such as "Create", and the name or
// prefix that it is about; they may be nil.
type Faults struct {
	store.Store
	// Before makes an operation fail, with no effect.
	Before func(op, name string) error
	// After makes an operation fail after it had its effect, as when the answer of a server is lost.
	After func(op, name string) error
}

func (f *Faults) around(op, name string, do func() error) error {
	if f.Before != nil {
		if err := f.Before(op, name); err != nil {
			return err
		}
	}
	err := do()
	if err == nil && f.After != nil {
		err = f.After(op, name)
	}
	return err
}

// Create implements store.Store.
func (f *Faults) Create(ctx context.Context, name string, meta map[string]string, body io.Reader) error {
	return f.around("Create", name, func() error { return f.Store.Create(ctx, name, meta, body) })
}

// Open implements store.Store.
func (f *Faults) Open(ctx context.Context, name string) (o *store.Object, err error) {
	err = f.around("Open", name, func() (err error) {
		o, err = f.Store.Open(ctx, name)
		return err
	})
	return o, err
}

// List implements store.Store.
func (f *Faults) List(ctx context.Context, prefix, after string, max int) (infos []store.Info, err error) {
	err = f.around("List", prefix, func() (err error) {
		infos, err = f.Store.List(ctx, prefix, after, max)
		return err
	})
	return infos, err
}

// Delete implements store.Store.
func (f *Faults) Delete(ctx context.Context, name string) error {
	return f.around("Delete", name, func() error { return f.Store.Delete(ctx, name) })
}
