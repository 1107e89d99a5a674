// Package service is what the processes of the platform have in common: configuration from the environment, a logger,
// an admin server, and an orderly end.
//
// # Start
//
// Run reads the configuration, opens the storage, starts the admin server and calls the service. It exits with 2 if it
// is called wrongly, with 1 if it failed, and with 0 if it was told to stop and did.
//
// # Health
//
// The admin server has an address of its own, which need not be reachable by callers:
//
//	/healthz      200 while restarting the process would not help; draining is healthy
//	/readyz       200 while the process takes work: it has started, does not drain, and the storage answered lately
//	/metrics      Prometheus
//	/debug/pprof  profiles
//
// # End
//
// SIGTERM or SIGINT begins the end; a second one kills the process. The order is
//
//  1. /readyz says 503, so that load balancers look elsewhere;
//  2. an HTTP server goes on as before for its delay, because they need time to notice, and only asks its callers to
//     connect anew; a worker takes no more work;
//  3. listeners close, and what is in progress has the grace period to finish;
//  4. what is left is cut off or given back;
//  5. the admin server goes last, so that the end can be watched.
package service

import (
	"context"
	"errors"
	"flag"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"

	"aks-platform/src/internal/queue"
	"aks-platform/src/internal/storage"
	"aks-platform/src/internal/store"
)

// Process is a running service.
type Process struct {
	Log     zerolog.Logger
	Metrics *prometheus.Registry
	Queue   queue.Queue
	Store   store.Store
	Health  *Health
}

// Main is the main function of the service called name. It fills c, which run may then rely on, and returns the exit
// code. The context of run ends when the process is told to stop.
func Main(name string, c Configuration, run func(context.Context, *Process) error) (code int) {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	version := flags.Bool("version", false, "print the version and exit")
	check := flags.Bool("check-config", false, "check the configuration, print what is in effect, and exit")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: %s [-check-config | -version]\n\n", name)
		flags.PrintDefaults()
		fmt.Fprintf(flags.Output(), "\nThe environment configures it:\n%s", configHelp(c))
	}
	switch err := flags.Parse(os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(os.Stderr, "%s: unknown argument %q\n", name, flags.Arg(0))
		flags.Usage()
		return 2
	}
	build := ReadBuild()
	if *version {
		fmt.Println(name, build)
		return 0
	}
	if err := LoadConfig(c, os.LookupEnv); err != nil {
		fmt.Fprintf(os.Stderr, "%s: the configuration is wrong:\n%v\n", name, err)
		return 2
	}
	if *check {
		if err := PrintConfig(os.Stdout, c); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			return 1
		}
		return 0
	}
	log := NewLogger(os.Stdout, name, c.base().LogLevel)
	if err := start(log, build, c.base(), run); err != nil {
		log.Error().Err(err).Msg("failed")
		return 1
	}
	log.Info().Msg("stopped")
	return 0
}

func start(log zerolog.Logger, build Build, c *Config, run func(context.Context, *Process) error) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal kills

	log.Info().Str("version", build.Version).Str("revision", build.Revision).Str("go", build.Go).
		Str("storage", redactURL(c.StorageURL)).Str("admin", c.AdminAddr).Msg("starting")
	p := &Process{Log: log, Metrics: prometheus.NewRegistry()}
	p.Metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build.metric())
	if p.Queue, p.Store, err = storage.Open(ctx, c.StorageURL); err != nil {
		return fmt.Errorf("open storage: %w", err)
	}
	p.Health = newHealth(p.Metrics, func(ctx context.Context) (int, error) { return storage.Probe(ctx, p.Queue, p.Store) })

	// The admin server and the probe outlive ctx: the end of the process can be watched.
	last, end := context.WithCancel(context.Background())
	defer end()
	ln, err := net.Listen("tcp", c.AdminAddr)
	if err != nil {
		return fmt.Errorf("admin server: %w", err)
	}
	admin := &http.Server{Handler: adminHandler(p.Health, p.Metrics), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, ErrorLog: stdLogger(log)}
	var adminFailed atomic.Pointer[error]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		if err := admin.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			adminFailed.Store(&err)
			cancel()
		}
	}()
	log.Info().Str("addr", ln.Addr().String()).Msg("admin server listens")
	go p.Health.watch(last, log)

	err = run(ctx, p)
	if failed := adminFailed.Load(); failed != nil {
		err = errors.Join(err, fmt.Errorf("admin server: %w", *failed))
	}
	closing, done := context.WithTimeout(context.Background(), time.Second)
	defer done()
	shut := admin.Shutdown(closing)
	if errors.Is(shut, context.DeadlineExceeded) {
		shut = admin.Close() // someone is still reading a profile
	}
	return errors.Join(err, shut)
}

// NewLogger returns a logger that writes one JSON object per line, with times in UTC.
func NewLogger(w *os.File, name, level string) zerolog.Logger {
	zerolog.TimeFieldFormat = time.RFC3339Nano
	zerolog.TimestampFunc = func() time.Time { return time.Now().UTC() }
	l, err := zerolog.ParseLevel(level)
	if err != nil {
		panic(err) // the configuration allows no other
	}
	return zerolog.New(w).Level(l).With().Timestamp().Str("service", name).Logger()
}

// stdLogger returns log as what net/http writes its complaints to.
func stdLogger(log zerolog.Logger) *stdlog.Logger {
	return stdlog.New(log.With().Str(zerolog.LevelFieldName, "warn").Logger(), "", 0)
}

// Serve serves h at addr until ctx ends, then drains as the package comment says. It returns nil if every request in
// progress could finish.
func (p *Process) Serve(ctx context.Context, addr string, h http.Handler, delay, grace time.Duration) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ReadTimeout:       10 * time.Minute, // a large body over a slow line; the handler knows better
		WriteTimeout:      15 * time.Minute, // counts from the end of the request's header, so it includes that
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          stdLogger(p.Log),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	p.Log.Info().Str("addr", ln.Addr().String()).Msg("listening")
	p.Health.Started()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	begin := time.Now()
	p.Log.Info().Dur("delay_ms", delay).Dur("grace_ms", grace).Msg("draining")
	p.Health.Drain()
	srv.SetKeepAlivesEnabled(false)
	select {
	case err := <-failed:
		return err
	case <-time.After(delay):
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		return errors.Join(fmt.Errorf("requests were cut off after the grace period of %s: %w", grace, err), srv.Close())
	}
	p.Log.Info().Dur("took_ms", time.Since(begin)).Msg("drained")
	return nil
}

// Build says which code this is.
type Build struct{ Version, Revision, Go string }

// ReadBuild returns what the Go toolchain recorded when it built the program.
func ReadBuild() Build {
	b := Build{Version: "unknown", Revision: "unknown", Go: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Go = info.GoVersion
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	modified := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				modified = "+modified"
			}
		}
	}
	b.Revision += modified
	return b
}

func (b Build) String() string {
	return fmt.Sprintf("%s (revision %s, %s)", b.Version, b.Revision, b.Go)
}

func (b Build) metric() prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "build_info",
		Help:        "Always 1; the labels say which code runs.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "goversion": b.Go},
	})
	g.Set(1)
	return g
}
