// Command worker runs the jobs that backend-api accepts. Package worker describes what it does about faults, package
// kinds which jobs there are, package service the configuration, the admin address and how the process ends.
package main

import (
	"context"
	"os"
	"time"

	"aks-platform/src/internal/kinds"
	"aks-platform/src/internal/service"
	"aks-platform/src/internal/worker"
)

type config struct {
	service.Config
	Concurrency   int           `env:"WORKER_CONCURRENCY" default:"4" validate:"min=1,max=1024" want:"a number from 1 to 1024" doc:"jobs that run at the same time"`
	MaxAttempts   int           `env:"WORKER_MAX_ATTEMPTS" default:"5" validate:"min=1,max=100" want:"a number from 1 to 100" doc:"how often a job is tried"`
	Lease         time.Duration `env:"WORKER_LEASE" default:"60s" validate:"min=1s,max=1h" want:"a duration from 1s to 1h" doc:"how long the jobs of a dead worker wait"`
	JobTimeout    time.Duration `env:"WORKER_JOB_TIMEOUT" default:"5m" validate:"min=1s,max=24h" want:"a duration from 1s to 24h" doc:"limit of one attempt"`
	ShutdownGrace time.Duration `env:"SHUTDOWN_GRACE" default:"10s" validate:"min=0s,max=1h" want:"a duration from 0s to 1h" doc:"time for attempts in progress at the end"`
}

func main() {
	var c config
	os.Exit(service.Main("worker", &c, func(ctx context.Context, p *service.Process) error { return run(ctx, p, c) }))
}

func run(ctx context.Context, p *service.Process, c config) error {
	w := worker.New(worker.Config{
		Queue:       p.Queue,
		Store:       p.Store,
		Kinds:       kinds.All(),
		Concurrency: c.Concurrency,
		MaxAttempts: c.MaxAttempts,
		Lease:       c.Lease,
		Timeout:     c.JobTimeout,
		Grace:       c.ShutdownGrace,
		Log:         p.Log,
		Metrics:     p.Metrics,
	})
	p.Health.Checks(w.Alive, w.Ready)
	p.Health.Started()
	context.AfterFunc(ctx, p.Health.Drain)
	w.Run(ctx)
	return nil
}
