package queue_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"aks-platform/src/internal/durable"
	"aks-platform/src/internal/queue"
	"aks-platform/src/internal/queue/queuetest"
)

func open(t *testing.T, path string) *queue.Dir {
	t.Helper()
	q, err := queue.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestDir(t *testing.T) {
	queuetest.Run(t, func(t *testing.T) func() queue.Queue {
		path := filepath.Join(t.TempDir(), "made", "on", "demand")
		return func() queue.Queue { return open(t, path) }
	}, 50*time.Millisecond)
}

// What a killed process leaves is removed, but not what another process may be writing.
func TestDirSweepsOrphans(t *testing.T) {
	path := t.TempDir()
	old, young := filepath.Join(path, durable.TempPrefix+"old"), filepath.Join(path, durable.TempPrefix+"young")
	for _, file := range []string{old, young} {
		if err := os.WriteFile(file, []byte("half a mess"), 0o660); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-durable.OrphanAge - time.Minute)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	q := open(t, path)
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("old orphan is still there: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("file that may be in use is gone: %v", err)
	}
	if n, err := q.Len(t.Context()); n != 0 || err != nil {
		t.Errorf("Len is %d, %v: temporary files count as messages", n, err)
	}
}

// A file that is no message, such as an editor's, does not stop the queue.
func TestDirIgnoresForeignFiles(t *testing.T) {
	path := t.TempDir()
	q := open(t, path)
	for _, name := range []string{"README", "0", "0000000000000000001", "0000000000000000001-x-y", "0000000000000000001-0-", "0000000000000000001--1-z", ".hidden"} {
		if err := os.WriteFile(filepath.Join(path, name), nil, 0o660); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Send(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	ds, err := q.Receive(t.Context(), 10, time.Hour)
	if err != nil || len(ds) != 1 || ds[0].Body != "m" {
		t.Errorf("got %d deliveries, %v", len(ds), err)
	}
}

// More messages than one listing keeps in memory are all delivered, the oldest first as far as one listing goes.
func TestDirLongBacklog(t *testing.T) {
	const n = 20_000
	path := t.TempDir()
	q := open(t, path)
	for i := range n { // not with Send, which syncs each
		if err := os.WriteFile(filepath.Join(path, fmt.Sprintf("%019d-0-ID%d", i, i)), fmt.Append(nil, i), 0o660); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]bool, n)
	for range n {
		ds, err := q.Receive(t.Context(), 1000, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if len(ds) == 0 {
			break
		}
		for _, d := range ds {
			var i int
			if _, err := fmt.Sscan(d.Body, &i); err != nil || got[i] {
				t.Fatalf("message %q came twice or is not one of ours: %v", d.Body, err)
			}
			got[i] = true
		}
	}
	for i, ok := range got {
		if !ok {
			t.Fatalf("message %d was not delivered", i)
		}
	}
}

// Processes with another user and the same group share the queue, whatever their umask.
func TestDirIsOpenToGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "queue")
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	q := open(t, path)
	if err := q.Send(t.Context(), "m"); err != nil {
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

func BenchmarkDirSend(b *testing.B) {
	q, err := queue.OpenDir(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := q.Send(b.Context(), "ABCDEFGHIJKLMNOPQRSTUVWXYZ"); err != nil {
				b.Error(err)
			}
		}
	})
}
