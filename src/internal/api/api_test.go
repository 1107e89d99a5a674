package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"aks-platform/src/internal/job"
	"aks-platform/src/internal/queue"
	"aks-platform/src/internal/queue/queuetest"
	"aks-platform/src/internal/store"
	"aks-platform/src/internal/store/storetest"
)

const testMaxInput = 1000

// fixture is an API on a directory, with no worker, that a test can break.
type fixture struct {
	API
	t       *testing.T
	queue   *queuetest.Faults
	store   *storetest.Faults
	metrics *prometheus.Registry
	log     *syncBuffer
	url     string
	client  *http.Client
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// serve starts an API. change may alter it before.
func serve(t *testing.T, change func(*fixture)) *fixture {
	t.Helper()
	q, err := queue.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, queue: &queuetest.Faults{Queue: q}, store: &storetest.Faults{Store: s}, metrics: prometheus.NewRegistry(), log: &syncBuffer{}}
	f.API = API{
		Queue: f.queue, Store: f.store,
		Kinds: map[string]job.Kind{
			"digest":      {},
			"csv-profile": {Options: map[string][]string{"delimiter": {"comma", "tab"}}},
		},
		MaxInput: testMaxInput, MaxUploads: 32, Backlog: func() int { return 0 },
		Log: zerolog.New(f.log), Metrics: f.metrics,
	}
	if change != nil {
		change(f)
	}
	srv := httptest.NewServer(f.Handler())
	t.Cleanup(srv.Close)
	f.url, f.client = srv.URL, srv.Client()
	f.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return f
}

// response is an answer that was read.
type response struct {
	*http.Response
	body []byte
}

func (f *fixture) do(method, path string, body io.Reader, header ...string) response {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.url+path, body)
	if err != nil {
		f.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := f.client.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return response{res, b}
}

func (f *fixture) post(body string, header ...string) response {
	f.t.Helper()
	return f.do("POST", "/v1/jobs?kind=digest", strings.NewReader(body), header...)
}

// accepted checks that r is a 202, and returns its job.
func (f *fixture) accepted(r response) Job {
	f.t.Helper()
	var j Job
	if err := json.Unmarshal(r.body, &j); err != nil || r.StatusCode != http.StatusAccepted || r.Header.Get("Location") != "/v1/jobs/"+j.ID || !job.ValidID(j.ID) {
		f.t.Fatalf("got %d, Location %q, %s; want 202", r.StatusCode, r.Header.Get("Location"), r.body)
	}
	return j
}

// wantProblem checks that r is a problem of a status whose detail contains a text.
func (f *fixture) wantProblem(r response, status int, detail string) {
	f.t.Helper()
	var p struct {
		Title, Detail string
		Status        int
		RequestID     string `json:"request_id"`
	}
	err := json.Unmarshal(r.body, &p)
	if err != nil || r.StatusCode != status || p.Status != status || p.Title != http.StatusText(status) || !strings.Contains(p.Detail, detail) ||
		p.RequestID == "" || p.RequestID != r.Header.Get("X-Request-Id") || r.Header.Get("Content-Type") != "application/problem+json" {
		f.t.Errorf("%s %s: got %d %s %s; want a problem %d with %q", r.Request.Method, r.Request.URL, r.StatusCode, r.Header.Get("Content-Type"), r.body, status, detail)
	}
	if retry := r.Header.Get("Retry-After"); status == http.StatusServiceUnavailable && retry == "" {
		f.t.Errorf("%s %s: 503 without Retry-After", r.Request.Method, r.Request.URL)
	}
}

// messages takes all messages from the queue.
func (f *fixture) messages() (bodies []string) {
	f.t.Helper()
	ds, err := f.queue.Queue.Receive(f.t.Context(), 100, time.Hour)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, d := range ds {
		bodies = append(bodies, d.Body)
	}
	return bodies
}

// inputs returns the ids of all jobs in the store.
func (f *fixture) inputs() (ids []string) {
	f.t.Helper()
	infos, err := f.store.Store.List(f.t.Context(), job.Inputs, "", 100)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, i := range infos {
		ids = append(ids, strings.TrimPrefix(i.Name, job.Inputs))
	}
	return ids
}

