package render

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"sigs.k8s.io/kustomize/kyaml/filesys"

	"aks-platform/tools/validate/internal/artifact"
)

// mount is where a view shows the artifact. It is not the root of the file system, so that a path with too many ".."
// leaves the artifact, as it does in Flux, and finds nothing there.
const mount = "/artifact"

// errReadOnly is what every write gives: a build of Kustomize has nothing to write.
var errReadOnly = errors.New("the artifact is read-only")

// view is a file system for Kustomize: the artifact, with one file replaced or added.
type view struct {
	tree    *artifact.Tree
	file    string // path in the artifact
	content []byte
}

var _ filesys.FileSystem = (*view)(nil)

// inside turns a path of the view into a path of the artifact.
func inside(p string) (string, bool) {
	p = path.Clean("/" + filepath.ToSlash(p))
	if p == mount {
		return ".", true
	}
	return strings.CutPrefix(p, mount+"/")
}

// ReadFile implements filesys.FileSystem.
func (v *view) ReadFile(p string) ([]byte, error) {
	if in, ok := inside(p); ok {
		if in == v.file {
			return v.content, nil
		}
		if f := v.tree.File(in); f != nil {
			return f.Data, nil
		}
	}
	return nil, notExist("open", p)
}

// IsDir implements filesys.FileSystem.
func (v *view) IsDir(p string) bool {
	in, ok := inside(p)
	return ok && v.tree.IsFolder(in)
}

// Exists implements filesys.FileSystem.
func (v *view) Exists(p string) bool {
	in, ok := inside(p)
	return ok && (in == v.file || v.tree.File(in) != nil || v.tree.IsFolder(in))
}

// CleanedAbs implements filesys.FileSystem.
func (v *view) CleanedAbs(p string) (filesys.ConfirmedDir, string, error) {
	switch {
	case v.IsDir(p):
		return filesys.ConfirmedDir(path.Clean("/" + filepath.ToSlash(p))), "", nil
	case v.Exists(p):
		dir, name := path.Split(path.Clean("/" + filepath.ToSlash(p)))
		return filesys.ConfirmedDir(path.Clean(dir)), name, nil
	default:
		return "", "", notExist("stat", p)
	}
}

// ReadDir implements filesys.FileSystem.
func (v *view) ReadDir(p string) ([]string, error) {
	in, ok := inside(p)
	if !ok || !v.tree.IsFolder(in) {
		return nil, notExist("open", p)
	}
	return v.tree.Folder(in), nil
}

func notExist(op, p string) error {
	if in, ok := inside(p); ok {
		p = in
	}
	return &fs.PathError{Op: op, Path: p, Err: fs.ErrNotExist}
}

// Open implements filesys.FileSystem. Kustomize reads whole files.
func (v *view) Open(p string) (filesys.File, error) {
	return nil, fmt.Errorf("open %s: not offered by the artifact", p)
}

// Glob implements filesys.FileSystem. No field of a kustomization file is a pattern.
func (v *view) Glob(pattern string) ([]string, error) {
	return nil, fmt.Errorf("glob %s: not offered by the artifact", pattern)
}

// Walk implements filesys.FileSystem. Flux's generator walks a folder of its own.
func (v *view) Walk(p string, _ filepath.WalkFunc) error {
	return fmt.Errorf("walk %s: not offered by the artifact", p)
}

// Create implements filesys.FileSystem.
func (v *view) Create(string) (filesys.File, error) { return nil, errReadOnly }

// Mkdir implements filesys.FileSystem.
func (v *view) Mkdir(string) error { return errReadOnly }

// MkdirAll implements filesys.FileSystem.
func (v *view) MkdirAll(string) error { return errReadOnly }

// RemoveAll implements filesys.FileSystem.
func (v *view) RemoveAll(string) error { return errReadOnly }

// WriteFile implements filesys.FileSystem.
func (v *view) WriteFile(string, []byte) error { return errReadOnly }
