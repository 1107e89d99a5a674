package service

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

const (
	// probeEvery is how often the storage is asked whether it is there.
	probeEvery = 5 * time.Second
	// probeLasts is how long its answer is good for. It spans several probes, so that one slow answer does not take all
	// replicas out of service at once.
	probeLasts = 30 * time.Second
)

// Health knows how the process is. Its methods may be called at any time.
type Health struct {
	probe    func(context.Context) (backlog int, err error)
	gauge    prometheus.Gauge
	backlog  atomic.Int64
	started  atomic.Bool
	draining atomic.Bool

	mu      sync.Mutex
	lastOK  time.Time // of the probe
	lastErr error
	alive   func() error
	ready   func() error
}

func newHealth(metrics prometheus.Registerer, probe func(context.Context) (int, error)) *Health {
	none := func() error { return nil }
	h := &Health{probe: probe, alive: none, ready: none, lastErr: errors.New("storage was not asked yet")}
	h.gauge = prometheus.NewGauge(prometheus.GaugeOpts{Name: "queue_backlog", Help: "Messages in the queue, those being worked on included."})
	metrics.MustRegister(h.gauge)
	return h
}

// Checks adds what only the service knows: alive fails if a restart would help, ready fails if it takes no work.
func (h *Health) Checks(alive, ready func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.alive, h.ready = alive, ready
}

// Started lets the process become ready. Before, it may answer at the admin address but not yet do its work.
func (h *Health) Started() { h.started.Store(true) }

// Drain makes the process unready for good.
func (h *Health) Drain() { h.draining.Store(true) }

// Backlog returns how many messages the queue had at the last probe.
func (h *Health) Backlog() int { return int(h.backlog.Load()) }

// watch probes the storage until ctx ends.
func (h *Health) watch(ctx context.Context, log zerolog.Logger) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		h.probeOnce(ctx, log)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *Health) probeOnce(ctx context.Context, log zerolog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, probeEvery)
	defer cancel()
	n, err := h.probe(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.backlog.Store(int64(n))
		h.gauge.Set(float64(n))
		h.lastOK = time.Now()
	} else if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		log.Warn().Err(err).Msg("storage does not answer")
	}
	h.lastErr = err
}

// Alive returns why a restart would help, or nil.
func (h *Health) Alive() error {
	h.mu.Lock()
	alive := h.alive
	h.mu.Unlock()
	return alive()
}

// Ready returns why the process takes no work, or nil.
func (h *Health) Ready() error {
	if h.draining.Load() {
		return errors.New("draining")
	}
	if !h.started.Load() {
		return errors.New("starting")
	}
	h.mu.Lock()
	ready, lastOK, lastErr := h.ready, h.lastOK, h.lastErr
	h.mu.Unlock()
	if time.Since(lastOK) > probeLasts {
		return fmt.Errorf("storage does not answer: %w", lastErr)
	}
	return ready()
}

// adminHandler serves the admin address.
func adminHandler(h *Health, metrics *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", answer(h.Alive))
	mux.Handle("GET /readyz", answer(h.Ready))
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{Registry: metrics}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// answer says "ok", or with 503 what check returns.
func answer(check func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}
