// Package job says what a job is, for the API that accepts it and the worker that runs it.
//
// A job is two objects that are written once, and one message:
//
//	jobs/<id>           the input, with the job's Spec as metadata: the job exists
//	message <id>        the job wants a worker
//	results/<id>-<run>  the outcome: the result, or the reason why there is none
//
// The job's state is derived from these and is never itself stored, so nothing has to be updated, locked or repaired:
// a job without an outcome is pending, and its outcome says whether it succeeded or failed. A second message for the
// same job, a second worker on it and a second request for it are all harmless, because the first outcome stands.
//
// <run> tells apart two jobs with one id. That happens when a job that got its id from an idempotency key is deleted,
// and the key is then used again: a worker that was still busy with the first must not leave its outcome to the second.
package job

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"io"
	"strings"
	"time"
)

// Prefixes of the names of a job's objects.
const (
	Inputs  = "jobs/"
	Results = "results/"
)

// State is where a job stands.
type State string

// The states of a job. A pending job waits or runs; the other two are final.
const (
	Pending   State = "pending"
	Succeeded State = "succeeded"
	Failed    State = "failed"
)

// A Handler turns the input of a job into its result, a JSON document of at most MaxResult bytes.
//
// It returns Rejected when the input itself is at fault, so that no retry can help; any other error is retried. It may
// run more than once for one job, even at the same time, so it depends on nothing but its input and has no side effect.
// It returns soon after ctx ends; reading from the input then fails, so a handler that only reads need not look at ctx.
type Handler func(ctx context.Context, in Input) (result []byte, err error)

// MaxResult is the largest result, in bytes. The worker holds a result in memory.
const MaxResult = 16 << 20

// Input is the input of a job. It can be read once.
type Input struct {
	io.Reader
	Size    int64             // bytes
	Options map[string]string // as allowed by the Kind
}

// Kind is a kind of job.
type Kind struct {
	Run Handler
	// Options maps the name of each option to its allowed values. An option that a caller does not give is absent from
	// Input.Options.
	Options map[string][]string
}

// Rejected is the error of a Handler whose input is at fault. Reason is shown to the caller.
type Rejected struct{ Reason string }

func (r Rejected) Error() string { return r.Reason }

// Reject returns a Rejected error with a formatted reason.
func Reject(format string, args ...any) error { return Rejected{fmt.Sprintf(format, args...)} }

// idLen is the length of an id: 130 bits in base32.
const idLen = 26

// NewID returns a random id.
func NewID() string { return rand.Text() }

// KeyedID returns the id that belongs to a caller's idempotency key: the same for the same two, different otherwise.
func KeyedID(caller, key string) string {
	// The lengths keep ("a", "bc") and ("ab", "c") apart.
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s%d:%s", len(caller), caller, len(key), key))
	return base32.StdEncoding.EncodeToString(sum[:])[:idLen]
}

// ValidID reports whether s has the form of an id. Whatever comes from outside has to pass this before it becomes part
// of an object's name: an id holds no separator and no dot, so it cannot point anywhere else.
func ValidID(s string) bool {
	if len(s) != idLen {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// Spec is what a caller asked for.
type Spec struct {
	ID      string
	Run     string
	Kind    string
	Options map[string]string
	Created time.Time
}

// NewSpec returns the Spec of a job that is accepted now.
func NewSpec(id, kind string, options map[string]string) Spec {
	return Spec{ID: id, Run: rand.Text()[:8], Kind: kind, Options: options, Created: time.Now().UTC().Truncate(time.Millisecond)}
}

// InputName returns the name of the input of the job with a valid id.
func InputName(id string) string { return Inputs + id }

// ResultName returns the name of the outcome of s.
func (s Spec) ResultName() string { return Results + s.ID + "-" + s.Run }

// Keys of object metadata. Storage services accept only names that are identifiers, in lower case to be safe.
const (
	metaKind     = "kind"
	metaRun      = "run"
	metaCreated  = "created"
	metaOption   = "option_" // + name
	metaState    = "state"
	metaFinished = "finished"
)

// Meta returns s as the metadata of an input object.
func (s Spec) Meta() map[string]string {
	m := map[string]string{metaKind: s.Kind, metaRun: s.Run, metaCreated: s.Created.Format(time.RFC3339Nano)}
	for k, v := range s.Options {
		m[metaOption+k] = v
	}
	return m
}

// ParseSpec reads the metadata of the input of job id.
func ParseSpec(id string, meta map[string]string) (Spec, error) {
	s := Spec{ID: id, Run: meta[metaRun], Kind: meta[metaKind]}
	var err error
	if s.Created, err = time.Parse(time.RFC3339Nano, meta[metaCreated]); err != nil || s.Run == "" || s.Kind == "" {
		return Spec{}, fmt.Errorf("job %s: input has metadata %q, which are not a job's", id, meta)
	}
	for k, v := range meta {
		if name, ok := strings.CutPrefix(k, metaOption); ok {
			if s.Options == nil {
				s.Options = map[string]string{}
			}
			s.Options[name] = v
		}
	}
	return s, nil
}

// Outcome is how a job ended. The body of its object is the result, or for a failed job the reason.
type Outcome struct {
	State    State // Succeeded or Failed
	Finished time.Time
}

// NewOutcome returns the Outcome of a job that ends now.
func NewOutcome(state State) Outcome {
	return Outcome{State: state, Finished: time.Now().UTC().Truncate(time.Millisecond)}
}

// Meta returns o as the metadata of an outcome object.
func (o Outcome) Meta() map[string]string {
	return map[string]string{metaState: string(o.State), metaFinished: o.Finished.Format(time.RFC3339Nano)}
}

// ParseOutcome reads the metadata of an outcome object.
func ParseOutcome(meta map[string]string) (Outcome, error) {
	o := Outcome{State: State(meta[metaState])}
	var err error
	if o.Finished, err = time.Parse(time.RFC3339Nano, meta[metaFinished]); err != nil || o.State != Succeeded && o.State != Failed {
		return Outcome{}, fmt.Errorf("outcome has metadata %q, which are not an outcome's", meta)
	}
	return o, nil
}
