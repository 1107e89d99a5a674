package store

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"aks-platform/src/internal/durable"
)

// Dir is a Store in a directory of a local file system. A collection is a directory in it, and an object is a file in
// that: its metadata as one line of JSON, then its body. Several processes on one machine may share the directory.
//
// A file is written under a temporary name, synced to the disk, and then linked to its own name. A link, unlike a
// rename, never replaces a file, so of two that create one object the second fails. Then the directory is synced.
//
// All access goes through os.Root: even a name that slipped through the checks could not leave the directory.
type Dir struct{ root *os.Root }

// maxLine bounds the first line of a file: metadata, escaped as JSON.
const maxLine = 4 * MaxMeta

// OpenDir opens the store in the directory at path, which it makes if need be.
func OpenDir(path string) (*Dir, error) {
	root, err := durable.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	s := &Dir{root}
	if err := s.sweep(time.Now().Add(-durable.OrphanAge)); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return s, nil
}

// sweep removes what dead processes left in any collection before t.
func (s *Dir) sweep(t time.Time) error {
	collections, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, c := range collections {
		if !c.IsDir() || !validPart(c.Name()) {
			continue
		}
		if err := durable.Sweep(s.root, c.Name(), t); err != nil {
			return err
		}
	}
	return nil
}

// Create implements Store.
func (s *Dir) Create(ctx context.Context, name string, meta map[string]string, body io.Reader) error {
	collection, _, err := split(name)
	if err != nil {
		return err
	}
	if err := checkMeta(meta); err != nil {
		return err
	}
	head, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	write := func(w io.Writer) error {
		if _, err := w.Write(append(head, '\n')); err != nil {
			return err
		}
		_, err := io.Copy(w, reader{ctx, body})
		return err
	}
	tmp, err := durable.WriteTemp(s.root, collection, write)
	if errors.Is(err, fs.ErrNotExist) { // the first object of the collection; nothing of body was read
		if err := durable.Mkdir(s.root, collection); err != nil {
			return err
		}
		tmp, err = durable.WriteTemp(s.root, collection, write)
	}
	if err != nil {
		return err
	}
	err = s.root.Link(tmp, name)
	removed := s.root.Remove(tmp)
	switch {
	case errors.Is(err, fs.ErrExist):
		return cmp.Or(removed, ErrExists)
	case err != nil:
		return errors.Join(err, removed)
	case removed != nil:
		return removed
	}
	return durable.SyncDir(s.root, collection)
}

// Open implements Store.
func (s *Dir) Open(ctx context.Context, name string) (*Object, error) {
	if _, _, err := split(name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := s.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	} else if err != nil {
		return nil, err
	}
	o, err := read(ctx, name, f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("object %s: %w", name, err), f.Close())
	}
	return o, nil
}

// read reads the head of an object's file.
func read(ctx context.Context, name string, f *os.File) (*Object, error) {
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(f)
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		} else if err != bufio.ErrBufferFull {
			return nil, fmt.Errorf("metadata: %w", cmp.Or(eof(err), err))
		} else if len(line) > maxLine {
			return nil, errors.New("metadata are too long")
		}
	}
	o := &Object{Info: Info{Name: name, Size: stat.Size() - int64(len(line)), Created: stat.ModTime()}}
	o.ReadCloser = struct {
		io.Reader
		io.Closer
	}{reader{ctx, r}, f}
	return o, json.Unmarshal(line, &o.Meta)
}

// eof returns io.ErrUnexpectedEOF for io.EOF.
func eof(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// List implements Store.
func (s *Dir) List(ctx context.Context, prefix, after string, max int) ([]Info, error) {
	collection, keyPrefix, ok := strings.Cut(prefix, "/")
	if !ok || !validPart(collection) || !onlyNameBytes(keyPrefix) || max < 1 || max > MaxList {
		return nil, fmt.Errorf("%w: listing of %d with prefix %.80q", ErrName, max, prefix)
	}
	var infos []Info
	for len(infos) < max {
		need := max - len(infos)
		names, err := s.page(ctx, collection, prefix, after, need)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			after = name
			o, err := s.Open(ctx, name)
			if errors.Is(err, ErrNotFound) {
				continue // deleted meanwhile
			} else if err != nil {
				return nil, err
			}
			if err := o.Close(); err != nil {
				return nil, err
			}
			infos = append(infos, o.Info)
		}
		if len(names) < need {
			break
		}
	}
	return infos, nil
}

// page returns the first max names in a collection that start with prefix and are greater than after. It keeps only
// that many in memory, and some more.
func (s *Dir) page(ctx context.Context, collection, prefix, after string, max int) ([]string, error) {
	var found []string
	first := func() []string {
		slices.Sort(found)
		return found[:min(max, len(found))]
	}
	err := durable.Names(s.root, collection, func(keys []string) error {
		for _, key := range keys {
			if name := collection + "/" + key; name > after && strings.HasPrefix(name, prefix) && validPart(key) {
				found = append(found, name)
			}
		}
		if len(found) > 4*MaxList {
			found = first()
		}
		return ctx.Err()
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no object was ever created in this collection
	}
	return first(), err
}

// Delete implements Store.
func (s *Dir) Delete(ctx context.Context, name string) error {
	collection, _, err := split(name)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.root.Remove(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return durable.SyncDir(s.root, collection)
}

// reader ends reading when its context ends.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
