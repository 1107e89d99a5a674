// Package artifact shows a checkout the way Flux sees it.
//
// Flux never sees a Git checkout. source-controller packs a part of it into an artifact, and everything downstream works
// on that. What is left out follows source-controller's Storage.Archive and the library it filters with:
//
//   - what .gitignore leaves out of the repository is not in Git at all, and neither is an empty folder;
//   - what the .sourceignore files of all folders exclude (their patterns are read together, the last match wins), or,
//     if there is no such file, what the built-in list excludes: pictures, archives, CI folders;
//   - everything that is neither a file nor a folder. A symbolic link is silently absent.
//
// A Tree is a snapshot in memory: it is read once, within limits, and never changes, so any number of builds can read it
// at the same time. Files outside the artifact are known by name only.
package artifact

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/fluxcd/pkg/sourceignore"
	"github.com/go-git/go-git/v5/plumbing/format/gitignore"

	"aks-platform/tools/validate/internal/yamldoc"
)

// Limits bound what Load reads, so that a file that got into the repository by accident, or was put there to stop the
// gate, ends in a message and not in an exhausted machine.
type Limits struct {
	// Entries is how many files and folders the checkout may have.
	Entries int
	// FileBytes is how large one file of the artifact may be.
	FileBytes int64
	// TotalBytes is how large all files of the artifact may be together.
	TotalBytes int64
}

// DefaultLimits are far above every sound repository: the API server itself takes no object above 1.5 MiB.
var DefaultLimits = Limits{Entries: 200_000, FileBytes: 4 << 20, TotalBytes: 256 << 20}

// Reason says why a path of the checkout is not in the artifact.
type Reason string

// The reasons.
const (
	Ignored Reason = ".sourceignore leaves it out of the artifact"
	Symlink Reason = "it is a symbolic link, and Flux leaves those out of the artifact"
	Empty   Reason = "it has no files, and Git keeps no empty folders"
	Special Reason = "it is neither a file nor a folder, and Flux leaves such things out of the artifact"
)

// File is one file of the artifact.
type File struct {
	// Path is relative to the root, with forward slashes.
	Path string
	Data []byte

	parse sync.Once
	docs  []yamldoc.Document
	err   error
}

// Documents returns the file's YAML documents. A file that is no YAML gives a *yamldoc.SyntaxError.
func (f *File) Documents() ([]yamldoc.Document, error) {
	f.parse.Do(func() { f.docs, f.err = yamldoc.Parse(f.Data) })
	return f.docs, f.err
}

// Link is a symbolic link in the part of the checkout that the artifact is made from.
type Link struct {
	Path, Target string
	// Leaves says that the link leads out of the repository, or nowhere.
	Leaves bool
}

// Tree is the content of the artifact.
type Tree struct {
	files   map[string]*File
	folders map[string][]string
	leftOut map[string]Reason
	links   []Link
}

// Load reads the checkout at root.
func Load(root string, limits Limits) (*Tree, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("open the repository: %w", err)
	}
	defer dir.Close()

	w := walk{dir: dir, limits: limits}
	if err := w.folder(".", nil); err != nil {
		return nil, err
	}
	return w.tree()
}

// walk collects what is in the checkout. Only when it is finished, the patterns of all .sourceignore files are known.
type walk struct {
	dir      *os.Root
	limits   Limits
	patterns []gitignore.Pattern
	entries  []entry
}

type entry struct {
	path string
	mode fs.FileMode
}

