package delivery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const imagesFile = "apps/images.yaml"

const images = `apiVersion: kustomize.config.k8s.io/v1alpha1 # by CI
kind: Component
images:
  - name: backend-api
    newName: registry.localhost/backend-api
    digest: sha256:1111111111111111111111111111111111111111111111111111111111111111 # api
  - name: worker
    digest: sha256:2222222222222222222222222222222222222222222222222222222222222222
`

func digest(of string) string { return "sha256:" + strings.Repeat(of, 64/len(of)) }

// quiet keeps the configuration of whoever runs the tests out of them.
func quiet(t *testing.T) {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", "")
}

// do runs git as a person does it.
func do(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=Ann", "-c", "user.email=ann@example.com", "-C", dir}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_DATE=2030-01-02T03:04:05+02:00", "GIT_COMMITTER_DATE=2031-01-02T03:04:05+02:00")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, dir, name, data string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// newCheckout makes a checkout with one commit.
func newCheckout(t *testing.T) Checkout {
	t.Helper()
	quiet(t)
	dir := t.TempDir()
	do(t, dir, "init", "--quiet", "--initial-branch=feature")
	write(t, dir, imagesFile, images)
	write(t, dir, "src/main.go", "package main\n")
	write(t, dir, "src/run.sh", "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(dir, "src/run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	commit(t, dir, "first")
	return Checkout{dir}
}

func commit(t *testing.T, dir, message string) string {
	t.Helper()
	do(t, dir, "add", "--all")
	do(t, dir, "commit", "--quiet", "--allow-empty", "--message", message)
	return do(t, dir, "rev-parse", "HEAD")
}

func newRepository(t *testing.T) Repository {
	t.Helper()
	r := Repository{Dir: filepath.Join(t.TempDir(), "git", "platform.git"), ImagesFile: imagesFile}
	for range 2 { // the second time it is there
		if err := r.Init(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func deliver(t *testing.T, r Repository, c Checkout, digests map[string]string) (head, published string) {
	t.Helper()
	head, err := c.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Import(t.Context(), c, head); err != nil {
		t.Fatal(err)
	}
	published, err = r.Publish(t.Context(), head, digests)
	if err != nil {
		t.Fatal(err)
	}
	return head, published
}

func TestHead(t *testing.T) {
	c := newCheckout(t)
	first := do(t, c.Dir, "rev-parse", "HEAD")
	head := func() string {
		t.Helper()
		got, err := c.Head(t.Context())
		if err != nil {
			t.Error(err)
		}
		return got
	}
	if got := head(); got != first {
		t.Errorf("on a branch: %q; want %q", got, first)
	}
	second := commit(t, c.Dir, "second")
	if got := head(); got != second {
		t.Errorf("after a commit: %q; want %q", got, second)
	}
	do(t, c.Dir, "checkout", "--quiet", "--detach", first)
	if got := head(); got != first {
		t.Errorf("detached: %q; want %q", got, first)
	}
	do(t, c.Dir, "checkout", "--quiet", "--orphan", "unborn")
	_, err := c.Head(t.Context())
	if !errors.Is(err, ErrUnborn) || !strings.Contains(err.Error(), "git commit") {
		t.Errorf("on an unborn branch: %v; want ErrUnborn, which says the way out", err)
	}
	if _, err := (Checkout{t.TempDir()}).Head(t.Context()); err == nil || errors.Is(err, ErrUnborn) || !strings.Contains(err.Error(), "not a git repository") {
		t.Errorf("without a repository: %v; want git's own words", err)
	}
}

// A hook or an editor may run us with variables that point at a repository.
func TestEnvironmentDoesNotRedirect(t *testing.T) {
	c, other := newCheckout(t), newCheckout(t)
	want := commit(t, c.Dir, "second")
	t.Setenv("GIT_DIR", filepath.Join(other.Dir, ".git"))
	t.Setenv("GIT_WORK_TREE", other.Dir)
	if got, err := c.Head(t.Context()); err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

func TestUncommitted(t *testing.T) {
	c := newCheckout(t)
	for _, step := range []struct {
		name string
		do   func()
		want int
	}{
		{"clean", func() {}, 0},
		{"changed", func() { write(t, c.Dir, "src/main.go", "package other\n") }, 1},
		{"staged", func() { do(t, c.Dir, "add", "--all") }, 1},
		{"deleted", func() {
			if err := os.Remove(filepath.Join(c.Dir, "src/run.sh")); err != nil {
				t.Fatal(err)
			}
		}, 2},
		{"new", func() { write(t, c.Dir, "new", "") }, 3},
		{"new in a new folder", func() { write(t, c.Dir, "folder/one", ""); write(t, c.Dir, "folder/two", "") }, 5},
		{"ignored", func() { write(t, c.Dir, ".git/info/exclude", "new\n") }, 4},
	} {
		step.do()
		if got, err := c.Uncommitted(t.Context()); err != nil || got != step.want {
			t.Errorf("%s: %d, %v; want %d", step.name, got, err, step.want)
		}
	}
	if _, err := (Checkout{t.TempDir()}).Uncommitted(t.Context()); err == nil {
		t.Error("no error without a repository")
	}
}

// snapshot returns every file below dir with its content and its times.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all[path] = fmt.Sprint(info.Mode(), info.ModTime())
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all[path] += string(data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestCheckoutIsOnlyRead(t *testing.T) {
	c := newCheckout(t)
	r := newRepository(t)
	// A file with another time and the same content: git likes to note that in its index.
	write(t, c.Dir, "src/main.go", "package main\n")
	write(t, c.Dir, "dirty", "not committed")
	before := snapshot(t, c.Dir)
	head, _ := deliver(t, r, c, map[string]string{"worker": digest("a")})
	if _, err := c.Uncommitted(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Export(t.Context(), head, t.TempDir(), "src"); err != nil {
		t.Fatal(err)
	}
	after := snapshot(t, c.Dir)
	for path := range maps.Keys(after) {
		if before[path] != after[path] {
			t.Errorf("%s was written", path)
		}
	}
	if len(before) != len(after) {
		t.Errorf("there were %d files, and now there are %d", len(before), len(after))
	}
	if files := do(t, r.Dir, "ls-tree", "-r", "--name-only", Branch); strings.Contains(files, "dirty") {
		t.Errorf("what is not committed was published: %s", files)
	}
}

func TestImport(t *testing.T) {
	shallow := func(t *testing.T, c Checkout) Checkout {
		dir := t.TempDir()
		do(t, ".", "clone", "--quiet", "--depth=1", "file://"+c.Dir, dir)
		return Checkout{dir}
	}
	for _, test := range []struct {
		name string
		from func(t *testing.T, c Checkout) Checkout
	}{
		{"branch", func(_ *testing.T, c Checkout) Checkout { return c }},
		{"detached", func(t *testing.T, c Checkout) Checkout {
			do(t, c.Dir, "checkout", "--quiet", "--detach", "HEAD~1")
			return c
		}},
		{"shallow clone", shallow},
		{"shallow clone with a commit", func(t *testing.T, c Checkout) Checkout {
			c = shallow(t, c)
			write(t, c.Dir, "more", "x")
			commit(t, c.Dir, "more")
			return c
		}},
		{"worktree", func(t *testing.T, c Checkout) Checkout {
			dir := filepath.Join(t.TempDir(), "tree")
			do(t, c.Dir, "worktree", "add", "--quiet", dir, "HEAD~1")
			return Checkout{dir}
		}},
		{"packed", func(t *testing.T, c Checkout) Checkout {
			do(t, c.Dir, "gc", "--quiet")
			return c
		}},
		{"a checkout that asks for the old protocol", func(t *testing.T, c Checkout) Checkout {
			write(t, os.Getenv("HOME"), ".gitconfig", "[protocol]\n\tversion = 0\n")
			return c
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCheckout(t)
			commit(t, c.Dir, "second")
			c = test.from(t, c)
			r := newRepository(t)
			head, published := deliver(t, r, c, map[string]string{"backend-api": digest("a"), "worker": digest("b")})
			// What Flux does.
			clone := filepath.Join(t.TempDir(), "clone")
			do(t, ".", "clone", "--quiet", "file://"+r.Dir, clone)
			if got := do(t, clone, "rev-parse", "HEAD"); got != published {
				t.Errorf("a clone has %s; want %s", got, published)
			}
			if got := do(t, clone, "rev-parse", "HEAD^"); got != head {
				t.Errorf("%s was published on %s; want %s", published, got, head)
			}
			if got := do(t, clone, "rev-parse", "--abbrev-ref", "HEAD"); got != Branch {
				t.Errorf("the branch is %s", got)
			}
		})
	}
}

// History may be rewritten, and a commit may be imported twice.
func TestImportRewrittenHistory(t *testing.T) {
	c, r := newCheckout(t), newRepository(t)
	commit(t, c.Dir, "second")
	deliver(t, r, c, nil)
	write(t, c.Dir, "src/main.go", "package rewritten\n")
	do(t, c.Dir, "commit", "--quiet", "--all", "--amend", "--message", "rewritten")
	for range 2 {
		head, published := deliver(t, r, c, nil)
		if head != published || do(t, r.Dir, "rev-parse", Branch) != head {
			t.Errorf("%s was published as %s", head, published)
		}
	}
	do(t, r.Dir, "gc", "--quiet", "--prune=now")
	do(t, r.Dir, "cat-file", "-e", do(t, c.Dir, "rev-parse", "HEAD"))
}

func TestImportErrors(t *testing.T) {
	c, r := newCheckout(t), newRepository(t)
	head := do(t, c.Dir, "rev-parse", "HEAD")
	if err := r.Import(t.Context(), Checkout{t.TempDir()}, head); err == nil {
		t.Error("no error for a folder that is no checkout")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if err := r.Import(ctx, c, head); !errors.Is(err, why) {
		t.Errorf("cancelled: %v; want %v", err, why)
	}
}

func TestPublish(t *testing.T) {
	c, r := newCheckout(t), newRepository(t)
	digests := map[string]string{"backend-api": digest("a"), "worker": digest("b")}
	t.Setenv("TMPDIR", t.TempDir())
	head, published := deliver(t, r, c, digests)

	want := strings.NewReplacer(digest("1"), digest("a"), digest("2"), digest("b")).Replace(images)
	if got := do(t, r.Dir, "cat-file", "blob", Branch+":"+imagesFile); got+"\n" != want {
		t.Errorf("the component is\n%s\nwant\n%s", got, want)
	}
	if got := do(t, r.Dir, "diff", "--name-status", head, published); got != "M\t"+imagesFile {
		t.Errorf("changed: %s; want the component alone", got)
	}
	if got, want := do(t, r.Dir, "show", "--no-patch", "--format=%an %cn %aI %cI", published), "tools/local tools/local 2031-01-02T03:04:05+02:00 2031-01-02T03:04:05+02:00"; got != want {
		t.Errorf("made by %s; want %s", got, want)
	}
	if got := do(t, r.Dir, "show", "--no-patch", "--format=%s", published); !strings.Contains(got, head[:12]) {
		t.Errorf("the message %q does not name %s", got, head)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}

	// The same input gives the same commit, here, later and elsewhere.
	for _, r := range []Repository{r, newRepository(t)} {
		if _, again := deliver(t, r, c, digests); again != published {
			t.Errorf("published again as %s; want %s", again, published)
		}
	}
	if _, other := deliver(t, r, c, map[string]string{"worker": digest("c")}); other == published {
		t.Error("other images, and the same commit")
	}
	// Without images it is the commit itself.
	if _, none := deliver(t, r, c, nil); none != head || do(t, r.Dir, "rev-parse", Branch) != head {
		t.Errorf("without images: %s; want %s", none, head)
	}
}

func TestPublishErrors(t *testing.T) {
	c, r := newCheckout(t), newRepository(t)
	head, published := deliver(t, r, c, nil)
	_, err := r.Publish(t.Context(), head, map[string]string{"worker": digest("a"), "unknown": digest("b")})
	if err == nil || !strings.Contains(err.Error(), "unknown") || !strings.Contains(err.Error(), imagesFile) || strings.Contains(err.Error(), "worker") {
		t.Errorf("an image without an entry: %v; want the image and the file", err)
	}
	r.ImagesFile = "none.yaml"
	if _, err := r.Publish(t.Context(), head, map[string]string{"worker": digest("a")}); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("no component: %v; want its path", err)
	}
	if got := do(t, r.Dir, "rev-parse", Branch); got != published {
		t.Errorf("a failure has moved the branch to %s", got)
	}
}

func TestTreeAndExport(t *testing.T) {
	c, r := newCheckout(t), newRepository(t)
	first, _ := deliver(t, r, c, nil)
	tree := func(commit string, paths ...string) string {
		t.Helper()
		got, err := r.Tree(t.Context(), commit, paths...)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	before := tree(first, "src", "go.mod")
	write(t, c.Dir, "README.md", "words")
	commit(t, c.Dir, "docs")
	docs, _ := deliver(t, r, c, nil)
	if got := tree(docs, "src", "go.mod"); got != before {
		t.Errorf("a commit beside src changes %q to %q", before, got)
	}
	write(t, c.Dir, "src/main.go", "package changed\n")
	commit(t, c.Dir, "code")
	code, _ := deliver(t, r, c, nil)
	if got := tree(code, "src", "go.mod"); got == before {
		t.Error("a commit in src changes nothing")
	}
	write(t, c.Dir, "go.mod", "module x\n")
	commit(t, c.Dir, "go.mod")
	module, _ := deliver(t, r, c, nil)
	if got := tree(module, "src", "go.mod"); got == tree(code, "src", "go.mod") {
		t.Error("a new file changes nothing")
	}

	// An older commit, while the checkout has moved on.
	dir := filepath.Join(t.TempDir(), "build")
	if err := r.Export(t.Context(), first, dir, "src"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "src/main.go")); err != nil || string(got) != "package main\n" {
		t.Errorf("exported %q, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "src/run.sh")); err != nil || info.Mode()&0o100 == 0 {
		t.Errorf("the script: %v, %v; want it executable", info, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "apps")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("more was exported than asked for: %v", err)
	}
	if err := r.Export(t.Context(), first, t.TempDir(), "none"); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a path that is not there: %v; want an error that names it", err)
	}
}
