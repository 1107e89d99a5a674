package artifact

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fluxcd/pkg/sourceignore"
)

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func paths(t *Tree) []string {
	var out []string
	for _, f := range t.Files() {
		out = append(out, f.Path)
	}
	return out
}

// TestSourceIgnore compares the artifact with the one that source-controller would pack: with the filter of its
// Storage.Archive, which walks a clone and asks for every path.
func TestSourceIgnore(t *testing.T) {
	files := map[string]string{
		"apps/a.yaml": "", "apps/b/c.yaml": "", "apps/b/picture.png": "", "clusters/dev/x.yaml": "",
		"docs/readme.md": "", "README.md": "", ".github/workflows/ci.yaml": "", "src/main.go": "",
	}
	for name, ignore := range map[string]map[string]string{
		"none":            {},
		"empty":           {".sourceignore": ""},
		"allow list":      {".sourceignore": "# only these\n/*\n!/apps/\n!/clusters/\n"},
		"deny list":       {".sourceignore": "*.md\n/src\n"},
		"nested":          {"apps/.sourceignore": "b/\n"},
		"last match wins": {".sourceignore": "*.yaml\n!c.yaml\n"},
		"nested reverses": {".sourceignore": "*.yaml\n", "apps/.sourceignore": "!a.yaml\n"},
	} {
		t.Run(name, func(t *testing.T) {
			all := make(map[string]string)
			for _, m := range []map[string]string{files, ignore} {
				for k, v := range m {
					all[k] = v
				}
			}
			root := write(t, all)
			tree, err := Load(root, DefaultLimits)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := paths(tree), packed(t, root); !slices.Equal(got, want) {
				t.Errorf("artifact has\n%s\nsource-controller packs\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// packed lists what source-controller would pack.
func packed(t *testing.T, root string) []string {
	t.Helper()
	domain := strings.Split(root, string(filepath.Separator))
	patterns, err := sourceignore.LoadIgnorePatterns(root, domain)
	if err != nil {
		t.Fatal(err)
	}
	matcher := sourceignore.NewDefaultMatcher(patterns, domain)
	if len(patterns) > 0 {
		matcher = sourceignore.NewMatcher(append(sourceignore.VCSPatterns(domain), patterns...))
	}
	var out []string
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || matcher.Match(strings.Split(p, string(filepath.Separator)), false) {
			return err
		}
		rel, err := filepath.Rel(root, p)
		out = append(out, filepath.ToSlash(rel))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func TestGitIgnoredFilesAreNotInGit(t *testing.T) {
	root := write(t, map[string]string{
		".gitignore": "/.local/\n*.swp\n", ".git/config": "", ".local/huge/file.yaml": "", "apps/a.yaml": "", "apps/a.yaml.swp": "",
		"apps/.gitignore": "secret.yaml\n", "apps/secret.yaml": "", "other/secret.yaml": "",
	})
	tree, err := Load(root, DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := paths(tree), []string{"apps/a.yaml", "other/secret.yaml"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if tree.IsFolder(".local") {
		t.Error(".local is in the artifact")
	}
}

func TestLeftOut(t *testing.T) {
	root := write(t, map[string]string{".sourceignore": "/docs\n", "docs/deep/a.yaml": "", "apps/a.yaml": ""})
	outside := write(t, map[string]string{"secret": "x"})
	links := map[string]string{"apps/inside.yaml": "a.yaml", "apps/outside": filepath.Join(outside, "secret"), "apps/nowhere": "gone"}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(root, filepath.FromSlash(name))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "empty", "too"), 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := Load(root, DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	if tree.IsFolder("empty") || !tree.IsFolder("apps") {
		t.Error("the artifact has the wrong folders")
	}
	for p, want := range map[string]Reason{"empty": Empty, "empty/too": Empty, "docs/deep/a.yaml": Ignored, "docs/deep": Ignored, "apps/inside.yaml": Symlink, "apps/a.yaml": "", "gone": ""} {
		if got, _ := tree.LeftOut(p); got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
	leaves := make(map[string]bool)
	for _, l := range tree.Links() {
		leaves[l.Path] = l.Leaves
	}
	for p, want := range map[string]bool{"apps/inside.yaml": false, "apps/outside": true, "apps/nowhere": true} {
		if got, ok := leaves[p]; !ok || got != want {
			t.Errorf("%s leaves: %v (%v), want %v", p, got, ok, want)
		}
	}
	if tree.File("apps/outside") != nil {
		t.Error("a link out of the repository was read")
	}
}

func TestLimits(t *testing.T) {
	root := write(t, map[string]string{"a.yaml": "0123456789", "b.yaml": "0123456789"})
	for _, test := range []struct {
		limits Limits
		want   string
	}{
		{Limits{Entries: 1, FileBytes: 100, TotalBytes: 100}, "more than 1 files and folders"},
		{Limits{Entries: 9, FileBytes: 9, TotalBytes: 100}, "a.yaml is larger than 9 bytes"},
		{Limits{Entries: 9, FileBytes: 10, TotalBytes: 19}, "the artifact is larger than 19 bytes"},
		{Limits{Entries: 2, FileBytes: 10, TotalBytes: 20}, ""},
	} {
		_, err := Load(root, test.limits)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%+v: got %v, want %q", test.limits, err, test.want)
		}
	}
}

func TestJoin(t *testing.T) {
	for _, test := range []struct{ dir, rel, want string }{
		{"a/b", "../c", "a/c"}, {"a", "..", "."}, {"a", "../..", ""}, {".", "x", "x"}, {"a", "../../a/x", ""},
	} {
		got, err := Join(test.dir, test.rel)
		if got != test.want || (err != nil) != (test.want == "") {
			t.Errorf("Join(%q, %q) = %q, %v", test.dir, test.rel, got, err)
		}
	}
}
