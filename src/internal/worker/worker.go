// Package worker runs jobs: it takes messages from the queue, gives each job's input to the handler of its kind, and
// stores the outcome.
//
// # What may go wrong
//
// A job is never lost: its message is deleted only after its outcome is durable. It may run more than once, and then the
// first outcome stands.
//
//	the handler rejects its input      the job fails at once, with the handler's reason
//	it returns another error, panics   another attempt, after a delay that grows exponentially
//	it takes longer than Timeout       the same; see below for one that does not even stop
//	the last attempt ends like that    the job fails, with the last error as its reason
//	the worker dies                    its leases end, and other workers run its jobs
//	a job kills every worker           it fails when its message was delivered more than MaxAttempts times
//	a lease is lost to another worker  the attempt is called off
//	the job is deleted                 its message is dropped; an attempt is called off when its lease is renewed
//	a message names no job             it is dropped
//	a message was lost                 a sweep sends it again
//	the worker is told to stop         it takes no more messages, lets attempts run for Grace, and gives the rest back
//
// Messages that are given back have been delivered, so each orderly stop uses up one of the MaxAttempts of the jobs that
// it interrupts.
//
// A handler that does not return when its context ends cannot be stopped. The worker forgets about it: the job goes back
// to the queue, and what the handler may still return is ignored. It goes on to occupy its slot, because it goes on to
// use memory and a core. When such handlers have taken all slots, Alive fails, and Kubernetes restarts the process.
package worker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"aks-platform/src/internal/job"
	"aks-platform/src/internal/queue"
	"aks-platform/src/internal/store"
)

// Config says what a worker works on, and how. All fields are required unless they say otherwise.
type Config struct {
	Queue queue.Queue
	Store store.Store
	Kinds map[string]job.Kind
	// Concurrency is how many jobs run at the same time. A message is taken only when there is a slot for it.
	Concurrency int
	// MaxAttempts is how often a job is tried.
	MaxAttempts int
	// Lease is for how long a dead worker's jobs wait for another. Leases are renewed at a third of it.
	Lease time.Duration
	// Timeout limits one attempt.
	Timeout time.Duration
	// Grace is the time that attempts in progress have when the worker is told to stop.
	Grace time.Duration
	// Backoff is the delay after the first attempt that failed; it doubles with each. 2 s if zero.
	Backoff time.Duration
	// StopTime is the time that a handler has to return when its context ends. 2 s if zero.
	StopTime time.Duration
	// SweepEvery is the time between two looks for jobs without a message, and SweepAge is how old a job has to be to
	// be taken for one. 10 min each if zero.
	SweepEvery, SweepAge time.Duration
	Log                  zerolog.Logger
	Metrics              prometheus.Registerer
}

const (
	// maxBackoff bounds the delay between two attempts.
	maxBackoff = 10 * time.Minute
	// idleMin and idleMax bound the pause after a look at the queue that found nothing. It grows from one to the other.
	idleMin, idleMax = 20 * time.Millisecond, time.Second
	// storageTimeout limits a single operation on the queue, and storing an outcome. These go on when the worker is told
	// to stop: a message that the queue handed out must not be forgotten.
	storageTimeout = 10 * time.Second
	// pollLasts is how long after the last look at the queue the worker is still ready.
	pollLasts = time.Minute
)

// Worker runs jobs. Make one with New.
type Worker struct {
	Config
	slots   chan struct{}
	metrics metrics
	polled  atomic.Int64 // when the queue last answered, in Unix nanoseconds
	full    atomic.Bool  // all slots are taken, so the queue is not asked
	stuck   atomic.Int64 // handlers that were given up
}

// New returns a worker that is ready to run.
func New(c Config) *Worker {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Backoff, 2*time.Second)
	def(&c.StopTime, 2*time.Second)
	def(&c.SweepEvery, 10*time.Minute)
	def(&c.SweepAge, 10*time.Minute)
	w := &Worker{Config: c, slots: make(chan struct{}, c.Concurrency), metrics: newMetrics(c.Metrics)}
	w.metrics.slots.Set(float64(c.Concurrency))
	w.polled.Store(time.Now().UnixNano())
	return w
}

// Alive returns an error if only a restart helps.
func (w *Worker) Alive() error {
	if n := w.stuck.Load(); n >= int64(w.Concurrency) {
		return fmt.Errorf("all %d slots are occupied by handlers that do not stop", n)
	}
	return nil
}

// Ready returns an error if the worker does not get to its work.
func (w *Worker) Ready() error {
	if since := time.Since(time.Unix(0, w.polled.Load())); since > pollLasts && !w.full.Load() {
		return fmt.Errorf("the queue has not answered for %s", since.Round(time.Second))
	}
	return nil
}

