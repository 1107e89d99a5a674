package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"aks-platform/src/internal/job"
	"aks-platform/src/internal/queue"
	"aks-platform/src/internal/store"
)

// How an attempt ended, as in job_attempts_total.
const (
	done      = "done"      // a result is stored
	rejected  = "rejected"  // the input was at fault
	retried   = "retry"     // an error, and another attempt follows
	timedOut  = "timeout"   // the same, because it took too long
	gaveUp    = "gave_up"   // an error, and it was the last attempt
	lost      = "lost"      // the lease
	released  = "released"  // given back because the worker stops
	dropped   = "dropped"   // there is no such job
	duplicate = "duplicate" // the job had its outcome already
)

// attempt is one delivery of a job, while it is being dealt with.
type attempt struct {
	*Worker
	d     *queue.Delivery
	log   zerolog.Logger
	kind  string // as a label: one of Kinds, or "unknown"
	stray bool   // the handler did not stop, and keeps the slot
}

// deliver does all there is to do about one delivery, in a slot that the caller took. It returns when ctx ends, at the
// latest a little later.
func (w *Worker) deliver(ctx context.Context, d *queue.Delivery) {
	a := &attempt{Worker: w, d: d, kind: "unknown"}
	a.log = w.Log.With().Str("job", d.Body).Int("attempt", d.Attempt).Logger()
	defer func() {
		if !a.stray {
			<-w.slots
		}
	}()
	start := time.Now()
	result, err := a.work(ctx)
	event := a.log.Info()
	switch result {
	case done, rejected, gaveUp, dropped, duplicate:
		a.delete(ctx)
	case released:
		w.giveBack(ctx, d, 0)
	case retried, timedOut:
		wait := w.backoff(d.Attempt)
		w.giveBack(ctx, d, wait)
		event = a.log.Warn().Dur("retry_in_ms", wait)
	case lost:
		w.metrics.leaseLost.Inc()
		event = a.log.Warn()
	}
	w.metrics.attempts.WithLabelValues(a.kind, result).Inc()
	var p panicked
	if errors.As(err, &p) {
		event = event.Bytes("stack", p.stack)
	}
	event.Err(err).Str("kind", a.kind).Str("result", result).Dur("took_ms", time.Since(start)).Msg("attempt ended")
}

// delete removes the message of a job that needs no more attempts.
func (a *attempt) delete(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	if err := a.Queue.Delete(ctx, a.d); err != nil {
		a.log.Warn().Err(err).Msg("message was not deleted, it comes back and is then found to be done")
	}
}

// work holds the lease while it brings the job to its outcome. It returns how that went and, if not well, why.
func (a *attempt) work(ctx context.Context) (result string, err error) {
	if !job.ValidID(a.d.Body) {
		return dropped, errors.New("the message names no job")
	}
	held, end := context.WithCancelCause(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { a.renew(held, end) })
	defer renewing.Wait() // or two would use the delivery
	defer end(nil)

	trying, cancel := context.WithTimeoutCause(held, a.Timeout, fmt.Errorf("%w: more than %s", errTimeout, a.Timeout))
	defer cancel()
	spec, out, err := a.try(trying)
	if err != nil && trying.Err() != nil {
		err = context.Cause(trying)
	}
	var rejection job.Rejected
	switch {
	case err == nil:
		return a.finish(ctx, spec, job.Succeeded, out, done, nil)
	case errors.Is(err, errFinished):
		return duplicate, nil
	case errors.Is(err, errDeleted) || errors.Is(err, errNoSpec):
		return dropped, err
	case errors.Is(err, queue.ErrLost):
		return lost, err
	case errors.Is(err, errStopped):
		return released, err
	case errors.As(err, &rejection):
		return a.finish(ctx, spec, job.Failed, []byte(rejection.Reason), rejected, err)
	case a.d.Attempt >= a.MaxAttempts && spec.ID != "": // else the storage is to blame
		reason := fmt.Sprintf("gave up after %d attempts; the last one: %v", a.MaxAttempts, err)
		return a.finish(ctx, spec, job.Failed, []byte(reason), gaveUp, err)
	case errors.Is(err, errTimeout):
		return timedOut, err
	}
	return retried, err
}

// Errors that say what became of a job or of an attempt at it.
var (
	errTimeout  = errors.New("the attempt took too long")
	errStopped  = errors.New("the worker was told to stop")
	errDeleted  = errors.New("there is no such job, or no more")
	errNoSpec   = errors.New("what is stored under its id is not a job")
	errFinished = errors.New("the job had its outcome already")
	errCrashed  = errors.New("it did not come to an end, as if it had killed the worker")
)

