package machine

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// Machine is a running machine, seen from its parent.
type Machine struct {
	// Events tells what happens in the machine. It is closed when the machine has ended.
	Events <-chan Event

	stdin io.Closer
	kill  func() error
	ended chan struct{}
}

// stopTimeout is how long a machine may take to end by itself.
const stopTimeout = 5 * time.Second

// Start starts a machine by running this program with the arguments command and the number of listeners; it must call
// Main then. The listeners are handed down in this order, from index 1. log gets what the machine itself prints.
func Start(c Config, command string, listeners []*os.File, log *os.File) (*Machine, error) {
	self := "/proc/self/exe" // still there when `go run` has removed the file
	if runtime.GOOS != "linux" {
		var err error
		if self, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(self, command, strconv.Itoa(len(listeners)))
	cmd.ExtraFiles = listeners
	cmd.Stderr = log
	// Ctrl-C in the terminal is for this process, which ends the machine in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.Sandbox != nil {
		isolate(cmd)
	}
	line, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	events := make(chan Event, 64)
	m := &Machine{Events: events, stdin: stdin, ended: make(chan struct{})}
	go func() {
		// The kernel ends the machine with the thread that started it, so this thread must live as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		said := read(stdout, events)
		err = cmd.Wait()
		if err != nil && said == nil {
			events <- Event{Error: fmt.Sprintf("the machine ended: %v; see %s", err, log.Name())}
		}
		close(events)
		close(m.ended)
	}()
	if err := <-started; errors.Is(err, fs.ErrPermission) && c.Sandbox != nil {
		return nil, fmt.Errorf("this system does not let us make namespaces (%w): in a container, run it privileged; "+
			"or simulate pods: --simulate", err)
	} else if err != nil {
		return nil, fmt.Errorf("starting the machine: %w", err)
	}
	m.kill = cmd.Process.Kill
	if _, err := stdin.Write(append(line, '\n')); err != nil {
		m.Stop()
		return nil, fmt.Errorf("configuring the machine: %w", err)
	}
	return m, nil
}

// read passes on the events on stdout until its end. It returns an error if the last one said why the machine ends.
func read(stdout io.Reader, events chan<- Event) error {
	var last error
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, maxConfig)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			e.Error = fmt.Sprintf("the machine said %q: %v", lines.Bytes(), err)
		}
		if e.Error != "" {
			last = errors.New(e.Error)
		}
		events <- e
	}
	return last
}

// Stop ends the machine and everything in it, and returns when it has ended.
func (m *Machine) Stop() {
	m.stdin.Close()
	go func() {
		for range m.Events { // so that the machine is not held up by an event that nobody takes
		}
	}()
	select {
	case <-m.ended:
		return
	case <-time.After(stopTimeout):
	}
	// The only error is that it has just ended.
	_ = m.kill()
	<-m.ended
}