// finish stores an outcome as a worker would.
func (f *fixture) finish(id string, state job.State, body string) job.Spec {
	f.t.Helper()
	o, err := f.store.Store.Open(f.t.Context(), job.InputName(id))
	if err != nil {
		f.t.Fatal(err)
	}
	defer o.Close()
	spec, err := job.ParseSpec(id, o.Meta)
	if err == nil {
		err = f.store.Store.Create(f.t.Context(), spec.ResultName(), job.NewOutcome(state).Meta(), strings.NewReader(body))
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return spec
}

func TestAccept(t *testing.T) {
	f := serve(t, nil)
	before := time.Now().Add(-time.Second)
	r := f.do("POST", "/v1/jobs?kind=csv-profile&delimiter=tab", strings.NewReader("a\tb\n"))
	j := f.accepted(r)
	if j.Kind != "csv-profile" || j.State != job.Pending || j.Created.Before(before) || j.Created.After(time.Now()) || j.Options["delimiter"] != "tab" || j.Links.Self != "/v1/jobs/"+j.ID || j.Links.Result != "" || j.Finished != nil {
		t.Errorf("accepted %s", r.body)
	}
	if got := f.messages(); !slices.Equal(got, []string{j.ID}) {
		t.Errorf("messages are %q, want %q", got, j.ID)
	}
	o, err := f.store.Store.Open(t.Context(), job.InputName(j.ID))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(o)
	if err := errors.Join(err, o.Close()); err != nil || string(body) != "a\tb\n" {
		t.Errorf("stored %q, %v", body, err)
	}
	// What was answered is what a look at it says.
	got := f.do("GET", j.Links.Self, nil)
	if got.StatusCode != 200 || string(got.body) != string(r.body) || got.Header.Get("Retry-After") == "" {
		t.Errorf("GET: %d %s, want 200 %s and Retry-After", got.StatusCode, got.body, r.body)
	}
}

// Every answer that is no success is a problem.
func TestProblems(t *testing.T) {
	f := serve(t, nil)
	unknown := job.NewID()
	large := strings.Repeat("x", testMaxInput+1)
	chunked := struct{ io.Reader }{strings.NewReader(large)} // hides its length
	for _, c := range []struct {
		name, method, path string
		body               io.Reader
		header             []string
		status             int
		detail             string
	}{
		{"no kind", "POST", "/v1/jobs", strings.NewReader("x"), nil, 400, "want one of csv-profile, digest"},
		{"unknown kind", "POST", "/v1/jobs?kind=image", strings.NewReader("x"), nil, 400, `kind="image"`},
		{"two kinds", "POST", "/v1/jobs?kind=digest&kind=digest", nil, nil, 400, "given 2 times"},
		{"unknown option", "POST", "/v1/jobs?kind=digest&delimiter=tab", nil, nil, 400, `no option "delimiter"`},
		{"bad value of an option", "POST", "/v1/jobs?kind=csv-profile&delimiter=x", nil, nil, 400, "want one of comma, tab"},
		{"malformed query", "POST", "/v1/jobs?kind=digest;x", nil, nil, 400, "malformed"},
		{"empty key", "POST", "/v1/jobs?kind=digest", nil, []string{"Idempotency-Key", ""}, 400, "Idempotency-Key"},
		{"long key", "POST", "/v1/jobs?kind=digest", nil, []string{"Idempotency-Key", strings.Repeat("k", 256)}, 400, "Idempotency-Key"},
		{"key with odd characters", "POST", "/v1/jobs?kind=digest", nil, []string{"Idempotency-Key", "caf\u00e9"}, 400, "Idempotency-Key"},
		{"two keys", "POST", "/v1/jobs?kind=digest", nil, []string{"Idempotency-Key", "a", "Idempotency-Key", "b"}, 400, "Idempotency-Key"},
		{"too large, says so", "POST", "/v1/jobs?kind=digest", strings.NewReader(large), nil, 413, "1000 bytes"},
		{"too large, does not say so", "POST", "/v1/jobs?kind=digest", chunked, nil, 413, "1000 bytes"},
		{"unknown job", "GET", "/v1/jobs/" + unknown, nil, nil, 404, "no such job"},
		{"result of an unknown job", "GET", "/v1/jobs/" + unknown + "/result", nil, nil, 404, "no such job"},
		{"id that leads elsewhere", "GET", "/v1/jobs/..%2Fleak/result", nil, nil, 404, "no such job"},
		{"id that leads elsewhere", "GET", "/v1/jobs/..%2F..%2Fetc%2Fpasswd", nil, nil, 404, "no such job"},
		{"id in lower case", "GET", "/v1/jobs/" + strings.ToLower(unknown), nil, nil, 404, "no such job"},
		{"id with a null", "GET", "/v1/jobs/%00" + unknown[1:], nil, nil, 404, "no such job"},
		{"after is no id", "GET", "/v1/jobs?after=..%2F", nil, nil, 400, "want the id of a job"},
		{"limit too small", "GET", "/v1/jobs?limit=0", nil, nil, 400, "from 1 to 200"},
		{"limit too large", "GET", "/v1/jobs?limit=201", nil, nil, 400, "from 1 to 200"},
		{"limit no number", "GET", "/v1/jobs?limit=x", nil, nil, 400, "from 1 to 200"},
		{"unknown parameter", "GET", "/v1/jobs?state=failed", nil, nil, 400, "no parameter"},
		{"no such path", "GET", "/v2/jobs", nil, nil, 404, "nothing at this path"},
		{"root", "GET", "/", nil, nil, 404, "nothing at this path"},
		{"wrong method", "PUT", "/v1/jobs", nil, nil, 405, "GET, HEAD, POST"},
		{"wrong method", "PATCH", "/v1/jobs/" + unknown, nil, nil, 405, "DELETE, GET, HEAD"},
		{"wrong method", "DELETE", "/v1/jobs/" + unknown + "/result", nil, nil, 405, "GET, HEAD"},
		{"a web page of another origin", "POST", "/v1/jobs?kind=digest", nil, []string{"Sec-Fetch-Site", "cross-site"}, 403, "another origin"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.t = t
			f.wantProblem(f.do(c.method, c.path, c.body, c.header...), c.status, c.detail)
		})
	}
	f.t = t
	if ids, bodies := f.inputs(), f.messages(); len(ids)+len(bodies) != 0 {
		t.Errorf("refused requests left jobs %q and messages %q", ids, bodies)
	}
}