// try runs the handler on the job's input.
func (a *attempt) try(ctx context.Context) (spec job.Spec, out []byte, err error) {
	var in *store.Object
	err = a.insist(ctx, func() (err error) {
		in, err = a.Store.Open(ctx, job.InputName(a.d.Body))
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return spec, nil, errDeleted
	} else if err != nil {
		return spec, nil, err
	}
	defer func() {
		if !a.stray {
			if err := in.Close(); err != nil {
				a.log.Warn().Err(err).Msg("close input")
			}
		}
	}()
	if spec, err = job.ParseSpec(a.d.Body, in.Meta); err != nil {
		return spec, nil, fmt.Errorf("%w: %w", errNoSpec, err)
	}
	kind, known := a.Kinds[spec.Kind]
	if known {
		a.kind = spec.Kind
	}
	var before *store.Object
	err = a.insist(ctx, func() (err error) {
		before, err = a.Store.Open(ctx, spec.ResultName())
		return err
	})
	switch {
	case err == nil:
		return spec, nil, errors.Join(errFinished, before.Close())
	case !errors.Is(err, store.ErrNotFound):
		return spec, nil, err
	case a.d.Attempt > a.MaxAttempts:
		return spec, nil, errCrashed
	case !known:
		// A newer API may be ahead of this worker, and a newer worker may get the next attempt.
		return spec, nil, fmt.Errorf("this worker does not know jobs of kind %q", spec.Kind)
	}
	if a.d.Attempt == 1 {
		a.metrics.wait.WithLabelValues(a.kind).Observe(time.Since(spec.Created).Seconds())
	}
	out, err = a.handle(ctx, kind.Run, spec, in)
	return spec, out, err
}

// handle calls a handler and waits for it, but not longer than ctx lasts and StopTime.
func (a *attempt) handle(ctx context.Context, run job.Handler, spec job.Spec, in *store.Object) ([]byte, error) {
	type result struct {
		out []byte
		err error
	}
	ended := make(chan result, 1)
	start := time.Now()
	a.metrics.running.Inc()
	go func() {
		r := result{err: errors.New("the handler ended its goroutine")}
		defer func() {
			if p := recover(); p != nil {
				r = result{err: panicked{p, debug.Stack()}}
			}
			a.metrics.running.Dec()
			a.metrics.duration.WithLabelValues(a.kind).Observe(time.Since(start).Seconds())
			ended <- r
		}()
		out, err := run(ctx, job.Input{Reader: input{ctx, in}, Size: in.Size, Options: spec.Options})
		r = result{out, err}
	}()
	var r result
	select {
	case r = <-ended:
	case <-ctx.Done():
		select {
		case r = <-ended:
		case <-time.After(a.StopTime):
			a.abandon(in, func() { <-ended })
			return nil, context.Cause(ctx)
		}
	}
	switch {
	case r.err != nil:
		return nil, r.err
	case len(r.out) > job.MaxResult:
		return nil, job.Reject("the result is larger than %d bytes", job.MaxResult)
	case !json.Valid(r.out):
		return nil, errors.New("the handler returned something that is not JSON")
	}
	return r.out, nil
}

// abandon leaves a handler that does not stop to itself. It keeps its slot until it does, which wait waits for.
func (a *attempt) abandon(in io.Closer, wait func()) {
	a.stray = true
	a.stuck.Add(1)
	a.metrics.stuck.Inc()
	a.log.Error().Str("kind", a.kind).Msg("handler does not stop, it is left to itself and keeps its slot")
	go func() {
		wait()
		if err := in.Close(); err != nil {
			a.log.Warn().Err(err).Msg("close input")
		}
		a.stuck.Add(-1)
		a.metrics.stuck.Dec()
		<-a.slots
	}()
}

// finish stores the job's outcome. It returns result and cause if that is now the outcome.
//
// The time of the attempt does not count here: a result that was computed in time should not be lost.
func (a *attempt) finish(ctx context.Context, spec job.Spec, state job.State, body []byte, result string, cause error) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, max(a.Timeout, storageTimeout))
	defer cancel()
	meta := job.NewOutcome(state).Meta()
	err := a.insist(ctx, func() error {
		return a.Store.Create(ctx, spec.ResultName(), meta, bytes.NewReader(body))
	})
	switch {
	case errors.Is(err, store.ErrExists):
		return duplicate, nil // the first outcome stands
	case errors.Is(context.Cause(ctx), errStopped):
		return released, fmt.Errorf("store outcome: %w", err)
	case err != nil:
		return retried, fmt.Errorf("store outcome: %w", err)
	}
	a.metrics.finished.WithLabelValues(a.kind, string(state)).Inc()
	return result, cause
}

// insist repeats an operation on the store until it succeeds, says something definite, or ctx ends. A short outage of
// the storage must not use up the job's attempts.
func (a *attempt) insist(ctx context.Context, op func() error) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 15*time.Second) {
		err := op()
		switch {
		case err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrExists):
			return err
		case errors.Is(err, store.ErrName) || errors.Is(err, store.ErrMeta):
			return err
		case ctx.Err() != nil:
			return err
		}
		a.log.Warn().Err(err).Dur("retry_in_ms", wait).Msg("storage does not answer")
		pause(ctx, jitter(wait))
	}
}

// renew renews the lease until held ends. It ends held when the lease is lost, or the job deleted.
func (a *attempt) renew(held context.Context, end context.CancelCauseFunc) {
	every := a.Lease / 3
	until := time.Now().Add(a.Lease)
	for {
		pause(held, every)
		if held.Err() != nil {
			return
		}
		// Not part of held: the queue may have done what a call that is broken off asked for, and then the delivery's
		// receipt is of no use.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(held), min(every, storageTimeout))
		now := time.Now()
		err := a.Queue.Extend(ctx, a.d, a.Lease)
		cancel()
		switch {
		case err == nil:
			until = now.Add(a.Lease)
		case errors.Is(err, queue.ErrLost) || time.Now().After(until):
			end(fmt.Errorf("%w: %w", queue.ErrLost, err))
			return
		default:
			a.log.Warn().Err(err).Msg("lease was not renewed")
		}
		if a.deleted(held) {
			end(errDeleted)
			return
		}
	}
}

// deleted reports whether the job is known to be deleted.
func (a *attempt) deleted(ctx context.Context) bool {
	o, err := a.Store.Open(ctx, job.InputName(a.d.Body))
	if err == nil {
		err = o.Close()
	}
	return errors.Is(err, store.ErrNotFound)
}

// input ends a handler's reading when its time is over.
type input struct {
	ctx context.Context
	r   io.Reader
}

func (in input) Read(p []byte) (int, error) {
	if in.ctx.Err() != nil {
		return 0, context.Cause(in.ctx)
	}
	return in.r.Read(p)
}

// panicked is the panic of a handler.
type panicked struct {
	value any
	stack []byte
}

func (p panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }
