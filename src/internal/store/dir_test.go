package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"aks-platform/src/internal/durable"
	"aks-platform/src/internal/store"
	"aks-platform/src/internal/store/storetest"
)

func open(t *testing.T, path string) *store.Dir {
	t.Helper()
	s, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDir(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() store.Store {
		path := filepath.Join(t.TempDir(), "made", "on", "demand")
		return func() store.Store { return open(t, path) }
	})
}

// files returns the names of all files in a directory.
func files(t *testing.T, path string) (names []string) {
	t.Helper()
	if err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, d.Name())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDirSweepsOrphans(t *testing.T) {
	path := t.TempDir()
	if err := os.Mkdir(filepath.Join(path, "jobs"), 0o770); err != nil {
		t.Fatal(err)
	}
	old, young := filepath.Join(path, "jobs", durable.TempPrefix+"old"), filepath.Join(path, "jobs", durable.TempPrefix+"young")
	for _, file := range []string{old, young} {
		if err := os.WriteFile(file, []byte("half an obj"), 0o660); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-durable.OrphanAge - time.Minute)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	if got := files(t, path); len(got) != 1 || got[0] != filepath.Base(young) {
		t.Errorf("after the sweep there are %q, want only the young one", got)
	}
}

// No failure leaves a temporary file while the process lives.
func TestDirCleansUp(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	for range 2 { // the second one exists
		if err := s.Create(t.Context(), "jobs/A", nil, strings.NewReader("x")); err != nil && !errors.Is(err, store.ErrExists) {
			t.Fatal(err)
		}
	}
	if got := files(t, path); len(got) != 1 {
		t.Errorf("there are %q, want one object", got)
	}
}

// os.Root is the second line of defence: a link that somebody put into the directory does not lead out of it.
func TestDirStaysInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("{}\nsecret"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := t.TempDir()
	s := open(t, path)
	if err := os.Mkdir(filepath.Join(path, "jobs"), 0o770); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(path, "jobs", "LINK")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(path, "out")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"jobs/LINK", "out/secret"} {
		if o, err := s.Open(t.Context(), name); err == nil {
			t.Errorf("%s was opened: %+v", name, o.Info)
		}
	}
	if err := s.Create(t.Context(), "out/new", nil, strings.NewReader("x")); err == nil {
		t.Error("an object was created outside")
	}
}

// A file that is no object is an error and not an object.
func TestDirDamagedFile(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	if err := os.Mkdir(filepath.Join(path, "jobs"), 0o770); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"EMPTY": nil, "NOLINE": []byte(`{"a":"b"}`), "NOTJSON": []byte("hello\nworld"), "ENDLESS": bytes.Repeat([]byte("x"), 10<<20),
	} {
		if err := os.WriteFile(filepath.Join(path, "jobs", name), content, 0o660); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(t.Context(), "jobs/"+name); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v, want another error", name, err)
		}
	}
}

// Listings page through more objects than they keep in memory.
func TestDirLongListing(t *testing.T) {
	const n = 9_000
	path := t.TempDir()
	s := open(t, path)
	if err := os.Mkdir(filepath.Join(path, "jobs"), 0o770); err != nil {
		t.Fatal(err)
	}
	for i := range n { // not with Create, which syncs each
		if err := os.WriteFile(filepath.Join(path, "jobs", fmt.Sprintf("%06d", i)), []byte("{}\n"), 0o660); err != nil {
			t.Fatal(err)
		}
	}
	after, count := "", 0
	for {
		infos, err := s.List(t.Context(), "jobs/", after, store.MaxList)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range infos {
			if want := fmt.Sprintf("jobs/%06d", count); i.Name != want {
				t.Fatalf("object %d is %s, want %s", count, i.Name, want)
			}
			count++
		}
		if len(infos) < store.MaxList {
			break
		}
		after = infos[len(infos)-1].Name
	}
	if count != n {
		t.Errorf("listed %d objects, want %d", count, n)
	}
}

// An object that nobody deletes is listed, whatever is deleted around it, because fewer than asked for means the end.
func TestDirListsWhileDeleting(t *testing.T) {
	const n = 1500
	path := t.TempDir()
	s := open(t, path)
	if err := os.Mkdir(filepath.Join(path, "jobs"), 0o770); err != nil {
		t.Fatal(err)
	}
	file := func(i int) string { return filepath.Join(path, "jobs", fmt.Sprintf("%06d", i)) }
	for i := range n {
		if err := os.WriteFile(file(i), []byte("{}\n"), 0o660); err != nil {
			t.Fatal(err)
		}
	}
	var deleting sync.WaitGroup
	deleting.Go(func() {
		for i := range n {
			if i%4 != 0 {
				if err := os.Remove(file(i)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	seen := map[string]bool{}
	for after := ""; ; {
		infos, err := s.List(t.Context(), "jobs/", after, 50)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range infos {
			seen[i.Name] = true
		}
		if len(infos) < 50 {
			break
		}
		after = infos[len(infos)-1].Name
	}
	deleting.Wait()
	for i := 0; i < n; i += 4 {
		if name := fmt.Sprintf("jobs/%06d", i); !seen[name] {
			t.Fatalf("%s was not listed", name)
		}
	}
}

func TestDirIsOpenToGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	s := open(t, path)
	if err := s.Create(t.Context(), "jobs/A", nil, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	want := map[bool]fs.FileMode{true: 0o770, false: 0o660}
	if err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm() != want[d.IsDir()] {
			t.Errorf("%s has mode %v, want %v", name, info.Mode().Perm(), want[d.IsDir()])
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// A directory that cannot be written is an error at the start, not at the first request.
func TestOpenDirNotADirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.OpenDir(file); err == nil {
		t.Error("a file was opened as a store")
	}
	if _, err := store.OpenDir(filepath.Join(file, "below")); err == nil {
		t.Error("a directory below a file was opened as a store")
	}
}