// A file next to the results is not a result, even if a request gets its name right.
func TestNoWayOut(t *testing.T) {
	f := serve(t, nil)
	if err := f.store.Store.Create(t.Context(), "leak/secret", job.NewOutcome(job.Succeeded).Meta(), strings.NewReader("secret")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/jobs/..%2Fleak%2Fsecret/result", "/v1/jobs/..%2Fleak%2Fsecret", "/v1/jobs/..%5Cleak%5Csecret/result", "/v1/jobs/%2e%2e%2fleak%2fsecret/result"} {
		if r := f.do("GET", path, nil); r.StatusCode != 404 || strings.Contains(string(r.body), "secret\"") {
			t.Errorf("GET %s: %d %s", path, r.StatusCode, r.body)
		}
		if r := f.do("DELETE", path, nil); r.StatusCode != 204 && r.StatusCode != 405 {
			t.Errorf("DELETE %s: %d %s", path, r.StatusCode, r.body)
		}
	}
	if o, err := f.store.Store.Open(t.Context(), "leak/secret"); err != nil {
		t.Errorf("the file is gone: %v", err)
	} else if err := o.Close(); err != nil {
		t.Error(err)
	}
}

func TestIdempotencyKey(t *testing.T) {
	f := serve(t, nil)
	const key = "order-17"
	first := f.accepted(f.post("body", "Idempotency-Key", key))
	if again := f.accepted(f.post("body", "Idempotency-Key", key)); again.ID != first.ID || !again.Created.Equal(first.Created) {
		t.Errorf("the repetition is %+v, want %+v", again, first)
	}
	if other := f.accepted(f.post("body", "Idempotency-Key", "order-18")); other.ID == first.ID {
		t.Error("another key got the same job")
	}
	for name, r := range map[string]response{
		"another input of the same length": f.post("ydob", "Idempotency-Key", key),
		"a shorter input":                  f.post("bod", "Idempotency-Key", key),
		"another kind":                     f.do("POST", "/v1/jobs?kind=csv-profile", strings.NewReader("body"), "Idempotency-Key", key),
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			f.wantProblem(r, 422, "idempotency key")
		})
	}
	f.t = t
	f.messages()
	f.finish(first.ID, job.Succeeded, "{}")
	if done := f.accepted(f.post("body", "Idempotency-Key", key)); done.State != job.Succeeded || done.Links.Result == "" {
		t.Errorf("the repetition of a finished job is %+v", done)
	}
	if bodies := f.messages(); len(bodies) != 0 {
		t.Errorf("a finished job was sent again: %q", bodies)
	}
	if n := testutil.ToFloat64(f.counter("jobs_accepted_total")); n != 2 {
		t.Errorf("jobs_accepted_total is %v, want 2", n)
	}
}

