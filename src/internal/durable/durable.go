// Package durable makes files and directories that survive the death of the process and of the machine.
//
// A file is written under a temporary name and synced to the disk before it gets its own name, so that nobody ever sees
// half of it; then its directory is synced, because a name is part of the directory and not of the file. New
// directories are synced into their parents in the same way. A process that dies in between leaves nothing but a
// temporary file, which Sweep removes later.
//
// Files and directories are open to their group whatever the umask says: the group is what the pods that share a volume
// have in common.
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

const (
	// TempPrefix starts the names of files that are being written.
	TempPrefix = ".tmp-"

	// OrphanAge is the age at which a temporary file is taken for what a dead process left. It is much longer than any
	// write is allowed to take.
	OrphanAge = time.Hour

	dirMode  fs.FileMode = 0o770
	fileMode fs.FileMode = 0o660
)

// OpenRoot opens the directory at path for reading and writing. It makes the directory and its parents if need be.
func OpenRoot(path string) (*os.Root, error) {
	if err := makeAll(filepath.Clean(path)); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	// A volume with the wrong owner shows here, at the start, and not when the first request comes.
	tmp, err := WriteTemp(root, ".", func(io.Writer) error { return nil })
	if err == nil {
		err = root.Remove(tmp)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s is not writable: %w", path, err), root.Close())
	}
	return root, nil
}

func makeAll(dir string) error {
	parent := filepath.Dir(dir)
	err := os.Mkdir(dir, dirMode)
	if errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := makeAll(parent); err != nil {
			return err
		}
		err = os.Mkdir(dir, dirMode)
	}
	if errors.Is(err, fs.ErrExist) { // was there, or another process made it
		return nil
	} else if err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, groupDir(info)); err != nil {
		return err
	}
	return syncDir(os.Open(parent))
}

// Mkdir makes a directory in root. It is no error if it exists.
func Mkdir(root *os.Root, dir string) error {
	if err := root.Mkdir(dir, dirMode); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	info, err := root.Stat(dir)
	if err != nil {
		return err
	}
	if err := root.Chmod(dir, groupDir(info)); err != nil {
		return err
	}
	return SyncDir(root, path.Dir(dir))
}

// groupDir returns the mode for a new directory. Volumes mark their directories so that what is made in them belongs to
// the group of the volume; the mark is inherited and has to stay.
func groupDir(info fs.FileInfo) fs.FileMode { return dirMode | info.Mode()&fs.ModeSetgid }

// SyncDir makes the names in a directory of root durable.
func SyncDir(root *os.Root, dir string) error { return syncDir(root.Open(dir)) }

func syncDir(dir *os.File, err error) error {
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// WriteTemp writes a temporary file in a directory of root and returns its name. When it returns nil, the content is
// durable; the caller then gives the file its own name and calls SyncDir. When it fails, there is no file.
func WriteTemp(root *os.Root, dir string, write func(io.Writer) error) (name string, err error) {
	name = path.Join(dir, TempPrefix+rand.Text())
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return "", err
	}
	err = write(f)
	if err == nil {
		err = errors.Join(f.Chmod(fileMode), f.Sync())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, root.Remove(name))
	}
	return name, nil
}

// Names calls f with the names in a directory of root, some at a time and in no order.
func Names(root *os.Root, dir string, f func([]string) error) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(1024)
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := f(names); err != nil {
			return err
		}
	}
}

// Sweep removes the temporary files in a directory of root that were last written before t.
func Sweep(root *os.Root, dir string, t time.Time) error {
	return Names(root, dir, func(names []string) error {
		for _, name := range names {
			if !strings.HasPrefix(name, TempPrefix) {
				continue
			}
			name = path.Join(dir, name)
			info, err := root.Lstat(name)
			if err == nil && info.ModTime().Before(t) {
				err = root.Remove(name)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // its writer may finish, another process may sweep
				return err
			}
		}
		return nil
	})
}
