// Package machine is the computer that the local platform runs on: a process that holds the components, a registry and
// a git server. With a Sandbox it is the first process of namespaces of its own, so that nothing that a node does to
// its machine (mounts, interfaces, packet filters, processes) reaches the host, and nothing survives it: when the first
// process of a PID namespace ends, the kernel ends all others. Without one it is an ordinary process on loopback.
//
// The process that starts a machine and the machine talk over three pipes of lines of JSON: the configuration goes in
// on stdin, events come out on stdout, and the end of stdin, which comes however the parent dies, ends the machine.
//
// Sockets keep the network that they were made in. So the parent opens the listeners that people use on the host's
// loopback and hands them down; the machine accepts there and dials in its own network. That needs no interface, route
// or packet filter on the host.
package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"aks-platform/tools/local/internal/process"
)

// Config is what a machine runs.
type Config struct {
	Sandbox  *Sandbox          // nil: no namespaces
	LogDir   string            // of the components, exists
	Stages   [][]process.Spec  // see process.Group
	Git      Server            // serves GitRepos
	GitRepos string            // folder of bare repositories
	Registry Server            // an OCI registry; no address: none
	Blobs    string            // folder of the registry's layers
	Forwards []Forward         // from the host into the machine
	Env      map[string]string // of every component
}

// Server says where a server of the machine listens.
type Server struct {
	Addr     string // in the machine's network
	Listener int    // index of an inherited listener where it is served as well; 0: none. Indices start at 1
}

// Forward passes the connections of an inherited listener on.
type Forward struct {
	Listener int    // index, from 1
	To       string // host:port in the machine's network
	DNS      string // server that knows the host's name; empty: the host is an address
}

// Sandbox describes the namespaces.
type Sandbox struct {
	Hostname string
	Address  string // of the machine's one interface, with its prefix length: 10.250.0.10/24
	Scratch  string // an empty folder of the host for what must be on a disk
	Cgroup   string // name of the cgroup that holds the pods, below the root of each hierarchy
}

// Event is what a machine tells its parent: a component's event, that all stages are ready, or why the machine ends.
type Event struct {
	Process *process.Event `json:"process,omitempty"`
	Up      bool           `json:"up,omitempty"`
	Error   string         `json:"error,omitempty"`
}

// maxConfig bounds the configuration line; a real one has some 10 KiB.
const maxConfig = 1 << 20

// Main is what a process does that Start has started: in a PID namespace of its own it becomes Init first.
func Main(ctx context.Context, listeners int) error {
	if os.Getpid() == 1 {
		return Init(listeners)
	}
	return Run(ctx, os.Stdin, os.Stdout)
}

// Run is the machine. It returns when stdin ends, ctx is cancelled or a component can't be kept up.
func Run(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in := bufio.NewReaderSize(stdin, maxConfig)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("reading the machine's configuration: %w", err)
	}
	var c Config
	if err := json.Unmarshal(line, &c); err != nil {
		return fmt.Errorf("reading the machine's configuration: %w", err)
	}
	go func() {
		// Nothing more is sent; this returns at the end of stdin.
		_, _ = io.Copy(io.Discard, in)
		cancel(errParentGone)
	}()

	var mu sync.Mutex
	out := json.NewEncoder(stdout)
	report := func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		// A parent that no longer reads is gone, and then stdin ends as well.
		_ = out.Encode(e)
	}
	err = c.run(ctx, cancel, report)
	if errors.Is(err, errParentGone) || errors.Is(err, context.Canceled) {
		return nil // asked to end
	}
	report(Event{Error: err.Error()})
	return err
}

var errParentGone = errors.New("the process that started this machine has ended")

func (c *Config) run(ctx context.Context, fatal context.CancelCauseFunc, report func(Event)) error {
	for name, value := range c.Env {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	group := &process.Group{LogDir: c.LogDir, Report: func(e process.Event) { report(Event{Process: &e}) }}
	if c.Sandbox != nil {
		if err := c.Sandbox.enter(); err != nil {
			return fmt.Errorf("making the machine: %w", err)
		}
	}
	if err := c.serve(ctx, fatal); err != nil {
		return err
	}
	defer group.Stop()
	if err := group.Start(ctx, c.Stages, fatal); err != nil {
		return err
	}
	report(Event{Up: true})
	<-ctx.Done()
	return context.Cause(ctx)
}

// serve starts the servers and forwards of the machine. They end with the process.
func (c *Config) serve(ctx context.Context, fatal context.CancelCauseFunc) error {
	type server struct {
		name    string
		where   Server
		handler http.Handler
	}
	servers := []server{}
	if c.Git.Addr != "" {
		h, err := gitHandler(c.GitRepos)
		if err != nil {
			return err
		}
		servers = append(servers, server{"git server", c.Git, h})
	}
	if c.Registry.Addr != "" {
		servers = append(servers, server{"registry", c.Registry, registryHandler(c.Blobs)})
	}
	for _, s := range servers {
		inside, err := net.Listen("tcp", s.where.Addr)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		listeners := []net.Listener{inside}
		if s.where.Listener > 0 {
			l, err := inherited(s.where.Listener)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			listeners = append(listeners, l)
		}
		for _, l := range listeners {
			srv := &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second}
			go func() { fatal(fmt.Errorf("%s: %w", s.name, srv.Serve(l))) }()
		}
	}
	for _, f := range c.Forwards {
		l, err := inherited(f.Listener)
		if err != nil {
			return fmt.Errorf("forward to %s: %w", f.To, err)
		}
		go func() { fatal(fmt.Errorf("forward to %s: %w", f.To, f.run(ctx, l))) }()
	}
	return nil
}

// inherited returns the listener with that index among the files that the parent handed down.
func inherited(index int) (net.Listener, error) {
	if index < 1 {
		return nil, fmt.Errorf("listener %d: indices start at 1", index)
	}
	f := os.NewFile(uintptr(2+index), fmt.Sprint("listener-", index))
	if f == nil {
		return nil, fmt.Errorf("no inherited listener %d", index)
	}
	defer f.Close() // FileListener duplicates it
	return net.FileListener(f)
}