// counter returns the metric called name, which must have one time series.
func (f *fixture) counter(name string) prometheus.Collector {
	f.t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name && len(family.Metric) == 1 {
			g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name})
			g.Set(family.Metric[0].GetCounter().GetValue() + family.Metric[0].GetGauge().GetValue())
			return g
		}
	}
	f.t.Fatalf("there is not one time series %s", name)
	return nil
}

// Many repetitions at once are one job, and each is told so.
func TestIdempotencyKeyRace(t *testing.T) {
	f := serve(t, nil)
	var all sync.WaitGroup
	ids := make([]string, 20)
	for i := range ids {
		all.Go(func() {
			r := f.post("body", "Idempotency-Key", "same")
			var j Job
			if err := json.Unmarshal(r.body, &j); err != nil || r.StatusCode != 202 {
				t.Errorf("got %d %s", r.StatusCode, r.body)
			}
			ids[i] = j.ID
		})
	}
	all.Wait()
	if slices.Sort(ids); ids[0] != ids[len(ids)-1] {
		t.Errorf("one key got several jobs: %q", slices.Compact(ids))
	}
	if got := f.inputs(); len(got) != 1 {
		t.Errorf("jobs are %q, want one", got)
	}
}

// The API dies, or the queue fails, after the input is stored and before the message is sent.
func TestSendFails(t *testing.T) {
	down := &atomic.Bool{}
	down.Store(true)
	broken := errors.New("queue is down")
	f := serve(t, func(f *fixture) {
		f.queue.Before = func(op string) error {
			if op == "Send" && down.Load() {
				return broken
			}
			return nil
		}
	})
	f.wantProblem(f.post("body", "Idempotency-Key", "k"), 503, "try again")
	f.wantProblem(f.post("keyless"), 503, "try again")
	ids := f.inputs()
	if len(ids) != 1 || ids[0] != job.KeyedID("", "k") {
		t.Errorf("jobs are %q: the keyless one that nobody can come back to must be gone, the other must stay", ids)
	}
	if !strings.Contains(f.log.String(), broken.Error()) {
		t.Error("the log does not say why")
	}
	down.Store(false)
	j := f.accepted(f.post("body", "Idempotency-Key", "k"))
	if got := f.messages(); !slices.Equal(got, []string{j.ID}) {
		t.Errorf("after the retry, messages are %q, want %q", got, j.ID)
	}
}

// The queue takes the message, but its answer is lost: 503, and the retry is the same job.
func TestSendAnswerLost(t *testing.T) {
	var sent atomic.Int32
	f := serve(t, func(f *fixture) {
		f.queue.After = func(op string) error {
			if op == "Send" && sent.Add(1) == 1 {
				return errors.New("connection reset")
			}
			return nil
		}
	})
	f.wantProblem(f.post("body", "Idempotency-Key", "k"), 503, "try again")
	j := f.accepted(f.post("body", "Idempotency-Key", "k"))
	if got := f.messages(); !slices.Equal(got, []string{j.ID, j.ID}) {
		t.Errorf("messages are %q, want %q twice", got, j.ID)
	}
}

