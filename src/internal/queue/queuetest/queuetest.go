// Package queuetest tests implementations of queue.Queue, and breaks them on purpose.
package queuetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"aks-platform/src/internal/queue"
)

// Run tests that an implementation does what queue.Queue promises.
//
// open returns a function that opens one and the same new, empty queue each time it is called, as several processes
// would. tick is the shortest lease that the implementation can tell from none.
func Run(t *testing.T, open func(t *testing.T) func() queue.Queue, tick time.Duration) {
	const long = time.Hour
	ctx := t.Context()

	t.Run("a message comes back as it was sent", func(t *testing.T) {
		q := open(t)()
		bodies := []string{"x", `<a href="&amp;">'%2F..</a>`, strings.Repeat("~", queue.MaxBody)}
		for _, b := range bodies {
			send(t, q, b)
		}
		var got []string
		for _, d := range receive(t, q, len(bodies), long) {
			if d.Attempt != 1 {
				t.Errorf("first delivery is attempt %d", d.Attempt)
			}
			got = append(got, d.Body)
		}
		slices.Sort(got)
		slices.Sort(bodies)
		if !slices.Equal(got, bodies) {
			t.Errorf("got %q, want %q", got, bodies)
		}
	})

	t.Run("what is no message is refused", func(t *testing.T) {
		q := open(t)()
		for _, b := range []string{"", "line\nfeed", "caf\u00e9", "\x00", strings.Repeat("x", queue.MaxBody+1)} {
			if err := q.Send(ctx, b); !errors.Is(err, queue.ErrBody) {
				t.Errorf("Send(%.20q): %v, want ErrBody", b, err)
			}
		}
		wantLen(t, q, 0)
	})

	t.Run("an empty queue has nothing", func(t *testing.T) {
		q := open(t)()
		if ds, err := q.Receive(ctx, 10, long); len(ds) != 0 || err != nil {
			t.Errorf("got %d deliveries, %v", len(ds), err)
		}
	})

	t.Run("no more than asked for", func(t *testing.T) {
		q := open(t)()
		for i := range 5 {
			send(t, q, fmt.Sprint(i))
		}
		if ds, err := q.Receive(ctx, 3, long); err != nil || len(ds) > 3 || len(ds) == 0 {
			t.Errorf("asked for 3, got %d, %v", len(ds), err)
		}
	})

	t.Run("a held message is hidden and counted", func(t *testing.T) {
		reopen := open(t)
		a, b := reopen(), reopen()
		send(t, a, "m")
		wantLen(t, b, 1)
		d := receive(t, a, 1, long)[0]
		for _, q := range []queue.Queue{a, b} {
			if ds, err := q.Receive(ctx, 1, long); len(ds) != 0 || err != nil {
				t.Errorf("held message was delivered: %d, %v", len(ds), err)
			}
			wantLen(t, q, 1)
		}
		if err := a.Delete(ctx, d); err != nil {
			t.Fatal(err)
		}
		wantLen(t, b, 0)
		if err := a.Delete(ctx, d); !errors.Is(err, queue.ErrLost) {
			t.Errorf("second Delete: %v, want ErrLost", err)
		}
		if err := a.Extend(ctx, d, long); !errors.Is(err, queue.ErrLost) {
			t.Errorf("Extend after Delete: %v, want ErrLost", err)
		}
		wantLen(t, b, 0)
	})

	t.Run("a lease ends, and the first holder has lost", func(t *testing.T) {
		reopen := open(t)
		a, b := reopen(), reopen()
		send(t, a, "m")
		first := receive(t, a, 1, tick)[0]
		second := receive(t, b, 1, long)[0]
		if second.Attempt != 2 || second.Body != "m" {
			t.Errorf("got attempt %d of %q, want 2 of m", second.Attempt, second.Body)
		}
		if err := a.Extend(ctx, first, 0); !errors.Is(err, queue.ErrLost) {
			t.Errorf("late Extend: %v, want ErrLost", err)
		}
		if err := a.Delete(ctx, first); !errors.Is(err, queue.ErrLost) {
			t.Errorf("late Delete: %v, want ErrLost", err)
		}
		if ds, err := a.Receive(ctx, 1, long); len(ds) != 0 || err != nil {
			t.Errorf("the late calls released the message: %d, %v", len(ds), err)
		}
		if err := b.Delete(ctx, second); err != nil {
			t.Error(err)
		}
	})

	t.Run("a lease is renewed", func(t *testing.T) {
		q := open(t)()
		send(t, q, "m")
		d := receive(t, q, 1, tick)[0]
		if err := q.Extend(ctx, d, long); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(2 * tick); time.Now().Before(end); time.Sleep(tick / 10) {
			if ds, err := q.Receive(ctx, 1, long); len(ds) != 0 || err != nil {
				t.Fatalf("renewed message was delivered: %d, %v", len(ds), err)
			}
		}
		if err := q.Delete(ctx, d); err != nil {
			t.Errorf("Delete after renewal: %v", err)
		}
	})

	t.Run("a message is given back", func(t *testing.T) {
		reopen := open(t)
		a, b := reopen(), reopen()
		send(t, a, "m")
		for attempt := 1; attempt <= 4; attempt++ {
			d := receive(t, b, 1, long)[0]
			if d.Attempt != attempt {
				t.Errorf("attempt %d, want %d", d.Attempt, attempt)
			}
			if err := b.Extend(ctx, d, 0); err != nil {
				t.Fatal(err)
			}
			a, b = b, a
		}
	})

	t.Run("a context that has ended", func(t *testing.T) {
		q := open(t)()
		send(t, q, "m")
		d := receive(t, q, 1, long)[0]
		ended, cancel := context.WithCancel(ctx)
		cancel()
		for op, err := range map[string]error{
			"Send":   q.Send(ended, "n"),
			"Extend": q.Extend(ended, d, 0),
			"Delete": q.Delete(ended, d),
		} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v, want context.Canceled", op, err)
			}
		}
	})

	t.Run("each message goes to one of many receivers", func(t *testing.T) {
		const messages, receivers = 120, 6
		reopen := open(t)
		var all sync.WaitGroup
		for sender := range 4 {
			q := reopen()
			all.Go(func() {
				for i := range messages / 4 {
					if err := q.Send(ctx, fmt.Sprintf("%d-%d", sender, i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		var mu sync.Mutex
		got := map[string]int{}
		deadline := time.Now().Add(time.Minute)
		for range receivers {
			q := reopen()
			all.Go(func() {
				for time.Now().Before(deadline) {
					ds, err := q.Receive(ctx, 7, long)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					for _, d := range ds {
						got[d.Body]++
					}
					enough := len(got) == messages
					mu.Unlock()
					for _, d := range ds {
						if err := q.Delete(ctx, d); err != nil {
							t.Error(err)
						}
					}
					if enough {
						return
					}
				}
			})
		}
		all.Wait()
		for b, n := range got {
			if n != 1 {
				t.Errorf("%s was delivered %d times", b, n)
			}
		}
		if len(got) != messages {
			t.Errorf("%d messages were delivered, want %d", len(got), messages)
		}
		wantLen(t, reopen(), 0)
	})
}

func send(t *testing.T, q queue.Queue, body string) {
	t.Helper()
	if err := q.Send(t.Context(), body); err != nil {
		t.Fatalf("Send: %v", err)
	}
}

// receive waits for n deliveries.
func receive(t *testing.T, q queue.Queue, n int, lease time.Duration) []*queue.Delivery {
	t.Helper()
	var all []*queue.Delivery
	for end := time.Now().Add(20 * time.Second); len(all) < n; time.Sleep(time.Millisecond) {
		ds, err := q.Receive(t.Context(), n-len(all), lease)
		if err != nil {
			t.Fatalf("Receive: %v", err)
		}
		if all = append(all, ds...); time.Now().After(end) {
			t.Fatalf("received %d messages, want %d", len(all), n)
		}
	}
	return all
}

func wantLen(t *testing.T, q queue.Queue, want int) {
	t.Helper()
	if n, err := q.Len(t.Context()); n != want || err != nil {
		t.Errorf("Len is %d, %v, want %d", n, err, want)
	}
}

// Faults is a queue that can be broken. Its functions get the name of an operation, such as "Send", and may be nil.
type Faults struct {
	queue.Queue
	// Before makes an operation fail, with no effect.
	Before func(op string) error
	// After makes an operation fail after it had its effect, as when the answer of a server is lost.
	After func(op string) error
}

func (f *Faults) around(op string, do func() error) error {
	if f.Before != nil {
		if err := f.Before(op); err != nil {
			return err
		}
	}
	err := do()
	if err == nil && f.After != nil {
		err = f.After(op)
	}
	return err
}

// Send implements queue.Queue.
func (f *Faults) Send(ctx context.Context, body string) error {
	return f.around("Send", func() error { return f.Queue.Send(ctx, body) })
}

// Receive implements queue.Queue.
func (f *Faults) Receive(ctx context.Context, max int, lease time.Duration) (ds []*queue.Delivery, err error) {
	err = f.around("Receive", func() (err error) {
		ds, err = f.Queue.Receive(ctx, max, lease)
		return err
	})
	return ds, err
}

// Extend implements queue.Queue.
func (f *Faults) Extend(ctx context.Context, d *queue.Delivery, lease time.Duration) error {
	return f.around("Extend", func() error { return f.Queue.Extend(ctx, d, lease) })
}

// Delete implements queue.Queue.
func (f *Faults) Delete(ctx context.Context, d *queue.Delivery) error {
	return f.around("Delete", func() error { return f.Queue.Delete(ctx, d) })
}

// Len implements queue.Queue.
func (f *Faults) Len(ctx context.Context) (n int, err error) {
	err = f.around("Len", func() (err error) {
		n, err = f.Queue.Len(ctx)
		return err
	})
	return n, err
}
