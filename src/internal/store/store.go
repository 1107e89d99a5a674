// Package store keeps objects that are written once and never changed.
//
// Because an object never changes, it can be read with no lock, copied and cached, and whoever finds it finds all of it.
// What a set of objects means is derived from which of them exist.
//
// Dir is the embedded store: a directory, no server. All implementations pass the suite in storetest.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Store keeps objects. It may be used by several goroutines, and by several processes that open the same store.
//
// A name is a collection, a slash and a key, both made of letters, digits, '-', '_' and '.', not starting with '.', and
// at most MaxName bytes in all. Any method may fail with ErrName otherwise.
type Store interface {
	// Create stores an object. When Create returns nil, the object is durable and complete. When it fails, nobody ever
	// sees a part of the object; with any other error than ErrExists, the whole of it may or may not be there.
	//
	// It fails with ErrExists if the name is taken, and never replaces what is there. It may notice that before it has
	// read all of body. An error from body is returned wrapped, and nothing is stored.
	//
	// Metadata are at most MaxMeta bytes in all. Keys are lower-case identifiers, values printable ASCII with no space
	// at either end. It fails with ErrMeta otherwise.
	Create(ctx context.Context, name string, meta map[string]string, body io.Reader) error

	// Open returns an object for reading; the caller closes it. It fails with ErrNotFound if there is none. If the object
	// is deleted meanwhile, reading on may fail, but does not end early without an error.
	Open(ctx context.Context, name string) (*Object, error)

	// List describes up to max objects (1 to MaxList) whose names start with prefix and are greater than after, in the
	// order of their names as bytes. Fewer than max means that there are no more. The prefix contains the collection and
	// the slash. An object that is created or deleted meanwhile may or may not be listed.
	List(ctx context.Context, prefix, after string, max int) ([]Info, error)

	// Delete removes an object for good. It is no error if there is none.
	Delete(ctx context.Context, name string) error
}

// Info describes an object.
type Info struct {
	Name    string
	Meta    map[string]string
	Size    int64     // bytes of the body
	Created time.Time // by the clock of the store
}

// Object is an object that is open for reading.
type Object struct {
	Info
	io.ReadCloser
}

// Limits of names, metadata and listings.
const (
	MaxName = 256
	MaxMeta = 2048
	MaxList = 1000
)

// Errors that callers tell apart.
var (
	ErrExists   = errors.New("object exists")
	ErrNotFound = errors.New("object not found")
	ErrName     = errors.New("not a valid object name")
	ErrMeta     = errors.New("not valid object metadata")
)

// split checks an object's name and returns its two parts.
func split(name string) (collection, key string, err error) {
	collection, key, _ = strings.Cut(name, "/")
	if len(name) > MaxName || !validPart(collection) || !validPart(key) {
		return "", "", fmt.Errorf("%w: %.80q", ErrName, name)
	}
	return collection, key, nil
}

func validPart(s string) bool {
	return s != "" && s[0] != '.' && onlyNameBytes(s)
}

func onlyNameBytes(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

func checkMeta(meta map[string]string) error {
	size := 0
	for k, v := range meta {
		size += len(k) + len(v)
		for i, c := range []byte(k) {
			if (c < 'a' || c > 'z') && (i == 0 || c != '_' && (c < '0' || c > '9')) {
				return fmt.Errorf("%w: key %.80q", ErrMeta, k)
			}
		}
		for _, c := range []byte(v) {
			if c < ' ' || c > '~' {
				return fmt.Errorf("%w: value %.80q", ErrMeta, v)
			}
		}
		if k == "" || strings.TrimSpace(v) != v {
			return fmt.Errorf("%w: %.80q=%.80q", ErrMeta, k, v)
		}
	}
	if size > MaxMeta {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMeta, size, MaxMeta)
	}
	return nil
}