// The disk is full, or the store fails in another way: nothing is accepted, and reading goes on.
func TestStoreFails(t *testing.T) {
	var full atomic.Bool
	f := serve(t, func(f *fixture) {
		f.store.Before = func(op, name string) error {
			if full.Load() && op == "Create" {
				return fmt.Errorf("write %s: %w", name, syscall.ENOSPC)
			}
			return nil
		}
	})
	j := f.accepted(f.post("body"))
	f.messages()
	full.Store(true)
	for _, key := range []string{"a", "b"} {
		f.wantProblem(f.post("body", "Idempotency-Key", key), 503, "try again")
	}
	if bodies, ids := f.messages(), f.inputs(); len(bodies) != 0 || len(ids) != 1 {
		t.Errorf("a full disk accepted messages %q, jobs %q", bodies, ids)
	}
	if r := f.do("GET", j.Links.Self, nil); r.StatusCode != 200 {
		t.Errorf("GET on a full disk: %d %s", r.StatusCode, r.body)
	}
	full.Store(false)
	f.accepted(f.post("body", "Idempotency-Key", "a"))
}

// The input is stored, but the answer of the store is lost.
func TestCreateAnswerLost(t *testing.T) {
	var created atomic.Int32
	f := serve(t, func(f *fixture) {
		f.store.After = func(op, _ string) error {
			if op == "Create" && created.Add(1) == 1 {
				return errors.New("connection reset")
			}
			return nil
		}
	})
	f.wantProblem(f.post("body", "Idempotency-Key", "k"), 503, "try again")
	if got := f.messages(); len(got) != 0 {
		t.Errorf("messages are %q before the job is known to be durable", got)
	}
	j := f.accepted(f.post("body", "Idempotency-Key", "k"))
	if got := f.messages(); !slices.Equal(got, []string{j.ID}) {
		t.Errorf("messages are %q, want %q", got, j.ID)
	}
}

// Everything that reads says 503 when the store does not answer, never 404.
func TestReadingFails(t *testing.T) {
	var down atomic.Bool
	f := serve(t, func(f *fixture) {
		f.store.Before = func(string, string) error {
			if down.Load() {
				return errors.New("store is down")
			}
			return nil
		}
	})
	j := f.accepted(f.post("body", "Idempotency-Key", "k"))
	down.Store(true)
	for _, c := range [][2]string{{"GET", "/v1/jobs"}, {"GET", j.Links.Self}, {"GET", j.Links.Self + "/result"}, {"DELETE", j.Links.Self}} {
		f.wantProblem(f.do(c[0], c[1], nil), 503, "storage")
	}
}

// A client that stops in the middle of its input leaves nothing.
func TestInputEndsEarly(t *testing.T) {
	f := serve(t, nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /v1/jobs?kind=digest HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this much")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
		t.Errorf("got %q, %v, want 400", answer, err)
	}
	if ids, bodies := f.inputs(), f.messages(); len(ids)+len(bodies) != 0 {
		t.Errorf("half an input left jobs %q and messages %q", ids, bodies)
	}
}

// A client that pauses, or trickles, is cut off, and its slot is free again.
func TestSlowInput(t *testing.T) {
	for name, c := range map[string]struct{ idle, total time.Duration }{
		"pauses":   {50 * time.Millisecond, time.Hour},
		"trickles": {time.Hour, 50 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, func(f *fixture) { f.MaxUploads, f.UploadIdle, f.UploadTime = 1, c.idle, c.total })
			conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "POST /v1/jobs?kind=digest HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nx")
			if name == "trickles" {
				go func() {
					for range 800 {
						if _, err := conn.Write([]byte("x")); err != nil {
							return // it is cut off
						}
						time.Sleep(5 * time.Millisecond)
					}
				}()
			}
			if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, len("HTTP/1.1 408 "))
			if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 408 " {
				t.Errorf("got %q, %v, want 408", answer, err)
			}
			if ids := f.inputs(); len(ids) != 0 {
				t.Errorf("half an input left jobs %q", ids)
			}
			poll(t, "the slot is free", func() bool { return f.post("x").StatusCode == 202 })
		})
	}
}

