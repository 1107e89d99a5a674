package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
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

// fixture is a worker on a directory that a test can break.
type fixture struct {
	t     *testing.T
	queue *queuetest.Faults
	store *storetest.Faults
	log   *syncBuffer
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

func newFixture(t *testing.T) *fixture {
	t.Helper()
	q, err := queue.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{t: t, queue: &queuetest.Faults{Queue: q}, store: &storetest.Faults{Store: s}, log: &syncBuffer{}}
}

// worker returns a worker for jobs of one kind, "test". It is in a hurry; change may alter it.
func (f *fixture) worker(run job.Handler, change func(*Config)) *Worker {
	c := Config{
		Queue: f.queue, Store: f.store, Kinds: map[string]job.Kind{"test": {Run: run}},
		Concurrency: 4, MaxAttempts: 3, Lease: 10 * time.Second, Timeout: 10 * time.Second, Grace: 5 * time.Second,
		Backoff: 5 * time.Millisecond, StopTime: 50 * time.Millisecond, SweepEvery: time.Hour, SweepAge: time.Hour,
		Log: zerolog.New(f.log), Metrics: prometheus.NewRegistry(),
	}
	if change != nil {
		change(&c)
	}
	return New(c)
}

// start runs w. stop tells it to stop and waits until it has; it is also called at the end of the test.
func (f *fixture) start(w *Worker) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		w.Run(ctx)
	}()
	stop = func() {
		cancel()
		select {
		case <-stopped:
		case <-time.After(20 * time.Second):
			buf := make([]byte, 1<<20)
			f.t.Errorf("the worker does not stop:\n%s", buf[:runtime.Stack(buf, true)])
		}
	}
	f.t.Cleanup(stop)
	return stop
}

// put stores a job with no message.
func (f *fixture) put(kind, input string) job.Spec {
	f.t.Helper()
	return f.putAs(job.NewSpec(job.NewID(), kind, nil), input)
}

func (f *fixture) putAs(spec job.Spec, input string) job.Spec {
	f.t.Helper()
	if err := f.store.Store.Create(context.Background(), job.InputName(spec.ID), spec.Meta(), strings.NewReader(input)); err != nil {
		f.t.Fatal(err)
	}
	return spec
}

func (f *fixture) send(body string) {
	f.t.Helper()
	if err := f.queue.Queue.Send(context.Background(), body); err != nil {
		f.t.Fatal(err)
	}
}

// accept does what the API does.
func (f *fixture) accept(input string) job.Spec {
	f.t.Helper()
	spec := f.put("test", input)
	f.send(spec.ID)
	return spec
}

// outcome returns the outcome of a job, or "" if it has none.
func (f *fixture) outcome(spec job.Spec) (state job.State, body string) {
	f.t.Helper()
	o, err := f.store.Store.Open(context.Background(), spec.ResultName())
	if errors.Is(err, store.ErrNotFound) {
		return "", ""
	} else if err != nil {
		f.t.Fatal(err)
	}
	defer o.Close()
	out, err := job.ParseOutcome(o.Meta)
	if err != nil {
		f.t.Fatal(err)
	}
	b, err := io.ReadAll(o)
	if err != nil {
		f.t.Fatal(err)
	}
	return out.State, string(b)
}

// wantOutcome waits until a job has an outcome, and checks it. The body has to contain the text.
func (f *fixture) wantOutcome(spec job.Spec, state job.State, text string) {
	f.t.Helper()
	f.poll("there is an outcome", func() bool {
		s, _ := f.outcome(spec)
		return s != ""
	})
	if s, body := f.outcome(spec); s != state || !strings.Contains(body, text) {
		f.t.Errorf("job %s with %q, want %s with %q", s, body, state, text)
	}
}

func (f *fixture) poll(what string, cond func() bool) {
	f.t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("waited in vain until %s; log:\n%s", what, f.log)
		}
	}
}

