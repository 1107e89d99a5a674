// Command backend-api accepts jobs over HTTP and tells how they are. Package api describes the requests, package service
// the configuration, the admin address and how the process ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"aks-platform/src/internal/api"
	"aks-platform/src/internal/kinds"
	"aks-platform/src/internal/service"
)

type config struct {
	service.Config
	ListenAddr     string        `env:"LISTEN_ADDR" default:"127.0.0.1:8080" validate:"addr" want:"host:port" doc:"address of the API"`
	MaxInput       int64         `env:"MAX_INPUT_BYTES" default:"67108864" validate:"min=1,max=1073741824" want:"a number from 1 to 1073741824" doc:"size of the largest input"`
	KeysFile       string        `env:"API_KEYS_FILE" want:"the path of a file with lines name:sha256" doc:"keys of callers; read again when it changes"`
	AllowAnonymous bool          `env:"ALLOW_ANONYMOUS" default:"false" want:"true or false" doc:"let anybody call who reaches LISTEN_ADDR"`
	ShutdownDelay  time.Duration `env:"SHUTDOWN_DELAY" default:"0s" validate:"min=0s,max=10m" want:"a duration from 0s to 10m" doc:"how long to go on after becoming unready"`
	ShutdownGrace  time.Duration `env:"SHUTDOWN_GRACE" default:"20s" validate:"min=0s,max=1h" want:"a duration from 0s to 1h" doc:"time for requests in progress at the end"`
}

// Check keeps an API without keys from being reachable by accident.
func (c *config) Check() error {
	errs := []error{c.Config.Check()}
	switch {
	case c.KeysFile != "" && c.AllowAnonymous:
		errs = append(errs, errors.New("ALLOW_ANONYMOUS=true: contradicts API_KEYS_FILE; want only one of them"))
	case c.KeysFile == "" && !c.AllowAnonymous && !loopback(c.ListenAddr):
		errs = append(errs, fmt.Errorf("LISTEN_ADDR=%q: without API_KEYS_FILE anybody could call; want that file, or an address on this machine such as 127.0.0.1:8080, or ALLOW_ANONYMOUS=true", c.ListenAddr))
	}
	return errors.Join(errs...)
}

// loopback reports whether only this machine can reach addr.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

const (
	// maxUploads bounds the inputs being received. Each takes a connection and a file, but next to no memory.
	maxUploads = 64
	// maxBacklog is where the API stops to promise more: at a hundred jobs a second, 17 minutes of work.
	maxBacklog = 100_000
)

func main() {
	var c config
	os.Exit(service.Main("backend-api", &c, func(ctx context.Context, p *service.Process) error { return run(ctx, p, c) }))
}

func run(ctx context.Context, p *service.Process, c config) (err error) {
	var keys *api.Keys
	switch {
	case c.KeysFile != "":
		if keys, err = api.LoadKeys(c.KeysFile, p.Log); err != nil {
			return fmt.Errorf("API_KEYS_FILE: %w", err)
		}
	case !loopback(c.ListenAddr):
		p.Log.Warn().Str("addr", c.ListenAddr).Msg("anybody who reaches this address may call, because of ALLOW_ANONYMOUS")
	}
	a := api.API{
		Queue:      p.Queue,
		Store:      p.Store,
		Kinds:      kinds.All(),
		MaxInput:   c.MaxInput,
		MaxUploads: maxUploads,
		MaxBacklog: maxBacklog,
		Backlog:    p.Health.Backlog,
		Keys:       keys,
		Log:        p.Log,
		Metrics:    p.Metrics,
	}
	return p.Serve(ctx, c.ListenAddr, a.Handler(), c.ShutdownDelay, c.ShutdownGrace)
}