// The time limits of an upload end with it: the connection is good for more requests, and for work that takes longer.
func TestTimeLimitEndsWithUpload(t *testing.T) {
	var slow atomic.Bool
	f := serve(t, func(f *fixture) {
		f.UploadIdle, f.UploadTime = 100*time.Millisecond, 100*time.Millisecond
		f.queue.Before = func(op string) error {
			if slow.Load() {
				time.Sleep(300 * time.Millisecond) // the queue is slow, and the request must not be given up for it
			}
			return nil
		}
	})
	f.accepted(f.post("x"))
	slow.Store(true)
	f.accepted(f.post("y"))
}

// An input that arrives in small pieces, over more requests than there are slots, is turned away and not queued up.
func TestUploadSlots(t *testing.T) {
	// An upload has its slot when the store is asked to take it. Asking the API instead would take a slot itself.
	begun := make(chan struct{}, 100)
	f := serve(t, func(f *fixture) {
		f.MaxUploads = 2
		f.store.Before = func(op, name string) error {
			if op == "Create" {
				begun <- struct{}{}
			}
			return nil
		}
	})
	var all sync.WaitGroup
	release := make(chan struct{})
	for range 2 {
		body := io.MultiReader(strings.NewReader("x"), readerFunc(func([]byte) (int, error) {
			<-release
			return 0, io.EOF
		}))
		all.Go(func() {
			if r := f.do("POST", "/v1/jobs?kind=digest", body); r.StatusCode != 202 {
				t.Errorf("slow upload got %d %s", r.StatusCode, r.body)
			}
		})
	}
	<-begun
	<-begun
	f.wantProblem(f.post("x"), 503, "uploads")
	if r := f.do("GET", "/v1/jobs", nil); r.StatusCode != 200 {
		t.Errorf("GET with all slots taken: %d", r.StatusCode)
	}
	close(release)
	all.Wait()
	f.accepted(f.post("x"))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// poll waits until a condition holds.
func poll(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestBacklog(t *testing.T) {
	var waiting atomic.Int64
	f := serve(t, func(f *fixture) {
		f.MaxBacklog = 10
		f.Backlog = func() int { return int(waiting.Load()) }
	})
	f.accepted(f.post("x"))
	waiting.Store(10)
	f.wantProblem(f.post("x"), 503, "waiting")
	waiting.Store(9)
	f.accepted(f.post("x"))
}

func TestOutcomes(t *testing.T) {
	f := serve(t, nil)
	t.Run("pending", func(t *testing.T) {
		f.t = t
		j := f.accepted(f.post("x"))
		r := f.do("GET", j.Links.Self+"/result", nil)
		f.wantProblem(r, 404, "not finished")
		if r.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	})
	t.Run("succeeded", func(t *testing.T) {
		f.t = t
		j := f.accepted(f.post("x"))
		f.finish(j.ID, job.Succeeded, `{"rows":3}`)
		var got Job
		r := f.do("GET", j.Links.Self, nil)
		if err := json.Unmarshal(r.body, &got); err != nil || got.State != job.Succeeded || got.Finished == nil || got.Reason != "" || got.Links.Result != j.Links.Self+"/result" || r.Header.Get("Retry-After") != "" {
			t.Fatalf("GET: %s", r.body)
		}
		r = f.do("GET", got.Links.Result, nil)
		etag := r.Header.Get("ETag")
		if r.StatusCode != 200 || string(r.body) != `{"rows":3}` || r.Header.Get("Content-Type") != "application/json" || etag == "" || r.ContentLength != 10 {
			t.Errorf("result: %d %v %s", r.StatusCode, r.Header, r.body)
		}
		if r := f.do("GET", got.Links.Result, nil, "If-None-Match", etag); r.StatusCode != 304 || len(r.body) != 0 {
			t.Errorf("result that the client has: %d %s", r.StatusCode, r.body)
		}
		if r := f.do("HEAD", got.Links.Result, nil); r.StatusCode != 200 || r.ContentLength != 10 {
			t.Errorf("HEAD: %d, %d bytes", r.StatusCode, r.ContentLength)
		}
	})
	t.Run("failed", func(t *testing.T) {
		f.t = t
		j := f.accepted(f.post("x"))
		f.finish(j.ID, job.Failed, "line 3: 2 fields\xff"+strings.Repeat("!", 2*maxReason))
		var got Job
		r := f.do("GET", j.Links.Self, nil)
		if err := json.Unmarshal(r.body, &got); err != nil || got.State != job.Failed || !strings.HasPrefix(got.Reason, "line 3: 2 fields\uFFFD!") || len(got.Reason) > maxReason+3 || got.Links.Result != "" {
			t.Errorf("GET: %.200s", r.body)
		}
		f.wantProblem(f.do("GET", j.Links.Self+"/result", nil), 409, "line 3")
	})
}

// A result that cannot be read to its end must not look like one that can.
func TestResultCut(t *testing.T) {
	f := serve(t, func(f *fixture) {
		inner := f.store.Store
		f.Store = openFunc{inner, func(o *store.Object) {
			if strings.HasPrefix(o.Name, job.Results) {
				o.ReadCloser = io.NopCloser(io.MultiReader(io.LimitReader(o.ReadCloser, 5), iotest.ErrReader(errors.New("disk error"))))
			}
		}}
	})
	j := f.accepted(f.post("x"))
	f.finish(j.ID, job.Succeeded, `{"a":"long enough"}`)
	res, err := f.client.Get(f.url + j.Links.Self + "/result")
	if err == nil {
		var body []byte
		body, err = io.ReadAll(res.Body)
		if err == nil {
			t.Errorf("half a result, %q, came without an error", body)
		}
		if err := res.Body.Close(); err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(f.log.String(), "disk error") {
		t.Error("the log does not say why")
	}
}

// openFunc is a store that changes the objects it opens.
type openFunc struct {
	store.Store
	change func(*store.Object)
}

func (s openFunc) Open(ctx context.Context, name string) (*store.Object, error) {
	o, err := s.Store.Open(ctx, name)
	if err == nil {
		s.change(o)
	}
	return o, err
}

func TestDelete(t *testing.T) {
	f := serve(t, nil)
	j := f.accepted(f.post("x", "Idempotency-Key", "k"))
	spec := f.finish(j.ID, job.Succeeded, "{}")
	for range 2 {
		if r := f.do("DELETE", j.Links.Self, nil); r.StatusCode != 204 || len(r.body) != 0 {
			t.Errorf("DELETE: %d %s", r.StatusCode, r.body)
		}
	}
	f.wantProblem(f.do("GET", j.Links.Self, nil), 404, "no such job")
	f.wantProblem(f.do("GET", j.Links.Self+"/result", nil), 404, "no such job")
	if _, err := f.store.Store.Open(t.Context(), spec.ResultName()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the outcome is still there: %v", err)
	}
	// A worker that was still busy leaves its outcome; the key is used again, for something else.
	if err := f.store.Store.Create(t.Context(), spec.ResultName(), job.NewOutcome(job.Succeeded).Meta(), strings.NewReader(`"old"`)); err != nil {
		t.Fatal(err)
	}
	again := f.accepted(f.post("something else", "Idempotency-Key", "k"))
	if again.ID != j.ID || again.State != job.Pending {
		t.Errorf("the new job is %+v, want the same id, pending", again)
	}
	f.wantProblem(f.do("GET", again.Links.Self+"/result", nil), 404, "not finished")
	for _, id := range []string{job.NewID(), "..%2Fleak"} {
		if r := f.do("DELETE", "/v1/jobs/"+id, nil); r.StatusCode != 204 {
			t.Errorf("DELETE of no job: %d %s", r.StatusCode, r.body)
		}
	}
}

func TestListing(t *testing.T) {
	f := serve(t, nil)
	var page Jobs
	get := func(path string) {
		t.Helper()
		page = Jobs{}
		r := f.do("GET", path, nil)
		if err := json.Unmarshal(r.body, &page); err != nil || r.StatusCode != 200 {
			t.Fatalf("GET %s: %d %s", path, r.StatusCode, r.body)
		}
	}
	if get("/v1/jobs"); page.Jobs == nil || len(page.Jobs) != 0 || page.Next != "" {
		t.Errorf("empty listing is %+v", page)
	}
	want := map[string]job.State{}
	for i := range 11 {
		j := f.accepted(f.post(fmt.Sprint(i)))
		want[j.ID] = job.Pending
		if i%2 == 0 {
			f.finish(j.ID, job.Failed, "no")
			want[j.ID] = job.Failed
		}
	}
	if err := f.store.Store.Create(t.Context(), job.InputName(job.NewID()), nil, strings.NewReader("not a job")); err != nil {
		t.Fatal(err)
	}
	got := map[string]job.State{}
	last := ""
	for path := "/v1/jobs?limit=4"; ; path = "/v1/jobs?limit=4&after=" + page.Next {
		get(path)
		for _, j := range page.Jobs {
			if j.ID <= last {
				t.Errorf("%s comes after %s", j.ID, last)
			}
			last = j.ID
			got[j.ID] = j.State
		}
		if page.Next == "" {
			break
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	if !strings.Contains(f.log.String(), "left out of a listing") {
		t.Error("the log does not tell of what is no job")
	}
}

// What clients send does not become time series, and each request is one line in the log.
func TestObserved(t *testing.T) {
	f := serve(t, nil)
	j := f.accepted(f.post("x", "X-Request-Id", "trace-1"))
	f.do("GET", j.Links.Self, nil, "X-Request-Id", "bad\tid")
	for range 20 {
		f.do("GET", "/v1/jobs/"+rand.Text(), nil)
		f.do("GET", "/"+rand.Text(), nil)
		f.do("M"+rand.Text()[:8], "/v1/jobs", nil)
	}
	if err := testutil.GatherAndCompare(f.metrics, strings.NewReader(`
# HELP http_requests_total Requests that were answered. The route is the pattern that matched, never the path.
# TYPE http_requests_total counter
http_requests_total{code="202",method="POST",route="/v1/jobs"} 1
http_requests_total{code="200",method="GET",route="/v1/jobs/{id}"} 1
http_requests_total{code="404",method="GET",route="/v1/jobs/{id}"} 20
http_requests_total{code="404",method="GET",route="/"} 20
http_requests_total{code="405",method="other",route="/v1/jobs"} 20
`), "http_requests_total"); err != nil {
		t.Error(err)
	}
	lines := strings.Split(strings.TrimSpace(f.log.String()), "\n")
	if len(lines) != 62 {
		t.Errorf("%d lines for 62 requests", len(lines))
	}
	var first struct {
		Method, Path, Route, Caller string
		RequestID                   string `json:"request_id"`
		Status                      int
		Bytes                       int64
	}
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil || first.Method != "POST" || first.Path != "/v1/jobs" || first.Route != "/v1/jobs" || first.Status != 202 || first.Bytes == 0 || first.RequestID != "trace-1" {
		t.Errorf("first line is %s", lines[0])
	}
	if strings.Contains(f.log.String(), `bad\tid`) {
		t.Error("the log repeats a malformed request id")
	}
}

func TestPanic(t *testing.T) {
	f := serve(t, func(f *fixture) {
		f.store.Before = func(string, string) error { panic("a bug") }
	})
	r := f.do("GET", "/v1/jobs", nil)
	if r.StatusCode != 500 || r.Header.Get("Content-Type") != "application/problem+json" || strings.Contains(string(r.body), "a bug") {
		t.Errorf("got %d %s", r.StatusCode, r.body)
	}
	if !strings.Contains(f.log.String(), `"panic":"a bug"`) || !strings.Contains(f.log.String(), "api_test.go") {
		t.Errorf("the log does not show where: %s", f.log)
	}
}