func (f *fixture) messages() int {
	f.t.Helper()
	n, err := f.queue.Queue.Len(context.Background())
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// wantEmpty waits until the queue is empty.
func (f *fixture) wantEmpty() {
	f.t.Helper()
	f.poll("the queue is empty", func() bool { return f.messages() == 0 })
}

// wantAttempts waits until the worker has counted as many attempts with these results, and no others.
func (f *fixture) wantAttempts(w *Worker, want map[string]float64) {
	f.t.Helper()
	var got map[string]float64
	f.poll(fmt.Sprintf("attempts are %v", want), func() bool {
		got = map[string]float64{}
		total := 0.0
		for _, result := range []string{done, rejected, retried, timedOut, gaveUp, lost, released, dropped, duplicate} {
			for _, kind := range []string{"test", "unknown"} {
				if n := testutil.ToFloat64(w.metrics.attempts.WithLabelValues(kind, result)); n > 0 {
					got[result] += n
					total += n
				}
			}
		}
		sum := 0.0
		for _, n := range want {
			sum += n
		}
		return total >= sum
	})
	if fmt.Sprint(got) != fmt.Sprint(want) {
		f.t.Errorf("attempts are %v, want %v", got, want)
	}
}

// echo is a handler that returns its input as a JSON string.
func echo(_ context.Context, in job.Input) ([]byte, error) {
	b, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	return json.Marshal(string(b))
}

func TestSucceeds(t *testing.T) {
	f := newFixture(t)
	w := f.worker(func(ctx context.Context, in job.Input) ([]byte, error) {
		if in.Size != 5 || in.Options["a"] != "b" {
			return nil, fmt.Errorf("input has %d bytes and options %v", in.Size, in.Options)
		}
		return echo(ctx, in)
	}, nil)
	f.start(w)
	spec := f.putAs(job.NewSpec(job.NewID(), "test", map[string]string{"a": "b"}), "hello")
	f.send(spec.ID)
	f.wantOutcome(spec, job.Succeeded, `"hello"`)
	f.wantEmpty()
	f.wantAttempts(w, map[string]float64{done: 1})
	if n := testutil.ToFloat64(w.metrics.finished.WithLabelValues("test", "succeeded")); n != 1 {
		t.Errorf("jobs_finished_total is %v", n)
	}
}

func TestRejected(t *testing.T) {
	f := newFixture(t)
	w := f.worker(func(context.Context, job.Input) ([]byte, error) {
		return nil, fmt.Errorf("in the handler: %w", job.Reject("line %d: no", 3))
	}, nil)
	f.start(w)
	spec := f.accept("x")
	f.wantOutcome(spec, job.Failed, "line 3: no")
	if _, body := f.outcome(spec); body != "line 3: no" {
		t.Errorf("the reason is %q", body)
	}
	f.wantEmpty()
	f.wantAttempts(w, map[string]float64{rejected: 1})
}

// An error that passes costs attempts and nothing else.
func TestRetries(t *testing.T) {
	f := newFixture(t)
	var calls atomic.Int32
	w := f.worker(func(ctx context.Context, in job.Input) ([]byte, error) {
		switch calls.Add(1) {
		case 1:
			return nil, errors.New("not yet")
		case 2:
			panic("not yet")
		}
		return echo(ctx, in)
	}, nil)
	f.start(w)
	spec := f.accept("hello")
	f.wantOutcome(spec, job.Succeeded, "hello")
	f.wantEmpty()
	f.wantAttempts(w, map[string]float64{retried: 2, done: 1})
}

func TestGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		run  job.Handler
		want string
	}{
		"error":          {func(context.Context, job.Input) ([]byte, error) { return nil, errors.New("never") }, "gave up after 3 attempts; the last one: never"},
		"panic":          {func(context.Context, job.Input) ([]byte, error) { panic("boom") }, "panic: boom"},
		"nil map":        {func(context.Context, job.Input) ([]byte, error) { var m map[string]int; m["x"] = 1; return nil, nil }, "nil map"},
		"goexit":         {func(context.Context, job.Input) ([]byte, error) { runtime.Goexit(); return nil, nil }, "ended its goroutine"},
		"not JSON":       {func(context.Context, job.Input) ([]byte, error) { return []byte("{"), nil }, "not JSON"},
		"nothing":        {func(context.Context, job.Input) ([]byte, error) { return nil, nil }, "not JSON"},
		"more than fits": {func(context.Context, job.Input) ([]byte, error) { return make([]byte, job.MaxResult+1), nil }, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			w := f.worker(c.run, nil)
			f.start(w)
			bad := f.accept("bad")
			f.wantOutcome(bad, job.Failed, c.want)
			f.wantEmpty()
			if name == "more than fits" {
				f.wantAttempts(w, map[string]float64{rejected: 1})
			} else {
				f.wantAttempts(w, map[string]float64{retried: 2, gaveUp: 1})
			}
			if err := w.Alive(); err != nil {
				t.Errorf("the worker is not well: %v", err)
			}
			if name == "panic" && !strings.Contains(f.log.String(), "worker_test.go") {
				t.Error("the log does not show where the handler panicked")
			}
		})
	}
}

