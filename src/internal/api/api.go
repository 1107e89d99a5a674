// Package api accepts jobs over HTTP and tells how they are.
//
//	POST   /v1/jobs?kind=K        the body is the input. 202 with the job and its Location; 400 unknown kind or option;
//	                              413 too large; 422 idempotency key used for another job; 503 try later
//	GET    /v1/jobs/{id}          200 with the job; 404
//	GET    /v1/jobs/{id}/result   200 with the result; 404 unknown or not finished; 409 the job failed
//	GET    /v1/jobs?after=&limit= 200 with jobs in the order of their ids, and where to go on
//	DELETE /v1/jobs/{id}          204, whether there was one or not; a job that waits is never run
//
// # Accepting
//
// 202 means that the job is durable: its input is stored and its message is queued, in this order. If a request fails
// in between, or its answer is lost, the client may repeat it. With an Idempotency-Key header the repetition is the
// same job however often it comes, because the id is derived from the key; it completes whatever the first try left
// undone. Without one it is another job.
//
// # Errors
//
// Every error is an application/problem+json document (RFC 9457). 503 comes with Retry-After, and means that nothing
// was accepted.
//
// # Callers
//
// With Keys, each request carries `Authorization: Bearer <key>`. Every caller sees every job. Only the idempotency keys
// of two callers are kept apart.
package api

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"aks-platform/src/internal/job"
	"aks-platform/src/internal/queue"
	"aks-platform/src/internal/store"
)

// API is the HTTP face of the platform. All fields are required unless they say otherwise.
type API struct {
	Queue queue.Queue
	Store store.Store
	Kinds map[string]job.Kind
	// MaxInput is the size of the largest input, in bytes.
	MaxInput int64
	// MaxUploads is how many inputs are received at the same time. More are told to come back.
	MaxUploads int
	// UploadIdle is how long an upload may pause, and UploadTime how long it may take in all. A client that stops sending,
	// or sends a byte now and then, holds one of few slots. 30 s and 10 min if zero.
	UploadIdle, UploadTime time.Duration
	// MaxBacklog is how many messages may wait before new jobs are told to come back. Zero means any number.
	MaxBacklog int
	// Backlog returns how many messages wait, as far as is known. It is called for each new job.
	Backlog func() int
	// Keys are the callers' keys. Without them, anybody may call.
	Keys    *Keys
	Log     zerolog.Logger
	Metrics prometheus.Registerer
}

const (
	// maxKey is the length of the longest idempotency key.
	maxKey = 255
	// maxReason bounds how much of the reason for a failure is shown, in bytes.
	maxReason = 4 << 10
	// defaultLimit and maxLimit are how many jobs one listing returns.
	defaultLimit, maxLimit = 50, 200
)

// server is an API that serves.
type server struct {
	API
	slots   chan struct{}
	metrics metrics
}

// Handler returns the routes of a.
func (a API) Handler() http.Handler {
	a.UploadIdle, a.UploadTime = cmp.Or(a.UploadIdle, 30*time.Second), cmp.Or(a.UploadTime, 10*time.Minute)
	s := &server{API: a, slots: make(chan struct{}, a.MaxUploads), metrics: newMetrics(a.Metrics)}
	mux := http.NewServeMux()
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.Handle(pattern, s.authenticated(s.errors(h)))
	}
	handle("POST /v1/jobs", s.create)
	handle("GET /v1/jobs", s.list)
	handle("GET /v1/jobs/{id}", s.get)
	handle("DELETE /v1/jobs/{id}", s.remove)
	handle("GET /v1/jobs/{id}/result", s.result)
	// The rest of what these paths and all other paths get, as problems too.
	handle("/v1/jobs", wrongMethod("GET, HEAD, POST"))
	handle("/v1/jobs/{id}", wrongMethod("DELETE, GET, HEAD"))
	handle("/v1/jobs/{id}/result", wrongMethod("GET, HEAD"))
	handle("/", func(http.ResponseWriter, *http.Request) error {
		return problem{Status: http.StatusNotFound, Detail: "there is nothing at this path"}
	})
	// A web page must not use a browser to reach an API that trusts its network.
	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(s.errors(func(http.ResponseWriter, *http.Request) error {
		return problem{Status: http.StatusForbidden, Detail: "requests from web pages of another origin are not allowed"}
	}))
	return s.observed(sameOrigin.Handler(mux))
}

