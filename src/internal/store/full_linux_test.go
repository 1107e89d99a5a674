package store_test

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"aks-platform/src/internal/queue"
	"aks-platform/src/internal/store"
)

// A full disk refuses what it cannot keep, keeps what it took, and works again when there is room.
func TestDirFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=512k"); errors.Is(err, syscall.EPERM) {
		t.Skip("needs the right to mount a tmpfs: run as root")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, filepath.Join(disk, "store"))
	q, err := queue.OpenDir(filepath.Join(disk, "queue"))
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Repeat("x", 100_000)
	stored := 0
	for ; err == nil; stored++ {
		if stored > 100 {
			t.Fatal("the disk does not fill up")
		}
		err = s.Create(t.Context(), fmt.Sprintf("jobs/%d", stored), nil, strings.NewReader(body))
	}
	stored--
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("full disk: %v, want ENOSPC", err)
	}
	for err = nil; err == nil; { // what is left takes single pages
		err = q.Send(t.Context(), "m")
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("full disk: %v, want ENOSPC", err)
	}
	infos, err := s.List(t.Context(), "jobs/", "", 100)
	if err != nil || len(infos) != stored {
		t.Fatalf("%d objects are there, %v; want the %d that were stored", len(infos), err, stored)
	}
	for _, i := range infos {
		o, err := s.Open(t.Context(), i.Name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(o)
		if err := errors.Join(err, o.Close()); err != nil || string(got) != body {
			t.Errorf("%s has %d bytes, %v", i.Name, len(got), err)
		}
	}
	if err := s.Delete(t.Context(), infos[0].Name); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), "jobs/again", nil, strings.NewReader("x")); err != nil {
		t.Errorf("there is room again, but: %v", err)
	}
	if err := q.Send(t.Context(), "m"); err != nil {
		t.Errorf("there is room again, but: %v", err)
	}
	var names []string
	for _, name := range files(t, disk) {
		if strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		t.Errorf("failed writes left %q", names)
	}
}

var _ store.Store = (*store.Dir)(nil)