// A handler that heeds its context is stopped in time, and so is one that only reads.
func TestHangs(t *testing.T) {
	for name, run := range map[string]job.Handler{
		"waits for its context": func(ctx context.Context, _ job.Input) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"reads for ever": func(_ context.Context, in job.Input) ([]byte, error) {
			for {
				if _, err := in.Read(make([]byte, 1)); err != nil && err != io.EOF {
					return nil, err
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			w := f.worker(run, func(c *Config) { c.Timeout, c.StopTime = 30*time.Millisecond, 10*time.Second })
			f.start(w)
			spec := f.accept("x")
			f.wantOutcome(spec, job.Failed, "took too long: more than 30ms")
			f.wantEmpty()
			f.wantAttempts(w, map[string]float64{timedOut: 2, gaveUp: 1})
			if n := w.stuck.Load(); n != 0 {
				t.Errorf("%d handlers are stuck", n)
			}
		})
	}
}

// A handler that heeds nothing is left to itself. Its job is given up in time, other jobs run on, its late result is
// ignored, and when all slots are taken by its like, the worker says that it needs a restart.
func TestIgnoresItsContext(t *testing.T) {
	f := newFixture(t)
	release := make(chan struct{})
	var stuck atomic.Int32
	w := f.worker(func(ctx context.Context, in job.Input) ([]byte, error) {
		b, err := io.ReadAll(in)
		if string(b) != "hang" {
			return []byte(`"fine"`), err
		}
		stuck.Add(1)
		<-release
		return []byte(`"late"`), nil
	}, func(c *Config) {
		c.Concurrency, c.MaxAttempts, c.Timeout, c.StopTime = 3, 2, 20*time.Millisecond, 10*time.Millisecond
	})
	stop := f.start(w)
	hang := f.accept("hang")
	f.wantOutcome(hang, job.Failed, "gave up after 2 attempts")
	if stuck.Load() != 2 || w.Alive() != nil {
		t.Errorf("%d handlers hang, and the worker says %v; want 2 of 3, and nil", stuck.Load(), w.Alive())
	}
	fine := f.accept("fine")
	f.wantOutcome(fine, job.Succeeded, "fine")
	f.accept("hang")
	f.poll("the worker asks for a restart", func() bool { return w.Alive() != nil })
	if n := len(w.slots); n != 3 {
		t.Errorf("%d slots are taken by 3 handlers that hang", n)
	}
	stop() // waits for none of them
	close(release)
	f.poll("the handlers have ended", func() bool { return w.stuck.Load() == 0 })
	if w.Alive() != nil || len(w.slots) != 0 {
		t.Errorf("all handlers have ended, but %d slots are taken: %v", len(w.slots), w.Alive())
	}
	if state, body := f.outcome(hang); state != job.Failed {
		t.Errorf("the late result replaced the outcome: %s %s", state, body)
	}
}

// A worker that loses its lease is called off at the next renewal, and leaves the job to the other.
func TestLosesLease(t *testing.T) {
	f := newFixture(t)
	running := make(chan struct{}, 1)
	slow := f.worker(func(ctx context.Context, _ job.Input) ([]byte, error) {
		running <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}, func(c *Config) { c.Lease = 60 * time.Millisecond })
	var cut atomic.Bool
	slow.Queue = &queuetest.Faults{Queue: f.queue.Queue, Before: func(op string) error {
		if cut.Load() {
			return errors.New("network is down") // for this worker only
		}
		return nil
	}}
	f.start(slow)
	spec := f.accept("x")
	<-running
	cut.Store(true)
	f.start(f.worker(echo, nil))
	f.wantOutcome(spec, job.Succeeded, `"x"`)
	f.wantAttempts(slow, map[string]float64{lost: 1})
	if n := testutil.ToFloat64(slow.metrics.leaseLost); n != 1 {
		t.Errorf("lease_lost_total is %v, want 1", n)
	}
	f.wantEmpty()
}

// Two workers finish one job: the first outcome stands.
func TestFirstOutcomeStands(t *testing.T) {
	f := newFixture(t)
	running, finish := make(chan struct{}), make(chan struct{})
	slow := f.worker(func(context.Context, job.Input) ([]byte, error) {
		close(running)
		<-finish
		return []byte(`"slow"`), nil
	}, func(c *Config) {
		c.Lease, c.StopTime = 200*time.Millisecond, 20*time.Second
		c.Concurrency = 1 // or it might get the message again itself
	})
	slow.Queue = &queuetest.Faults{Queue: f.queue.Queue, Before: func(op string) error {
		if op == "Extend" {
			return errors.New("network is down")
		}
		return nil
	}}
	stop := f.start(slow)
	spec := f.accept("x")
	<-running
	fast := f.worker(func(context.Context, job.Input) ([]byte, error) { return []byte(`"fast"`), nil }, nil)
	f.start(fast)
	f.wantOutcome(spec, job.Succeeded, `"fast"`)
	close(finish)
	f.wantAttempts(slow, map[string]float64{duplicate: 1})
	stop()
	f.wantOutcome(spec, job.Succeeded, `"fast"`)
	f.wantEmpty()
}

// A message too many does no work.
func TestDuplicateMessage(t *testing.T) {
	f := newFixture(t)
	var calls atomic.Int32
	w := f.worker(func(ctx context.Context, in job.Input) ([]byte, error) {
		calls.Add(1)
		return echo(ctx, in)
	}, nil)
	f.start(w)
	spec := f.accept("x")
	f.wantOutcome(spec, job.Succeeded, `"x"`)
	f.send(spec.ID)
	f.send(spec.ID)
	f.wantAttempts(w, map[string]float64{done: 1, duplicate: 2})
	f.wantEmpty()
	if n := calls.Load(); n != 1 {
		t.Errorf("the handler ran %d times", n)
	}
}

// Messages that name no job are dropped, and do not keep the others waiting.
func TestDropsMessages(t *testing.T) {
	f := newFixture(t)
	var calls atomic.Int32
	w := f.worker(func(ctx context.Context, in job.Input) ([]byte, error) {
		calls.Add(1)
		return echo(ctx, in)
	}, nil)
	deleted := f.accept("deleted")
	if err := f.store.Store.Delete(t.Context(), job.InputName(deleted.ID)); err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{job.NewID(), "hello", "../../etc/passwd", strings.Repeat("x", queue.MaxBody)} {
		f.send(body)
	}
	noJob := job.NewID()
	if err := f.store.Store.Create(t.Context(), job.InputName(noJob), map[string]string{"kind": "test"}, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	f.send(noJob)
	good := f.accept("good")
	f.start(w)
	f.wantOutcome(good, job.Succeeded, "good")
	f.wantAttempts(w, map[string]float64{dropped: 6, done: 1})
	f.wantEmpty()
	if n := calls.Load(); n != 1 {
		t.Errorf("the handler ran %d times", n)
	}
}

// A job that is deleted while it runs is called off, and leaves no outcome.
func TestDeletedWhileRunning(t *testing.T) {
	f := newFixture(t)
	running := make(chan struct{})
	w := f.worker(func(ctx context.Context, _ job.Input) ([]byte, error) {
		close(running)
		<-ctx.Done()
		return nil, ctx.Err()
	}, func(c *Config) { c.Lease = 60 * time.Millisecond })
	f.start(w)
	spec := f.accept("x")
	<-running
	if err := f.store.Store.Delete(t.Context(), job.InputName(spec.ID)); err != nil {
		t.Fatal(err)
	}
	f.wantAttempts(w, map[string]float64{dropped: 1})
	f.wantEmpty()
	if state, _ := f.outcome(spec); state != "" {
		t.Errorf("the deleted job has the outcome %s", state)
	}
}

// A job is deleted while it runs, and its id is used again: the old attempt does not decide the new job.
func TestIDUsedAgain(t *testing.T) {
	f := newFixture(t)
	running, finish := make(chan struct{}), make(chan struct{})
	w := f.worker(func(ctx context.Context, in job.Input) ([]byte, error) {
		b, err := io.ReadAll(in)
		if string(b) == "old" {
			close(running)
			<-finish
		}
		return []byte(`"` + string(b) + `"`), err
	}, nil)
	f.start(w)
	first := f.accept("old")
	<-running
	if err := f.store.Store.Delete(t.Context(), job.InputName(first.ID)); err != nil {
		t.Fatal(err)
	}
	second := f.putAs(job.NewSpec(first.ID, "test", nil), "new")
	close(finish)
	f.wantOutcome(first, job.Succeeded, `"old"`) // nobody will see it
	if state, body := f.outcome(second); state != "" {
		t.Fatalf("the new job has the outcome %s %s before it ran", state, body)
	}
	f.send(second.ID)
	f.wantOutcome(second, job.Succeeded, `"new"`)
}

// A newer API accepts kinds that this worker does not know yet.
func TestUnknownKind(t *testing.T) {
	f := newFixture(t)
	w := f.worker(echo, nil)
	f.start(w)
	spec := f.put("image", "x")
	f.send(spec.ID)
	f.wantOutcome(spec, job.Failed, `"image"`)
	f.wantAttempts(w, map[string]float64{retried: 2, gaveUp: 1})
}

// A job that kills its worker each time is given up by the one that gets it next. Killing is shown in process_test.go;
// here the deliveries are made up.
func TestPoison(t *testing.T) {
	f := newFixture(t)
	spec := f.accept("x")
	for range 3 {
		ds, err := f.queue.Queue.Receive(t.Context(), 1, time.Hour)
		if err != nil || len(ds) != 1 {
			t.Fatal(len(ds), err)
		}
		if err := f.queue.Queue.Extend(t.Context(), ds[0], 0); err != nil {
			t.Fatal(err)
		}
	}
	w := f.worker(func(context.Context, job.Input) ([]byte, error) {
		t.Error("the handler ran a fourth time")
		return nil, nil
	}, nil)
	f.start(w)
	f.wantOutcome(spec, job.Failed, "killed the worker")
	f.wantEmpty()
}

// The storage is down for a while: no attempt is used up, no result computed twice.
func TestStoreOutage(t *testing.T) {
	for _, broken := range []string{"Open " + job.Inputs, "Open " + job.Results, "Create " + job.Results} {
		t.Run(broken, func(t *testing.T) {
			f := newFixture(t)
			var calls, failures atomic.Int32
			f.store.Before = func(op, name string) error {
				if strings.HasPrefix(op+" "+name, broken) && failures.Add(1) <= 3 {
					return errors.New("503 server busy")
				}
				return nil
			}
			w := f.worker(func(ctx context.Context, in job.Input) ([]byte, error) {
				calls.Add(1)
				return echo(ctx, in)
			}, func(c *Config) { c.MaxAttempts = 1 })
			f.start(w)
			spec := f.accept("x")
			f.wantOutcome(spec, job.Succeeded, `"x"`)
			f.wantAttempts(w, map[string]float64{done: 1})
			if n := calls.Load(); n != 1 {
				t.Errorf("the handler ran %d times", n)
			}
		})
	}
}

// The outcome is stored but the answer is lost: trying again finds it there.
func TestCreateAnswerLost(t *testing.T) {
	f := newFixture(t)
	var once atomic.Bool
	f.store.After = func(op, name string) error {
		if op == "Create" && once.CompareAndSwap(false, true) {
			return errors.New("connection reset")
		}
		return nil
	}
	w := f.worker(echo, nil)
	f.start(w)
	spec := f.accept("x")
	f.wantOutcome(spec, job.Succeeded, `"x"`)
	f.wantEmpty()
}

// The queue is down for a while: the worker goes on when it is back.
func TestQueueOutage(t *testing.T) {
	for _, broken := range []string{"Receive", "Delete", "Extend"} {
		t.Run(broken, func(t *testing.T) {
			f := newFixture(t)
			var failures, calls atomic.Int32
			f.queue.Before = func(op string) error {
				if op == broken && failures.Add(1) <= 2 {
					return errors.New("503 server busy")
				}
				return nil
			}
			w := f.worker(func(ctx context.Context, in job.Input) ([]byte, error) {
				if broken == "Extend" && calls.Add(1) == 1 {
					return nil, errors.New("try again") // the delay cannot be set, so the lease has to end
				}
				return echo(ctx, in)
			}, func(c *Config) { c.Lease = 100 * time.Millisecond })
			f.start(w)
			spec := f.accept("x")
			f.wantOutcome(spec, job.Succeeded, `"x"`)
			f.wantEmpty()
			if failures.Load() == 0 {
				t.Error("nothing was broken")
			}
		})
	}
}

// A long job keeps its lease, so it runs once however many workers wait for it.
func TestRenewsLease(t *testing.T) {
	f := newFixture(t)
	var calls, renewals atomic.Int32
	f.queue.After = func(op string) error {
		if op == "Extend" {
			renewals.Add(1)
		}
		return nil
	}
	run := func(ctx context.Context, in job.Input) ([]byte, error) {
		calls.Add(1)
		for renewals.Load() < 6 { // two leases
			time.Sleep(time.Millisecond)
		}
		return echo(ctx, in)
	}
	for range 3 {
		f.start(f.worker(run, func(c *Config) { c.Lease = 600 * time.Millisecond }))
	}
	spec := f.accept("x")
	f.wantOutcome(spec, job.Succeeded, `"x"`)
	if n := calls.Load(); n != 1 {
		t.Errorf("the handler ran %d times", n)
	}
}

// The worker never takes more than it has slots for; the rest is there for other workers.
func TestConcurrency(t *testing.T) {
	f := newFixture(t)
	var running, most atomic.Int32
	release := make(chan struct{})
	run := func(ctx context.Context, in job.Input) ([]byte, error) {
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		return echo(ctx, in)
	}
	var specs []job.Spec
	for range 12 {
		specs = append(specs, f.accept("x"))
	}
	w := f.worker(run, func(c *Config) { c.Concurrency = 3 })
	f.start(w)
	f.poll("three run", func() bool { return running.Load() == 3 })
	ds, err := f.queue.Queue.Receive(t.Context(), 100, time.Hour)
	if err != nil || len(ds) != 9 {
		t.Errorf("%d messages were left for others, %v; want 9", len(ds), err)
	}
	if err := w.Ready(); err != nil {
		t.Errorf("a busy worker is not ready: %v", err)
	}
	for _, d := range ds {
		if err := f.queue.Queue.Extend(t.Context(), d, 0); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	for _, s := range specs {
		f.wantOutcome(s, job.Succeeded, `"x"`)
	}
	if n := most.Load(); n != 3 {
		t.Errorf("%d jobs ran at the same time, want 3", n)
	}
}

// Told to stop, the worker lets a job finish that does so in time.
func TestStopLetsFinish(t *testing.T) {
	f := newFixture(t)
	running, finish := make(chan struct{}), make(chan struct{})
	w := f.worker(func(ctx context.Context, in job.Input) ([]byte, error) {
		close(running)
		<-finish
		return echo(ctx, in)
	}, nil)
	stop := f.start(w)
	spec := f.accept("x")
	<-running
	time.AfterFunc(50*time.Millisecond, func() { close(finish) })
	stop()
	if state, body := f.outcome(spec); state != job.Succeeded {
		t.Errorf("after the stop the job has %q %q", state, body)
	}
	if n := f.messages(); n != 0 {
		t.Errorf("%d messages are left", n)
	}
}

// Told to stop, the worker gives back at once what does not finish in time. It does not wait for the lease.
func TestStopGivesBack(t *testing.T) {
	for _, obeys := range []bool{true, false} {
		t.Run(fmt.Sprintf("handler obeys=%v", obeys), func(t *testing.T) {
			const grace, stopTime = 100 * time.Millisecond, 50 * time.Millisecond
			f := newFixture(t)
			running := make(chan struct{})
			ended := make(chan struct{})
			t.Cleanup(func() { close(ended) })
			w := f.worker(func(ctx context.Context, _ job.Input) ([]byte, error) {
				close(running)
				if !obeys {
					<-ended
				}
				<-ctx.Done()
				return nil, ctx.Err()
			}, func(c *Config) { c.Lease, c.Grace, c.StopTime = time.Hour, grace, stopTime })
			stop := f.start(w)
			spec := f.accept("x")
			<-running
			begin := time.Now()
			stop()
			stopped := time.Since(begin)
			f.wantAttempts(w, map[string]float64{released: 1})
			f.start(f.worker(echo, nil))
			f.wantOutcome(spec, job.Succeeded, `"x"`)
			elsewhere := time.Since(begin)
			t.Logf("stopped after %v, done elsewhere after %v", stopped, elsewhere)
			if stopped < grace {
				t.Errorf("the worker stopped after %v, before the grace period of %v was over", stopped, grace)
			}
			if elsewhere > grace+stopTime+5*time.Second { // generous: the lease is an hour
				t.Errorf("the job was done elsewhere only after %v", elsewhere)
			}
		})
	}
}

// A message that arrives together with the order to stop is given back before anything is begun.
func TestStopWhileReceiving(t *testing.T) {
	f := newFixture(t)
	spec := f.accept("x")
	w := f.worker(func(context.Context, job.Input) ([]byte, error) {
		t.Error("the handler ran")
		return nil, nil
	}, func(c *Config) { c.Lease = time.Hour })
	ctx, cancel := context.WithCancel(t.Context())
	f.queue.After = func(op string) error {
		if op == "Receive" {
			cancel()
		}
		return nil
	}
	w.Run(ctx)
	ds, err := f.queue.Queue.Receive(t.Context(), 1, time.Hour)
	if err != nil || len(ds) != 1 || ds[0].Body != spec.ID {
		t.Errorf("the message is not there: %d, %v", len(ds), err)
	}
}

// Jobs whose messages are lost get new ones, but only old jobs, only if they have no outcome, and only if the queue is
// empty.
func TestSweep(t *testing.T) {
	f := newFixture(t)
	w := f.worker(echo, func(c *Config) { c.SweepAge = time.Minute })
	old := job.NewSpec(job.NewID(), "test", nil)
	old.Created = old.Created.Add(-2 * time.Minute)
	f.putAs(old, "old")
	f.put("test", "young")
	finished := job.NewSpec(job.NewID(), "test", nil)
	finished.Created = old.Created
	f.putAs(finished, "finished")
	if err := f.store.Store.Create(t.Context(), finished.ResultName(), job.NewOutcome(job.Succeeded).Meta(), strings.NewReader("{}")); err != nil {
		t.Fatal(err)
	}
	if err := f.store.Store.Create(t.Context(), job.InputName(job.NewID()), nil, strings.NewReader("not a job")); err != nil {
		t.Fatal(err)
	}

	f.send("busy")
	if err := w.sweep(t.Context()); err != nil || f.messages() != 1 {
		t.Errorf("a sweep with a message in the queue: %v, %d messages", err, f.messages())
	}
	ds, err := f.queue.Queue.Receive(t.Context(), 1, time.Hour)
	if err != nil || len(ds) != 1 {
		t.Fatal(len(ds), err)
	}
	if err := w.sweep(t.Context()); err != nil || f.messages() != 1 {
		t.Errorf("a sweep while a message is worked on: %v, %d messages", err, f.messages())
	}
	if err := f.queue.Queue.Delete(t.Context(), ds[0]); err != nil {
		t.Fatal(err)
	}
	if err := w.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	ds, err = f.queue.Queue.Receive(t.Context(), 10, time.Millisecond)
	if err != nil || len(ds) != 1 || ds[0].Body != old.ID {
		t.Fatalf("the sweep sent %d messages, %v; want one for the old job", len(ds), err)
	}
	f.start(w)
	f.wantOutcome(old, job.Succeeded, `"old"`)
}

// The sweep also runs by itself.
func TestSweepRuns(t *testing.T) {
	f := newFixture(t)
	spec := f.put("test", "x")
	f.start(f.worker(echo, func(c *Config) { c.SweepEvery, c.SweepAge = 5*time.Millisecond, time.Nanosecond }))
	f.wantOutcome(spec, job.Succeeded, `"x"`)
}

func TestBackoff(t *testing.T) {
	w := newFixture(t).worker(echo, func(c *Config) { c.Backoff = time.Second })
	for attempt, mean := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 30: maxBackoff, 100: maxBackoff} {
		least, most := time.Duration(1<<62), time.Duration(0)
		for range 2000 {
			d := w.backoff(attempt)
			least, most = min(least, d), max(most, d)
		}
		if least < mean/2 || least > mean*6/10 || most > mean*3/2 || most < mean*14/10 {
			t.Errorf("after attempt %d the delay is from %v to %v, want the range of half to one and a half of %v", attempt, least, most, mean)
		}
	}
}

// A worker whose queue does not answer is not ready, and is again when it does.
func TestReady(t *testing.T) {
	f := newFixture(t)
	w := f.worker(echo, nil)
	if err := w.Ready(); err != nil {
		t.Errorf("new worker: %v", err)
	}
	w.polled.Store(time.Now().Add(-2 * pollLasts).UnixNano())
	if err := w.Ready(); err == nil {
		t.Error("a worker that cannot reach its queue says it is ready")
	}
	f.start(w)
	f.poll("the worker is ready", func() bool { return w.Ready() == nil })
}
