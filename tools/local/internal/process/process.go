// Package process runs the components of the local platform as child processes: in stages, each started when the one
// before it is ready, and watched from then on.
//
// A component that ends before it was ever ready is a fault of the platform and ends everything, with the last lines of
// its log in the error. One that ends later is started again, as systemd would do it on a node.
package process

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Spec says how to run a component.
type Spec struct {
	Name  string   // the log file is Name.log
	Path  string   // of the program
	Args  []string // without the program's name
	Env   []string // in addition to the environment of this process, NAME=value
	Ready Probe    // when the next stage may start; none means at once
	Once  bool     // the component is ready when it has ended well
}

// Probe is how to ask whether a component is ready.
type Probe struct {
	URL    string // answers a GET with 200. Certificates are not verified: it is our own child on our own network
	Socket string // a Unix socket that accepts
}

// State is what happened to a component.
type State string

const (
	Ready     State = "ready"
	Restarted State = "restarted"
	Exited    State = "exited" // a Once component ended well
)

// Event is a change of a component's state.
type Event struct {
	Component string        `json:"component"`
	State     State         `json:"state"`
	After     time.Duration `json:"after"`             // since the component was started
	Message   string        `json:"message,omitempty"` // why, for people
}

// Group runs components. The durations and the limit have defaults, which are in force when a field is zero.
type Group struct {
	LogDir string      // exists
	Report func(Event) // called from several goroutines

	ReadyTimeout time.Duration // for a component to become ready: 2 min
	RestartDelay time.Duration // before a component is started again: 1 s
	// A component that ends more than RestartLimit times (5), each within RestartWindow (1 min) of its start, is given
	// up: it can't be kept up.
	RestartLimit  int
	RestartWindow time.Duration

	mu      sync.Mutex
	running map[int]*os.Process
	stopped bool
	stop    chan struct{} // see stopping
	wg      sync.WaitGroup
}

// Start runs the stages one after the other and returns when the last one is ready. Components then go on until Stop.
// The error names the component. fatal gets such an error later, of each component that can't be kept up.
func (g *Group) Start(ctx context.Context, stages [][]Spec, fatal func(error)) error {
	for _, stage := range stages {
		ctx, cancel := context.WithCancelCause(ctx)
		var ready sync.WaitGroup
		for _, spec := range stage {
			ready.Go(func() {
				if err := g.startOne(ctx, spec, fatal); err != nil {
					cancel(fmt.Errorf("%s: %w", spec.Name, err))
				}
			})
		}
		ready.Wait()
		err := context.Cause(ctx)
		cancel(nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// startOne returns when the component is ready. A goroutine watches it from then on.
func (g *Group) startOne(ctx context.Context, spec Spec, fatal func(error)) error {
	start := time.Now()
	cmd, exited, err := g.spawn(spec)
	if err != nil {
		return err
	}
	if spec.Once {
		select {
		case err := <-exited:
			if err != nil {
				return fmt.Errorf("%w; its log ends with\n%s", err, g.tail(spec))
			}
			g.Report(Event{spec.Name, Exited, time.Since(start), ""})
			return nil
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), cmd.Process.Kill())
		}
	}
	timeout := cmp.Or(g.ReadyTimeout, 2*time.Minute)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready after %s", timeout))
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for !spec.Ready.ok(ctx) {
		select {
		case err := <-exited:
			return fmt.Errorf("ended before it was ready (%s); its log ends with\n%s", ended(err), g.tail(spec))
		case <-ctx.Done():
			return fmt.Errorf("%w; its log ends with\n%s", context.Cause(ctx), g.tail(spec))
		case <-poll.C:
		}
	}
	g.Report(Event{spec.Name, Ready, time.Since(start), ""})
	g.wg.Go(func() { g.watch(spec, start, exited, fatal) })
	return nil
}

// watch restarts the component whenever it ends, until Stop.
func (g *Group) watch(spec Spec, started time.Time, exited <-chan error, fatal func(error)) {
	limit, window := cmp.Or(g.RestartLimit, 5), cmp.Or(g.RestartWindow, time.Minute)
	quick := 0
	for {
		err := <-exited
		if g.isStopped() {
			return
		}
		if time.Since(started) > window {
			quick = 0
		}
		if quick++; quick > limit {
			fatal(fmt.Errorf("%s: ended %d times, each within %s of its start (%s); its log ends with\n%s",
				spec.Name, quick, window, ended(err), g.tail(spec)))
			return
		}
		why, lived := err, time.Since(started)
		select {
		case <-time.After(cmp.Or(g.RestartDelay, time.Second)):
		case <-g.stopping():
			return
		}
		started = time.Now()
		_, next, err := g.spawn(spec)
		if err != nil {
			if !g.isStopped() {
				fatal(fmt.Errorf("%s: starting it again: %w", spec.Name, err))
			}
			return
		}
		g.Report(Event{spec.Name, Restarted, lived, "ended: " + ended(why)})
		exited = next
	}
}

var errStopped = errors.New("the platform is stopping")

func (g *Group) spawn(spec Spec) (*exec.Cmd, <-chan error, error) {
	log, err := os.OpenFile(filepath.Join(g.LogDir, spec.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = attributes()
	// Under the lock, so that Stop misses nobody.
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return nil, nil, errStopped
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	if g.running == nil {
		g.running = map[int]*os.Process{}
	}
	g.running[cmd.Process.Pid] = cmd.Process
	exited := make(chan error, 1)
	g.wg.Go(func() {
		err := cmd.Wait()
		g.mu.Lock()
		delete(g.running, cmd.Process.Pid)
		g.mu.Unlock()
		exited <- err
	})
	return cmd, exited, nil
}

// Stop kills every component and returns when none is left. Their state is thrown away, so nothing is to be saved.
func (g *Group) Stop() {
	stop := g.stopping()
	g.mu.Lock()
	if !g.stopped {
		close(stop)
	}
	g.stopped = true
	for _, p := range g.running {
		// The only error is that the process has just ended.
		_ = p.Kill()
	}
	g.mu.Unlock()
	g.wg.Wait()
}

// stopping returns the channel that Stop closes.
func (g *Group) stopping() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stop == nil {
		g.stop = make(chan struct{})
	}
	return g.stop
}

func (g *Group) isStopped() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stopped
}

// tail returns the end of a component's log.
func (g *Group) tail(spec Spec) string {
	f, err := os.Open(filepath.Join(g.LogDir, spec.Name+".log"))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const size = 4 << 10
	if info, err := f.Stat(); err == nil && info.Size() > size {
		if _, err := f.Seek(-size, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, size))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return "\t" + strings.Join(lines[max(0, len(lines)-8):], "\n\t")
}

var probeClient = &http.Client{
	Timeout: time.Second,
	Transport: &http.Transport{
		Proxy:             nil,
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
	},
}

func (p Probe) ok(ctx context.Context) bool {
	switch {
	case p.Socket != "":
		c, err := net.DialTimeout("unix", p.Socket, time.Second)
		if err != nil {
			return false
		}
		c.Close()
	case p.URL != "":
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
		if err != nil {
			return false
		}
		resp, err := probeClient.Do(req)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	return true
}

// ended says how a process ended, for people.
func ended(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}