// Job is a job as its callers see it.
type Job struct {
	ID       string            `json:"id"`
	Kind     string            `json:"kind"`
	Options  map[string]string `json:"options,omitempty"`
	State    job.State         `json:"state"`
	Created  time.Time         `json:"created"`
	Finished *time.Time        `json:"finished,omitempty"`
	// Reason says why the job failed. Listings leave it out.
	Reason string `json:"reason,omitempty"`
	Links  Links  `json:"links"`
}

// Links are the paths of a job.
type Links struct {
	Self string `json:"self"`
	// Result is there once the job has succeeded.
	Result string `json:"result,omitempty"`
}

// Jobs is a page of a listing.
type Jobs struct {
	Jobs []Job `json:"jobs"`
	// Next is the value of after for the next page; there is none on the last page.
	Next string `json:"next,omitempty"`
}

func jobPath(id string) string { return "/v1/jobs/" + id }

// describe returns the job of spec, and how it ended if it did.
func describe(spec job.Spec, o *job.Outcome) Job {
	j := Job{ID: spec.ID, Kind: spec.Kind, Options: spec.Options, State: job.Pending, Created: spec.Created, Links: Links{Self: jobPath(spec.ID)}}
	if o != nil {
		j.State, j.Finished = o.State, &o.Finished
	}
	if j.State == job.Succeeded {
		j.Links.Result = jobPath(spec.ID) + "/result"
	}
	return j
}

func (s *server) create(w http.ResponseWriter, r *http.Request) error {
	kind, options, err := s.parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	id, keyed, err := newID(r)
	if err != nil {
		return err
	}
	if r.ContentLength > s.MaxInput {
		return s.tooLarge()
	}
	if s.MaxBacklog > 0 && s.Backlog() >= s.MaxBacklog {
		return busy("too many jobs are waiting", 30*time.Second)
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return busy("too many uploads are in progress", 2*time.Second)
	}

	spec := job.NewSpec(id, kind, options)
	in := s.newUpload(w, r)
	err = s.Store.Create(r.Context(), job.InputName(id), spec.Meta(), in)
	replay := errors.Is(err, store.ErrExists)
	if replay {
		_, err = io.Copy(io.Discard, in) // the store need not have read all of it
	}
	if in.err != nil {
		// The rest of the input is not wanted. The time limit stays, or the server would wait for it.
		w.Header().Set("Connection", "close")
		return s.inputError(in.err)
	}
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	var outcome *job.Outcome
	if replay {
		if spec, err = s.same(r.Context(), spec, in); err != nil {
			return err
		}
		if outcome, _, err = s.outcome(r.Context(), spec, nil); err != nil {
			return err
		}
	}
	// A repetition sends again, because the first try may have ended before it could. A message too many does no harm.
	if outcome == nil {
		if err := s.Queue.Send(r.Context(), id); err != nil {
			if !keyed {
				// The client cannot come back to this job, so do not leave it for anybody to find and run.
				s.discard(r.Context(), id)
			}
			return fmt.Errorf("send: %w", err)
		}
	}
	if !replay {
		s.metrics.accepted.WithLabelValues(kind).Inc()
	}
	w.Header().Set("Location", jobPath(id))
	return reply(w, http.StatusAccepted, describe(spec, outcome))
}

// parseQuery returns the kind and the options of a new job.
func (s *server) parseQuery(raw string) (kind string, options map[string]string, err error) {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return "", nil, badRequest("the query is malformed")
	}
	for name, values := range query {
		if len(values) > 1 {
			return "", nil, badRequest("%.40q is given %d times", name, len(values))
		}
	}
	kind = query.Get("kind")
	k, ok := s.Kinds[kind]
	if !ok {
		return "", nil, badRequest("kind=%.40q: want one of %s", kind, strings.Join(slices.Sorted(maps.Keys(s.Kinds)), ", "))
	}
	delete(query, "kind")
	for name, values := range query {
		allowed, ok := k.Options[name]
		if !ok {
			return "", nil, badRequest("a job of kind %s has no option %.40q", kind, name)
		}
		if !slices.Contains(allowed, values[0]) {
			return "", nil, badRequest("%s=%.40q: want one of %s", name, values[0], strings.Join(allowed, ", "))
		}
		if options == nil {
			options = map[string]string{}
		}
		options[name] = values[0]
	}
	return kind, options, nil
}

