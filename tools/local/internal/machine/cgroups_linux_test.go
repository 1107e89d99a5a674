package machine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree makes files (with content) and folders (that end with a slash).
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, data := range files {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir != path {
			if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestCgroupHierarchies(t *testing.T) {
	t.Parallel()
	v1 := map[string]string{"cpu,cpuacct/": "", "cpuset/cpuset.cpus": "0-3\n", "cpuset/cpuset.mems": "0\n", "systemd/": "", "unified/": ""}
	for _, test := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"version 2", map[string]string{"cgroup.controllers": "cpu memory\n", "user.slice/": ""}, []string{"test"}},
		{"version 1", v1, []string{"cpu,cpuacct/test", "cpuset/test", "systemd/test", "unified/test"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := tree(t, test.files)
			if test.name == "version 1" {
				if err := os.Symlink("cpu,cpuacct", filepath.Join(root, "cpu")); err != nil {
					t.Fatal(err)
				}
			}
			c := Cgroups{Root: root, Name: "test"}
			if err := c.Remove(); err != nil {
				t.Errorf("nothing to remove: %v", err)
			}
			for range 2 { // the second time they are there
				if err := c.Make(); err != nil {
					t.Fatal(err)
				}
			}
			dirs, err := c.dirs()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range dirs {
				rel, err := filepath.Rel(root, d)
				if err != nil || !exists(d) {
					t.Errorf("%s: not made, %v", d, err)
				}
				got = append(got, rel)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("made %v; want %v", got, test.want)
			}
			if test.name == "version 1" {
				for file, want := range map[string]string{"cpuset.cpus": "0-3\n", "cpuset.mems": "0\n"} {
					path := filepath.Join(root, "cpuset", "test", file)
					if got := content(t, path); got != want {
						t.Errorf("%s is %q; want %q", file, got, want)
					}
					// In a genuine hierarchy files go with their folder.
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, d := range dirs {
				if err := os.MkdirAll(filepath.Join(d, "kubepods", "pod1", "container"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Remove(); err != nil {
				t.Fatal(err)
			}
			for _, d := range dirs {
				if exists(d) {
					t.Errorf("%s is left", d)
				}
				if !exists(filepath.Dir(d)) {
					t.Errorf("%s is gone", filepath.Dir(d))
				}
			}
		})
	}
}

// A new cgroup of version 2 hands every controller that it has on to its children.
func TestCgroupControllers(t *testing.T) {
	t.Parallel()
	root := tree(t, map[string]string{"cgroup.controllers": "cpu memory\n", "test/cgroup.controllers": "cpuset cpu\n"})
	if err := (Cgroups{Root: root, Name: "test"}).Make(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(root, "test", "cgroup.subtree_control")); got != "+cpuset +cpu" {
		t.Errorf("handed on: %q", got)
	}
}

func TestCgroupErrors(t *testing.T) {
	t.Parallel()
	if err := (Cgroups{Root: t.TempDir(), Name: "test"}).Make(); err == nil || !strings.Contains(err.Error(), "no cgroup hierarchy") {
		t.Errorf("no hierarchies: %v", err)
	}
	if err := (Cgroups{Root: filepath.Join(t.TempDir(), "none"), Name: "test"}).Make(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no root: %v", err)
	}
	root := tree(t, map[string]string{"cpu/": ""})
	if err := (Cgroups{Root: root, Name: "no/such"}).Make(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that can't be made: %v", err)
	}
	// As long as something is in it, it stays, and Remove says so.
	root = tree(t, map[string]string{"cpu/test/busy/file": ""})
	if err := (Cgroups{Root: root, Name: "test"}).Remove(); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("a cgroup in use: %v", err)
	}
}