// Run works until ctx ends and attempts in progress have ended or were given back.
func (w *Worker) Run(ctx context.Context) {
	attempts, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(nil)
	var running sync.WaitGroup
	running.Go(func() { w.sweepEach(ctx) })
	idle := time.Duration(0)
	for {
		free := w.takeSlots(ctx)
		if free == 0 {
			break
		}
		receive, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
		ds, err := w.Queue.Receive(receive, free, w.Lease)
		cancel()
		if err != nil {
			w.Log.Error().Err(err).Msg("queue does not answer")
		} else {
			w.polled.Store(time.Now().UnixNano())
		}
		for range free - len(ds) {
			<-w.slots
		}
		if ctx.Err() != nil {
			// The stop came while the queue was asked. Nothing was begun, so give all back at once.
			for _, d := range ds {
				w.giveBack(ctx, d, 0)
				<-w.slots
			}
			break
		}
		for _, d := range ds {
			running.Go(func() { w.deliver(attempts, d) })
		}
		if len(ds) > 0 {
			idle = 0
			continue
		}
		idle = min(max(2*idle, idleMin), idleMax)
		pause(ctx, jitter(idle))
	}
	w.Log.Info().Dur("grace_ms", w.Grace).Int("running", len(w.slots)).Msg("takes no more jobs")
	defer time.AfterFunc(w.Grace, func() { abort(errStopped) }).Stop()
	running.Wait()
}

// takeSlots waits for a free slot, takes all that are free, and returns how many. None means that ctx has ended.
func (w *Worker) takeSlots(ctx context.Context) (n int) {
	if ctx.Err() != nil {
		return 0
	}
	w.full.Store(len(w.slots) == cap(w.slots))
	select {
	case w.slots <- struct{}{}:
		n = 1
	case <-ctx.Done():
		return 0
	}
	w.polled.Store(time.Now().UnixNano())
	w.full.Store(false)
	for {
		select {
		case w.slots <- struct{}{}:
			n++
		default:
			return n
		}
	}
}

// backoff returns the delay before the attempt after the given one. It is random, so that jobs that failed together do
// not come back together.
func (w *Worker) backoff(attempt int) time.Duration {
	return jitter(min(w.Backoff<<min(attempt-1, 20), maxBackoff))
}

// jitter returns a random duration of d on average.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d+1) }

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// giveBack lets d's message be delivered again after wait.
func (w *Worker) giveBack(ctx context.Context, d *queue.Delivery, wait time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	if err := w.Queue.Extend(ctx, d, wait); err != nil {
		w.Log.Warn().Err(err).Str("job", d.Body).Msg("message was not given back, it comes back when its lease ends")
	}
}

// sweepEach sweeps until ctx ends.
func (w *Worker) sweepEach(ctx context.Context) {
	for {
		pause(ctx, jitter(w.SweepEvery)) // several workers sweep at different times
		if ctx.Err() != nil {
			return
		}
		if err := w.sweep(ctx); err != nil && ctx.Err() == nil {
			w.Log.Error().Err(err).Msg("sweep failed")
		}
	}
}

// sweep sends messages for old jobs that have none. Such a job comes about when the API dies after it stored an input
// and before it queued the message, or when the queue is lost; so the queue can be rebuilt from the store.
//
// Whether a certain job has a message cannot be seen, but an empty queue has none for any job, so sweep only looks then.
func (w *Worker) sweep(ctx context.Context) error {
	if n, err := w.Queue.Len(ctx); err != nil || n > 0 {
		return err
	}
	before := time.Now().Add(-w.SweepAge)
	for after := ""; ; {
		entries, next, err := job.List(ctx, w.Store, after, store.MaxList-1)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Err != nil || e.Outcome != nil || e.Created.After(before) {
				continue // the API reports what is not a job
			}
			if err := w.Queue.Send(ctx, e.ID); err != nil {
				return err
			}
			w.metrics.resent.Inc()
			w.Log.Warn().Str("job", e.ID).Time("created", e.Created).Msg("job had no message, sent one")
		}
		if next == "" {
			return nil
		}
		after = next
	}
}

type metrics struct {
	attempts  *prometheus.CounterVec
	finished  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	wait      *prometheus.HistogramVec
	running   prometheus.Gauge
	slots     prometheus.Gauge
	stuck     prometheus.Gauge
	leaseLost prometheus.Counter
	resent    prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	// From no-op jobs to the longest timeouts in use.
	buckets := []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60, 120, 300, 600, 1800}
	m := metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "job_attempts_total", Help: "Attempts that ended, by how."}, []string{"kind", "result"}),
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "jobs_finished_total", Help: "Outcomes stored. A job has one."}, []string{"kind", "state"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "job_duration_seconds", Help: "Time that the handler took for an attempt.", Buckets: buckets}, []string{"kind"}),
		wait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "job_wait_seconds", Help: "Time from when a job was accepted to its first attempt.", Buckets: buckets}, []string{"kind"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "jobs_running", Help: "Handlers at work."}),
		slots: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "jobs_slots", Help: "Handlers that may be at work at the same time."}),
		stuck: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "jobs_stuck", Help: "Handlers that were told to stop, did not, and still occupy a slot."}),
		leaseLost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lease_lost_total", Help: "Attempts called off because the lease was lost."}),
		resent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "jobs_resent_total", Help: "Jobs that had no message and got one from a sweep."}),
	}
	r.MustRegister(m.attempts, m.finished, m.duration, m.wait, m.running, m.slots, m.stuck, m.leaseLost, m.resent)
	return m
}
