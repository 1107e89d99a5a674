// Package storage opens the queue and the store that STORAGE_URL names.
//
//	file:///abs/path   a directory on this machine, made if need be: queue/ and store/ in it
//
// The directory is durable, needs no server, and may be used by any number of processes at once.
package storage

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"

	"aks-platform/src/internal/queue"
	"aks-platform/src/internal/store"
)

// Check says what is wrong with a storage URL. It opens nothing.
func Check(rawURL string) error {
	_, err := parse(rawURL)
	return err
}

// Open opens the storage at a URL.
func Open(ctx context.Context, rawURL string) (queue.Queue, store.Store, error) {
	dir, err := parse(rawURL)
	if err != nil {
		return nil, nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	q, err := queue.OpenDir(filepath.Join(dir, "queue"))
	if err != nil {
		return nil, nil, fmt.Errorf("queue: %w", err)
	}
	s, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		return nil, nil, fmt.Errorf("store: %w", err)
	}
	return q, s, nil
}

// Probe reports whether a queue and a store answer. It returns how many messages the queue has.
func Probe(ctx context.Context, q queue.Queue, s store.Store) (backlog int, err error) {
	backlog, err = q.Len(ctx)
	if err != nil {
		return 0, fmt.Errorf("queue: %w", err)
	}
	o, err := s.Open(ctx, "jobs/probe") // no id has this form
	switch {
	case errors.Is(err, store.ErrNotFound):
		return backlog, nil
	case err != nil:
		return backlog, fmt.Errorf("store: %w", err)
	}
	return backlog, o.Close()
}

// parse returns the directory that a storage URL names.
func parse(rawURL string) (dir string, err error) {
	const want = "want file:///absolute/path"
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", fmt.Errorf("not a URL (%w); %s", errors.Unwrap(err), want) // the whole error repeats the URL
	}
	switch {
	case u.Scheme == "https":
		return "", errors.New("this build has no Azure storage, it supports a directory only: " + want)
	case u.Scheme != "file":
		return "", fmt.Errorf("scheme %q is not supported; %s", u.Scheme, want)
	case u.Host != "" && u.Host != "localhost":
		return "", fmt.Errorf("host %q: the directory is on this machine; %s, with three slashes", u.Host, want)
	case u.Opaque != "" || !path.IsAbs(u.Path) || path.Clean(u.Path) == "/":
		return "", errors.New("the path is not that of a directory of its own; " + want)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("user, query and fragment have no meaning here; " + want)
	}
	return filepath.FromSlash(path.Clean(u.Path)), nil
}