// newID returns the id for a new job, and whether it comes from an idempotency key.
func newID(r *http.Request) (id string, keyed bool, err error) {
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return job.NewID(), false, nil
	}
	key := keys[0]
	printable := !strings.ContainsFunc(key, func(c rune) bool { return c < ' ' || c > '~' })
	if len(keys) > 1 || key == "" || len(key) > maxKey || !printable {
		return "", false, badRequest("Idempotency-Key: want one value of 1 to %d printable ASCII characters", maxKey)
	}
	return job.KeyedID(caller(r.Context()), key), true, nil
}

// inputError returns the answer to an input that did not arrive.
func (s *server) inputError(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return s.tooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return problem{Status: http.StatusRequestTimeout, Detail: "the input took too long to arrive"}
	}
	return badRequest("the input ended early")
}

func (s *server) tooLarge() error {
	return problem{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the input is larger than %d bytes", s.MaxInput)}
}

// same returns the job that is stored under the id of spec if it is the one that spec and in ask for.
func (s *server) same(ctx context.Context, spec job.Spec, in *upload) (job.Spec, error) {
	o, err := s.Store.Open(ctx, job.InputName(spec.ID))
	if err != nil {
		return spec, fmt.Errorf("replay: %w", err) // also if it was deleted just now: the next try creates it
	}
	defer o.Close()
	stored, err := job.ParseSpec(spec.ID, o.Meta)
	if err != nil {
		return spec, err
	}
	sum := sha256.New()
	same := stored.Kind == spec.Kind && maps.Equal(stored.Options, spec.Options) && o.Size == in.size
	if same {
		if _, err := io.Copy(sum, o); err != nil {
			return spec, fmt.Errorf("replay: %w", err)
		}
		same = string(sum.Sum(nil)) == string(in.sum.Sum(nil))
	}
	if !same {
		return spec, problem{Status: http.StatusUnprocessableEntity, Detail: "the idempotency key was used for a job of another kind, with other options or another input"}
	}
	return stored, nil
}

// discard deletes a job that was not accepted after all. If that fails too, a sweep runs the job later.
func (s *server) discard(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.Store.Delete(ctx, job.InputName(id)); err != nil {
		s.Log.Warn().Err(err).Str("job", id).Msg("input of a job that was not accepted stays behind")
	}
}

// spec returns the job that the path of r names.
func (s *server) spec(r *http.Request) (job.Spec, error) {
	id := r.PathValue("id")
	if !job.ValidID(id) {
		return job.Spec{}, errNoJob
	}
	o, err := s.Store.Open(r.Context(), job.InputName(id))
	if errors.Is(err, store.ErrNotFound) {
		return job.Spec{}, errNoJob
	} else if err != nil {
		return job.Spec{}, err
	}
	if err := o.Close(); err != nil {
		return job.Spec{}, err
	}
	return job.ParseSpec(id, o.Meta)
}

var errNoJob = problem{Status: http.StatusNotFound, Detail: "there is no such job"}

// outcome returns how a job ended, or nil if it did not. If read is not nil, it is called with the outcome's object.
func (s *server) outcome(ctx context.Context, spec job.Spec, read func(job.Outcome, *store.Object) error) (*job.Outcome, bool, error) {
	o, err := s.Store.Open(ctx, spec.ResultName())
	if errors.Is(err, store.ErrNotFound) {
		return nil, false, nil
	} else if err != nil {
		return nil, false, err
	}
	defer o.Close()
	out, err := job.ParseOutcome(o.Meta)
	if err == nil && read != nil {
		err = read(out, o)
	}
	return &out, true, err
}

// reason returns why a job failed.
func reason(o io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(o, maxReason))
	return strings.ToValidUTF8(string(text), "\uFFFD"), err
}

