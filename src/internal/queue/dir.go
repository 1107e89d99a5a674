package queue

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"aks-platform/src/internal/durable"
)

// Dir is a Queue in a directory of a local file system. Each message is a file that holds the body, and the name of the
// file is all the rest of its state:
//
//	<due>-<deliveries>-<id>
//
// due is when the message may next be delivered, in nanoseconds since 1970 with 19 digits, so that names sort by it.
// Each step is one rename, which is atomic. To receive a message is to rename a file that is due to a name that is not;
// the new name is the receipt. Whoever's rename finds the old name gone has lost the message to somebody else. So any
// number of processes on one machine can share the directory with no lock and no server, and `ls` shows the queue.
//
// Send syncs file and directory to the disk. The other steps do not: if the power fails, their loss means that a message
// is delivered once more.
type Dir struct {
	root *os.Root

	mu  sync.Mutex
	due []string // what is left of the last listing, longest due first
}

// listing bounds how many names one listing keeps in memory.
const listing = 4096

// OpenDir opens the queue in the directory at path, which it makes if need be.
func OpenDir(path string) (*Dir, error) {
	root, err := durable.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	if err := durable.Sweep(root, ".", time.Now().Add(-durable.OrphanAge)); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &Dir{root: root}, nil
}

// Send implements Queue.
func (q *Dir) Send(ctx context.Context, body string) error {
	if err := cmp.Or(checkBody(body), ctx.Err()); err != nil {
		return err
	}
	tmp, err := durable.WriteTemp(q.root, ".", func(w io.Writer) error {
		_, err := io.WriteString(w, body)
		return err
	})
	if err != nil {
		return err
	}
	if err := q.root.Rename(tmp, name(time.Now(), 0, rand.Text())); err != nil {
		return errors.Join(err, q.root.Remove(tmp))
	}
	return durable.SyncDir(q.root, ".")
}

// Receive implements Queue.
func (q *Dir) Receive(ctx context.Context, max int, lease time.Duration) ([]*Delivery, error) {
	var ds []*Delivery
	for len(ds) < max {
		names, err := q.take(max - len(ds))
		if err != nil || len(names) == 0 {
			return ds, err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return ds, err
			}
			d, err := q.claim(name, lease)
			if errors.Is(err, ErrLost) {
				continue // somebody else was first
			} else if err != nil {
				return ds, err
			}
			ds = append(ds, d)
		}
	}
	return ds, nil
}

// claim receives the message in the file called name.
func (q *Dir) claim(name string, lease time.Duration) (*Delivery, error) {
	deliveries, id, ok := parse(name)
	if !ok {
		return nil, fmt.Errorf("%s is not the name of a message", name)
	}
	d := &Delivery{Attempt: deliveries + 1, id: id, receipt: name}
	if err := q.rename(d, lease); err != nil {
		return nil, err
	}
	f, err := q.root.Open(d.receipt)
	if err != nil {
		return nil, lost(err)
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, MaxBody))
	d.Body = string(body)
	return d, err
}

// take returns the names of up to n messages that were due at the last listing. It lists the directory again only when
// the last listing is used up, because a listing costs as much as there are messages. No names means that none is due.
func (q *Dir) take(n int) ([]string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.due) == 0 {
		now := name(time.Now(), 0, "")
		var due []string
		err := durable.Names(q.root, ".", func(names []string) error {
			for _, name := range names {
				if _, _, ok := parse(name); ok && name < now {
					due = append(due, name)
				}
			}
			if len(due) > 2*listing {
				slices.Sort(due)
				due = due[:listing]
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		slices.Sort(due)
		q.due = due
	}
	n = min(n, len(q.due))
	names := q.due[:n:n]
	q.due = q.due[n:]
	return names, nil
}

// Extend implements Queue.
func (q *Dir) Extend(ctx context.Context, d *Delivery, lease time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return q.rename(d, lease)
}

// Delete implements Queue.
func (q *Dir) Delete(ctx context.Context, d *Delivery) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return lost(q.root.Remove(d.receipt))
}

// Len implements Queue.
func (q *Dir) Len(ctx context.Context) (n int, err error) {
	err = durable.Names(q.root, ".", func(names []string) error {
		for _, name := range names {
			if _, _, ok := parse(name); ok {
				n++
			}
		}
		return ctx.Err()
	})
	return n, err
}

// rename lets d's lease end after lease from now.
func (q *Dir) rename(d *Delivery, lease time.Duration) error {
	held := name(time.Now().Add(lease), d.Attempt, d.id)
	if err := lost(q.root.Rename(d.receipt, held)); err != nil {
		return err
	}
	d.receipt = held
	return nil
}

func lost(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return ErrLost
	}
	return err
}

func name(due time.Time, deliveries int, id string) string {
	return fmt.Sprintf("%019d-%d-%s", due.UnixNano(), deliveries, id)
}

func parse(name string) (deliveries int, id string, ok bool) {
	due, rest, _ := strings.Cut(name, "-")
	n, id, _ := strings.Cut(rest, "-")
	deliveries, err := strconv.Atoi(n)
	return deliveries, id, len(due) == 19 && due[0] >= '0' && due[0] <= '9' && err == nil && deliveries >= 0 && id != ""
}