func (w *walk) folder(dir string, gitIgnored []gitignore.Pattern) error {
	list, err := fs.ReadDir(w.dir.FS(), dir)
	if err != nil {
		return fmt.Errorf("read folder: %w", err)
	}
	domain := split(dir)
	own, err := w.ignoreFile(dir, list, ".gitignore", domain)
	if err != nil {
		return err
	}
	gitIgnored = append(slices.Clip(gitIgnored), own...)
	own, err = w.ignoreFile(dir, list, sourceignore.IgnoreFile, domain)
	if err != nil {
		return err
	}
	w.patterns = append(w.patterns, own...)

	inGit := gitignore.NewMatcher(gitIgnored)
	for _, e := range list {
		p := path.Join(dir, e.Name())
		if e.Name() == ".git" || inGit.Match(split(p), e.IsDir()) {
			continue
		}
		if len(w.entries) == w.limits.Entries {
			return fmt.Errorf("the repository has more than %d files and folders", w.limits.Entries)
		}
		w.entries = append(w.entries, entry{p, e.Type()})
		if e.IsDir() {
			if err := w.folder(p, gitIgnored); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walk) ignoreFile(dir string, list []fs.DirEntry, name string, domain []string) ([]gitignore.Pattern, error) {
	for _, e := range list {
		if e.Name() != name || !e.Type().IsRegular() {
			continue
		}
		data, err := w.read(path.Join(dir, name))
		if err != nil {
			return nil, err
		}
		return sourceignore.ReadPatterns(strings.NewReader(string(data)), domain), nil
	}
	return nil, nil
}

// read reads a file without following a link out of the root, and within the limit.
func (w *walk) read(p string) ([]byte, error) {
	f, err := w.dir.Open(p)
	if err != nil {
		return nil, fmt.Errorf("open file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, w.limits.FileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read file: %w", err)
	}
	if int64(len(data)) > w.limits.FileBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes, the limit for one file", p, w.limits.FileBytes)
	}
	return data, nil
}

func (w *walk) tree() (*Tree, error) {
	// As storage.SourceIgnoreFilter does: the repository's patterns replace the built-in list, they do not add to it.
	matcher := sourceignore.NewDefaultMatcher(nil, nil)
	if len(w.patterns) > 0 {
		matcher = sourceignore.NewMatcher(append(sourceignore.VCSPatterns(nil), w.patterns...))
	}
	t := &Tree{
		files:   make(map[string]*File),
		folders: map[string][]string{".": nil},
		leftOut: make(map[string]Reason),
	}
	inGit := make(map[string]bool)
	for _, e := range w.entries {
		if !e.mode.IsDir() {
			for dir := path.Dir(e.path); !inGit[dir]; dir = path.Dir(dir) {
				inGit[dir] = true
			}
		}
	}
	var total int64
	for _, e := range w.entries {
		if matcher.Match(split(e.path), e.mode.IsDir()) {
			t.leftOut[e.path] = Ignored
			continue
		}
		switch {
		case e.mode.IsDir() && !inGit[e.path]:
			t.leftOut[e.path] = Empty
		case e.mode.IsDir():
			t.addFolder(e.path)
		case e.mode.IsRegular():
			data, err := w.read(e.path)
			if err != nil {
				return nil, err
			}
			if total += int64(len(data)); total > w.limits.TotalBytes {
				return nil, fmt.Errorf("the artifact is larger than %d bytes", w.limits.TotalBytes)
			}
			t.add(&File{Path: e.path, Data: data})
		case e.mode&fs.ModeSymlink != 0:
			t.leftOut[e.path] = Symlink
			link, err := w.link(e.path)
			if err != nil {
				return nil, err
			}
			t.links = append(t.links, link)
		default:
			t.leftOut[e.path] = Special
		}
	}
	return t, nil
}

func (w *walk) link(p string) (Link, error) {
	target, err := w.dir.Readlink(p)
	if err != nil {
		return Link{}, fmt.Errorf("read link: %w", err)
	}
	// Stat of an os.Root fails for a link that leads out of it.
	_, err = w.dir.Stat(p)
	return Link{Path: p, Target: target, Leaves: err != nil}, nil
}

func (t *Tree) add(f *File) {
	t.files[f.Path] = f
	t.addFolder(path.Dir(f.Path))
	t.folders[path.Dir(f.Path)] = append(t.folders[path.Dir(f.Path)], path.Base(f.Path))
}

func (t *Tree) addFolder(dir string) {
	if _, ok := t.folders[dir]; ok {
		return
	}
	t.folders[dir] = nil
	parent := path.Dir(dir)
	t.addFolder(parent)
	t.folders[parent] = append(t.folders[parent], path.Base(dir))
}

// File returns the file at a path, or nil.
func (t *Tree) File(p string) *File { return t.files[p] }

// IsFolder says whether a folder of the artifact is at the path.
func (t *Tree) IsFolder(p string) bool { _, ok := t.folders[p]; return ok }

// Folder returns the names in a folder, sorted.
func (t *Tree) Folder(p string) []string { return slices.Sorted(slices.Values(t.folders[p])) }

// Files returns all files, sorted by path.
func (t *Tree) Files() []*File {
	files := make([]*File, 0, len(t.files))
	for _, f := range t.files {
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *File) int { return strings.Compare(a.Path, b.Path) })
	return files
}

// Links returns the symbolic links that the artifact would have if Flux kept them.
func (t *Tree) Links() []Link { return t.links }

// LeftOut says why something that exists in the checkout is not in the artifact; ok is false if it does not exist there
// either, or is in the artifact.
func (t *Tree) LeftOut(p string) (reason Reason, ok bool) {
	for ; p != "."; p = path.Dir(p) {
		if reason, ok := t.leftOut[p]; ok {
			return reason, true
		}
	}
	return "", false
}

// ErrOutside says that a path leads out of the artifact.
var ErrOutside = errors.New("the path leads out of the repository")

// Join resolves a relative path of a file in dir.
func Join(dir, rel string) (string, error) {
	p := path.Join(dir, rel)
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", ErrOutside
	}
	return p, nil
}

func split(p string) []string {
	if p == "." {
		return nil
	}
	return strings.Split(p, "/")
}
