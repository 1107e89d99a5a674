package api

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// problem is an error that is an answer (RFC 9457).
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// RequestID is also in the log.
	RequestID string `json:"request_id,omitempty"`

	retryAfter time.Duration
}

func (p problem) Error() string { return p.Detail }

func badRequest(format string, args ...any) error {
	return problem{Status: http.StatusBadRequest, Detail: fmt.Sprintf(format, args...)}
}

func busy(why string, retryAfter time.Duration) error {
	return problem{Status: http.StatusServiceUnavailable, Detail: why + "; nothing was accepted, try again later", retryAfter: retryAfter}
}

func wrongMethod(allow string) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Allow", allow)
		return problem{Status: http.StatusMethodNotAllowed, Detail: "this path allows " + allow}
	}
}

// errors turns the errors of h into answers. An error that is not a problem is the storage's, and may pass.
func (s *server) errors(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil {
			return
		}
		var p problem
		if !errors.As(err, &p) {
			p = problem{Status: http.StatusServiceUnavailable, Detail: "the storage does not answer; try again later", retryAfter: 2 * time.Second}
			if r.Context().Err() == nil { // else the client is gone, and that is the error
				s.Log.Error().Err(err).Str("request_id", w.Header().Get(requestID)).Msg("request failed")
			}
		}
		p.Title = http.StatusText(p.Status)
		p.RequestID = w.Header().Get(requestID)
		if p.retryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(p.retryAfter.Seconds())))
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(p.Status)
		if err := json.NewEncoder(w).Encode(p); err != nil {
			s.Log.Debug().Err(err).Msg("problem was not sent")
		}
	})
}

// reply answers with v as JSON.
func reply(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(body, '\n'))
	if err != nil {
		panic(http.ErrAbortHandler) // the client is gone
	}
	return nil
}

type callerKey struct{}

// caller returns the name of the key that a request came with, or "" if none is needed.
func caller(ctx context.Context) string {
	name, _ := ctx.Value(callerKey{}).(string)
	return name
}

// authenticated lets only requests with a valid key through to h.
func (s *server) authenticated(h http.Handler) http.Handler {
	if s.Keys == nil {
		return h
	}
	denied := s.errors(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("WWW-Authenticate", `Bearer realm="jobs"`)
		return problem{Status: http.StatusUnauthorized, Detail: "send a valid key as Authorization: Bearer <key>"}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		name, ok := s.Keys.Caller(token)
		if !strings.EqualFold(scheme, "Bearer") || !ok {
			denied.ServeHTTP(w, r)
			return
		}
		if a, ok := w.(*answer); ok {
			a.caller = name
		}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, name)))
	})
}

const requestID = "X-Request-Id"

// answer is a ResponseWriter that remembers what was answered.
type answer struct {
	http.ResponseWriter
	status int
	bytes  int64
	caller string
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(p)
	a.bytes += int64(n)
	return n, err
}

// Unwrap gives http.ResponseController the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// observed logs and counts each request to h, and answers it if h panics.
func (s *server) observed(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id := r.Header.Get(requestID)
		if !validToken(id) {
			id = rand.Text()[:16]
		}
		w.Header().Set(requestID, id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		a := &answer{ResponseWriter: w}
		s.metrics.inFlight.Inc()
		defer func() {
			s.metrics.inFlight.Dec()
			panicked := recover()
			if panicked != nil && panicked != http.ErrAbortHandler {
				s.Log.Error().Interface("panic", panicked).Bytes("stack", debug.Stack()).Str("request_id", id).Msg("panic")
				if a.status == 0 {
					s.errors(func(http.ResponseWriter, *http.Request) error {
						return problem{Status: http.StatusInternalServerError}
					}).ServeHTTP(a, r)
					panicked = nil
				}
			}
			if a.status == 0 {
				a.status = http.StatusOK // what net/http sends for a handler that wrote nothing
			}
			s.observe(r, a, id, time.Since(start))
			if panicked != nil {
				panic(http.ErrAbortHandler) // cut the connection: the client must not take this for an answer
			}
		}()
		h.ServeHTTP(a, r)
	})
}

func (s *server) observe(r *http.Request, a *answer, id string, took time.Duration) {
	route, method := r.Pattern, r.Method
	if _, path, ok := strings.Cut(route, " "); ok {
		route = path
	}
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete:
	default:
		method = "other" // clients invent methods, and each would be a time series
	}
	s.metrics.requests.WithLabelValues(route, method, strconv.Itoa(a.status)).Inc()
	s.metrics.duration.WithLabelValues(route, method).Observe(took.Seconds())
	s.Log.Info().Str("method", r.Method).Str("path", r.URL.Path).Str("route", route).Int("status", a.status).
		Int64("bytes", a.bytes).Dur("took_ms", took).Str("caller", a.caller).Str("remote", r.RemoteAddr).
		Str("request_id", id).Msg("request")
}

func validToken(id string) bool {
	return id != "" && len(id) <= 64 && !strings.ContainsFunc(id, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
	})
}

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	accepted *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total", Help: "Requests that were answered. The route is the pattern that matched, never the path."},
			[]string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_request_duration_seconds", Help: "Time from the request's header to the end of the answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}},
			[]string{"route", "method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "http_requests_in_flight", Help: "Requests being answered."}),
		accepted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "jobs_accepted_total", Help: "New jobs that are durable and were answered with 202."},
			[]string{"kind"}),
	}
	r.MustRegister(m.requests, m.duration, m.inFlight, m.accepted)
	return m
}