func (s *server) get(w http.ResponseWriter, r *http.Request) error {
	spec, err := s.spec(r)
	if err != nil {
		return err
	}
	var why string
	out, finished, err := s.outcome(r.Context(), spec, func(out job.Outcome, o *store.Object) (err error) {
		if out.State == job.Failed {
			why, err = reason(o)
		}
		return err
	})
	if err != nil {
		return err
	}
	j := describe(spec, out)
	j.Reason = why
	if !finished {
		w.Header().Set("Retry-After", "1")
	}
	return reply(w, http.StatusOK, j)
}

func (s *server) result(w http.ResponseWriter, r *http.Request) error {
	spec, err := s.spec(r)
	if err != nil {
		return err
	}
	_, finished, err := s.outcome(r.Context(), spec, func(out job.Outcome, o *store.Object) error {
		if out.State == job.Failed {
			why, err := reason(o)
			if err != nil {
				return err
			}
			return problem{Status: http.StatusConflict, Detail: "the job failed: " + why}
		}
		etag := `"` + spec.Run + `"` // the result of this run never changes
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.FormatInt(o.Size, 10))
		if r.Method == http.MethodHead {
			return nil
		}
		if _, err := io.Copy(w, o); err != nil {
			// The status is sent; a cut connection is the only way left to say that this is not all.
			s.Log.Warn().Err(err).Str("job", spec.ID).Msg("result was not sent whole")
			panic(http.ErrAbortHandler)
		}
		return nil
	})
	if err == nil && !finished {
		w.Header().Set("Retry-After", "1")
		return problem{Status: http.StatusNotFound, Detail: "the job has not finished yet"}
	}
	return err
}

func (s *server) list(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("the query is malformed")
	}
	after, limit := "", defaultLimit
	for name, values := range query {
		switch v := values[0]; {
		case len(values) > 1:
			return badRequest("%.40q is given %d times", name, len(values))
		case name == "after":
			if !job.ValidID(v) {
				return badRequest("after=%.40q: want the id of a job", v)
			}
			after = v
		case name == "limit":
			if limit, err = strconv.Atoi(v); err != nil || limit < 1 || limit > maxLimit {
				return badRequest("limit=%.40q: want a number from 1 to %d", v, maxLimit)
			}
		default:
			return badRequest("a listing has no parameter %.40q", name)
		}
	}
	entries, next, err := job.List(r.Context(), s.Store, after, limit)
	if err != nil {
		return err
	}
	page := Jobs{Jobs: []Job{}, Next: next}
	for _, e := range entries {
		if e.Err != nil {
			s.Log.Error().Err(e.Err).Str("job", e.ID).Msg("left out of a listing")
			continue
		}
		page.Jobs = append(page.Jobs, describe(e.Spec, e.Outcome))
	}
	return reply(w, http.StatusOK, page)
}

func (s *server) remove(w http.ResponseWriter, r *http.Request) error {
	spec, err := s.spec(r)
	if errors.Is(err, errNoJob) {
		w.WriteHeader(http.StatusNoContent)
		return nil
	} else if err != nil {
		return err
	}
	// The input first: without it there is no job, whatever else is left.
	for _, name := range []string{job.InputName(spec.ID), spec.ResultName()} {
		if err := s.Store.Delete(r.Context(), name); err != nil {
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// upload is the body of a request on its way to the store. It remembers what it was, and what went wrong on the side of
// the client.
type upload struct {
	body io.Reader
	conn *http.ResponseController
	sum  hash.Hash
	size int64
	idle time.Duration
	end  time.Time
	err  error // from the client
}

func (s *server) newUpload(w http.ResponseWriter, r *http.Request) *upload {
	return &upload{
		body: http.MaxBytesReader(w, r.Body, s.MaxInput),
		conn: http.NewResponseController(w),
		sum:  sha256.New(),
		idle: s.UploadIdle,
		end:  time.Now().Add(s.UploadTime),
	}
}

// Read limits its own time. The server lifts the limit at the end of the body.
func (u *upload) Read(p []byte) (int, error) {
	deadline := time.Now().Add(u.idle)
	if deadline.After(u.end) {
		deadline = u.end
	}
	if err := u.conn.SetReadDeadline(deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	n, err := u.body.Read(p)
	u.sum.Write(p[:n])
	u.size += int64(n)
	if err != nil && err != io.EOF {
		u.err = err
	}
	return n, err
}
