// Package queue hands work from one process to another, at least once.
//
// A message is delivered under a lease. While the lease runs, nobody else gets the message; the holder renews it for as
// long as it needs, and deletes the message when its work is stored safely. A holder that dies renews nothing, so its
// message is delivered again when the lease ends. Delivery is therefore at least once, in no guaranteed order, and the
// work has to bear being done twice.
//
// Dir is the embedded queue: a directory, no server. All implementations pass the suite in queuetest.
package queue

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Queue is a durable queue of short messages. It may be used by several goroutines, and by several processes that open
// the same queue. A context that ends makes a call return early with an error; whether the call had its effect is then
// unknown, as with any error.
type Queue interface {
	// Send adds a message. When Send returns nil, the message is durable, and it stays until it is deleted: it never
	// expires. When Send fails, the message may or may not be there.
	//
	// The body is 1 to MaxBody bytes of printable ASCII; Send fails with ErrBody otherwise. A message names the work, it
	// does not carry it.
	Send(ctx context.Context, body string) error

	// Receive takes up to max messages that nobody holds, for the time of lease. It may return fewer than there are, and
	// it does not wait for messages to come. It may return deliveries and an error together; these are held all the same.
	//
	// max is at least 1 and lease is positive. A lease may be rounded up to what the service counts in, at most a second.
	Receive(ctx context.Context, max int, lease time.Duration) ([]*Delivery, error)

	// Extend lets the lease of d end after lease from now, whether that is sooner or later than before. Zero gives the
	// message back at once. It fails with ErrLost if d is no longer held; that is certain only after somebody else got
	// the message, so an Extend that comes late may still succeed.
	Extend(ctx context.Context, d *Delivery, lease time.Duration) error

	// Delete removes the message of d for good. It fails with ErrLost if d is no longer held.
	Delete(ctx context.Context, d *Delivery) error

	// Len returns about how many messages there are, those that are held included.
	Len(ctx context.Context) (int, error)
}

// Delivery is one hand-over of a message. It is not safe for concurrent use.
type Delivery struct {
	Body string
	// Attempt counts the deliveries of this message, this one included. A message that was given back was delivered too.
	Attempt int

	id      string
	receipt string // proves to the queue who holds the message; changes with each Extend
}

// MaxBody is the length of the longest message, in bytes.
const MaxBody = 1024

var (
	// ErrLost says that a delivery is no longer held: its lease ended and somebody else has the message, or the message
	// is gone.
	ErrLost = errors.New("delivery is no longer held")

	// ErrBody says that a message cannot be sent.
	ErrBody = fmt.Errorf("message is not 1 to %d bytes of printable ASCII", MaxBody)
)

func checkBody(body string) error {
	if body == "" || len(body) > MaxBody {
		return ErrBody
	}
	for _, c := range []byte(body) {
		if c < ' ' || c > '~' {
			return ErrBody
		}
	}
	return nil
}
