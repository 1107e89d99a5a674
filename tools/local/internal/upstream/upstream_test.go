package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"
)

// dep is a module of others as the proxy of the tests serves it. Like Flux's command, it embeds what it lacks.
var dep = module.Version{Path: "example.com/dep", Version: "v1.2.3"}

var depFiles = map[string]string{
	"go.mod":            "module example.com/dep\n\ngo 1.24\n",
	"dep.go":            "package dep\n\nvar Version = \"unknown\"\n",
	"cmd/tool/main.go":  "package main\n\nimport (\n\t\"embed\"\n\n\t\"example.com/dep\"\n)\n\n//go:embed manifests\nvar manifests embed.FS\n\nfunc main() {\n\tdata, _ := manifests.ReadFile(\"manifests/none.yaml\")\n\tprint(dep.Version, \" \", string(data))\n}\n",
	"stages/a/one.yaml": "one",
	"stages/a/two.yaml": "two",
	"stages/a/no.txt":   "",
}

// fixture makes a repository with the set tools/local/fix, and what the go command needs to build it without a network.
type fixture struct {
	cache Cache
	set   Set
	mu    sync.Mutex
	said  []string
	calls string // a file with a line for each call of the go command
}

func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, data := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	source, proxy, root := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, source, depFiles)
	archive := filepath.Join(proxy, "dep.zip")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(modzip.CreateFromDir(f, dep, source), f.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	at := "example.com/dep/@v/" + dep.Version
	write(t, proxy, map[string]string{at + ".info": `{"Version":"` + dep.Version + `"}`, at + ".mod": depFiles["go.mod"], at + ".zip": string(data)})
	sum, err := dirhash.HashZip(archive, dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, map[string]string{"go.mod": depFiles["go.mod"]})
	modSum, err := dirhash.DefaultHash([]string{"go.mod"}, func(name string) (io.ReadCloser, error) {
		return os.Open(filepath.Join(root, name))
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, map[string]string{
		"tools/local/fix/go.mod":  "module example.com/fix\n\ngo 1.24\n\nrequire example.com/dep v1.2.3\n",
		"tools/local/fix/go.sum":  fmt.Sprintf("%[1]s %[2]s %[3]s\n%[1]s %[2]s/go.mod %[4]s\n", dep.Path, dep.Version, sum, modSum),
		"tools/local/fix/main.go": "package main\n\nimport \"example.com/dep\"\n\nfunc main() { print(dep.Version) }\n",
	})

	genuine, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOPROXY", "file://"+proxy)
	t.Setenv("GONOPROXY", "none")
	t.Setenv("GOSUMDB", "off")
	t.Setenv("GOTOOLCHAIN", "local")
	t.Setenv("GOMODCACHE", t.TempDir())
	t.Cleanup(func() { // its files can't be written to, and so t.TempDir can't remove them
		if out, err := exec.Command(genuine, "clean", "-modcache").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	x := &fixture{calls: filepath.Join(t.TempDir(), "calls")}
	x.set = Set{
		Folder: "fix", Main: dep.Path, Title: "Fixture", Packages: []string{"."},
		stamp: func(version string) string { return "-X example.com/dep.Version=" + version },
	}
	x.cache = Cache{Root: root, Dir: filepath.Join(t.TempDir(), "cache"), Log: func(format string, args ...any) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.said = append(x.said, fmt.Sprintf(format, args...))
	}}
	x.goCommand(t, `exec "`+genuine+`" "$@"`)
	return x
}

// goCommand puts a script in the place of the go command.
func (x *fixture) goCommand(t *testing.T, script string) {
	t.Helper()
	x.cache.Go = filepath.Join(t.TempDir(), "go")
	script = "#!/bin/sh\necho \"$1\" >> '" + x.calls + "'\n" + script + "\n"
	if err := os.WriteFile(x.cache.Go, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
}

func (x *fixture) builds(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(x.calls)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(data), "build\n")
}

// left lists what is in the cache.
func (x *fixture) left(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(x.cache.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func output(t *testing.T, program string) string {
	t.Helper()
	out, err := exec.Command(program).CombinedOutput() // print writes to stderr
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestGet(t *testing.T) {
	x := newFixture(t)
	x.set.Links = []string{"also"}
	x.set.assets = map[string]asset{"stages/all": {dep.Path, "stages/a/*.yaml"}}
	t.Setenv("GOFLAGS", "-buildmode=c-archive") // somebody's own, for other code
	if x.cache.Built(t.Context(), x.set) {
		t.Error("built before it is built")
	}
	dir, err := x.cache.Get(t.Context(), x.set)
	if err != nil {
		t.Fatal(err)
	}
	if name := filepath.Base(dir); !strings.HasPrefix(name, "fix-v1.2.3-") || filepath.Dir(dir) != x.cache.Dir {
		t.Errorf("it is %s", dir)
	}
	for _, program := range []string{"fix", "also"} {
		// A link leads to the folder's own program, which is called like the folder.
		if got := output(t, filepath.Join(dir, program)); got != "v1.2.3" {
			t.Errorf("%s says %q; want its version", program, got)
		}
	}
	for name, want := range map[string]string{"one.yaml": "one", "two.yaml": "two"} {
		if got, err := os.ReadFile(filepath.Join(dir, "stages/all", name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	var has []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		has = append(has, e.Name())
	}
	if want := []string{"also", "fix", "stages"}; !slices.Equal(has, want) {
		t.Errorf("the set has %v; want %v", has, want)
	}
	if len(x.said) != 2 || !strings.Contains(x.said[0], "Fixture v1.2.3: building") || !strings.Contains(x.said[1], "Fixture v1.2.3: built in") {
		t.Errorf("it said %q", x.said)
	}

	// The second time it is there, also for another process and another checkout.
	if !x.cache.Built(t.Context(), x.set) {
		t.Error("not built after it is built")
	}
	other := x.cache
	other.Root = t.TempDir()
	if err := os.CopyFS(other.Root, os.DirFS(x.cache.Root)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Cache{&x.cache, &other} {
		if again, err := c.Get(t.Context(), x.set); err != nil || again != dir {
			t.Errorf("again: %s, %v; want %s", again, err, dir)
		}
	}
	if n := x.builds(t); n != 1 || len(x.said) != 2 {
		t.Errorf("built %d times, and said %q", n, x.said)
	}
	if left := x.left(t); len(left) != 1 {
		t.Errorf("the cache has %v", left)
	}
}

// Everything that goes into a set is in its key, and nothing else.
func TestKey(t *testing.T) {
	x := newFixture(t)
	src := filepath.Join(x.cache.Root, "tools/local/fix")
	add := func(name, more string) func() {
		return func() {
			old, err := os.ReadFile(filepath.Join(src, name))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			write(t, src, map[string]string{name: string(old) + more})
		}
	}
	seen := map[string]string{}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"at first", func() {}},
		{"go.mod", add("go.mod", "// changed\n")},
		{"go.sum", add("go.sum", "example.com/x v1.0.0 h1:x=\n")},
		{"a source", add("main.go", "// changed\n")},
		{"a new file", add("more/new.go", "")},
		{"a file's name", func() {
			if err := os.Rename(filepath.Join(src, "more/new.go"), filepath.Join(src, "more/other.go")); err != nil {
				t.Fatal(err)
			}
		}},
		{"packages", func() { x.set.Packages = []string{".", "example.com/dep/cmd/tool"} }},
		{"links", func() { x.set.Links = []string{"also"} }},
		{"stamp", func() { x.set.stamp = nil }},
		{"assets", func() { x.set.assets = map[string]asset{"a": {"m", "g"}} }},
		{"an asset's pattern", func() { x.set.assets = map[string]asset{"a": {"m", "h"}} }},
		{"patch", func() { x.set.patch = []patch{{module: "m", add: map[string]string{"f": "1"}}} }},
		{"a patch's content", func() { x.set.patch = []patch{{module: "m", add: map[string]string{"f": "2"}}} }},
		{"the Go version", func() { x.goCommand(t, "echo go version go9.9.9 linux/amd64") }},
	} {
		step.do()
		dir, err := x.cache.dir(t.Context(), x.set)
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := seen[dir]; ok {
			t.Errorf("%s has not changed the key since %q", step.name, before)
		}
		seen[dir] = step.name
		if again, err := x.cache.dir(t.Context(), x.set); err != nil || again != dir {
			t.Errorf("%s: %s and then %s, %v", step.name, dir, again, err)
		}
	}
}

func TestPatch(t *testing.T) {
	x := newFixture(t)
	x.set.Packages = []string{"example.com/dep/cmd/tool"}
	_, err := x.cache.Get(t.Context(), x.set)
	if err == nil || !strings.Contains(err.Error(), "manifests") {
		t.Fatalf("without the patch: %v; want what is missing", err)
	}
	x.set.patch = []patch{{module: dep.Path, add: map[string]string{"cmd/tool/manifests/none.yaml": "added"}}}
	dir, err := x.cache.Get(t.Context(), x.set)
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, filepath.Join(dir, "tool")); got != "v1.2.3 added" {
		t.Errorf("it says %q", got)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the set has %v, %v; want the tool alone", entries, err)
	}
	// The module of others is as it was.
	if got, err := os.ReadFile(filepath.Join(x.cache.Root, "tools/local/fix/go.mod")); err != nil || strings.Contains(string(got), "replace") {
		t.Errorf("go.mod is %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(os.Getenv("GOMODCACHE"), "example.com/dep@v1.2.3/cmd/tool/manifests")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the module cache was written: %v", err)
	}
}

func TestGetErrors(t *testing.T) {
	x := newFixture(t)
	main := filepath.Join("tools/local/fix", "main.go")
	for _, test := range []struct {
		name   string
		change func()
		want   []string
	}{
		{"does not compile", func() { write(t, x.cache.Root, map[string]string{main: "package main\n\nfunc main() { missing() }\n"}) }, []string{"building Fixture v1.2.3", "main.go:3", "undefined: missing"}},
		{"a pattern without files", func() { x.set.assets = map[string]asset{"stages": {dep.Path, "none/*"}} }, []string{"Fixture", "copying stages", "example.com/dep has no none/*"}},
		{"an unknown module", func() { x.set.assets = map[string]asset{"stages": {"example.com/none", "*"}} }, []string{"example.com/none"}},
		{"a sum that is not the committed one", func() {
			x.set.assets = nil
			write(t, x.cache.Root, map[string]string{
				"tools/local/fix/go.sum": "example.com/dep v1.2.3 h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\nexample.com/dep v1.2.3/go.mod h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
				main:                     "package main\n\nimport _ \"example.com/dep\"\n\nfunc main() {}\n",
			})
		}, []string{"building Fixture", "checksum mismatch"}},
		{"no main module", func() { x.set.Main = "example.com/other" }, []string{"fix/go.mod does not require example.com/other"}},
		{"no go.mod", func() { x.set.Folder = "none" }, []string{filepath.Join("none", "go.mod")}},
		{"no go command", func() { x.set.Folder, x.set.Main = "fix", dep.Path; x.cache.Go = filepath.Join(t.TempDir(), "go") }, []string{"Go version"}},
	} {
		test.change()
		dir, err := x.cache.Get(t.Context(), x.set)
		if err == nil {
			t.Errorf("%s: no error, and %s", test.name, dir)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q lacks %q", test.name, err, want)
			}
		}
		if left := x.left(t); len(left) > 0 {
			t.Errorf("%s: %v is left in the cache", test.name, left)
		}
		if x.cache.Built(t.Context(), x.set) {
			t.Errorf("%s: said to be built", test.name)
		}
	}
}

func TestGetIsCancelled(t *testing.T) {
	x := newFixture(t)
	started := filepath.Join(t.TempDir(), "started")
	genuine, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	x.goCommand(t, `if [ "$1" = build ]; then : > '`+started+`'; exec sleep 300; fi; exec "`+genuine+`" "$@"`)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	returned := make(chan struct{})
	defer close(returned)
	go func() {
		for {
			select {
			case <-returned:
				return
			default:
			}
			if _, err := os.Stat(started); err == nil {
				cancel(why)
				return
			}
		}
	}()
	if _, err := x.cache.Get(ctx, x.set); !errors.Is(err, why) {
		t.Errorf("%v; want %v", err, why)
	}
	if left := x.left(t); len(left) > 0 {
		t.Errorf("%v is left in the cache", left)
	}
}

// Two that start at the same time both get the set.
func TestGetTwice(t *testing.T) {
	x := newFixture(t)
	var both sync.WaitGroup
	dirs := make([]string, 2)
	for i := range dirs {
		both.Go(func() {
			dir, err := x.cache.Get(t.Context(), x.set)
			if err != nil {
				t.Error(err)
			}
			dirs[i] = dir
		})
	}
	both.Wait()
	if dirs[0] != dirs[1] || len(x.left(t)) != 1 {
		t.Errorf("got %v, and the cache has %v", dirs, x.left(t))
	}
}

// Each set of this repository names a folder, a version and a recipe that fit.
func TestSetsOfThisRepository(t *testing.T) {
	t.Parallel()
	const root = "../../../.."
	for _, s := range []Set{Kubernetes, Flux, Node, KWOK, Ko} {
		version, err := s.Version(root)
		if err != nil || !strings.HasPrefix(version, "v") {
			t.Errorf("%s: %q, %v", s.Title, version, err)
			continue
		}
		for _, p := range s.Packages {
			if rel, ok := strings.CutPrefix(p, "."); ok {
				if files, err := filepath.Glob(filepath.Join(root, "tools/local", s.Folder, rel, "*.go")); err != nil || len(files) == 0 {
					t.Errorf("%s: no Go files in %s, %v", s.Title, p, err)
				}
			}
		}
		for _, name := range slices.Collect(maps.Keys(s.assets)) {
			if filepath.IsAbs(name) || strings.Contains(name, "..") {
				t.Errorf("%s: the asset %s", s.Title, name)
			}
		}
	}
	if got := Kubernetes.stamp("v1.36.3"); !strings.Contains(got, "-X k8s.io/component-base/version.gitVersion=v1.36.3 ") || !strings.Contains(got, "version.gitMinor=36") {
		t.Errorf("Kubernetes is stamped %s", got)
	}
}
