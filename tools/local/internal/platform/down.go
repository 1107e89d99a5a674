package platform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"aks-platform/tools/local/internal/state"
)

// downTimeout is how long a platform may take to stop before it is killed. Stopping takes about a second.
const downTimeout = 30 * time.Second

// Down stops the platform of a checkout and removes what a killed one left. It reports whether one ran.
func Down(ctx context.Context, root string) (stopped bool, err error) {
	dir := StateDir(root)
	r, err := dir.Running()
	switch {
	case errors.Is(err, state.ErrNotRunning):
	case err != nil:
		return false, err
	default:
		if err := stop(ctx, dir, r); err != nil {
			return false, err
		}
		stopped = true
	}
	lock, err := dir.Lock()
	if errors.Is(err, fs.ErrNotExist) {
		return stopped, nil // no platform was ever started here
	} else if err != nil {
		return stopped, err // another one has just been started, which cleans up itself
	}
	defer lock.Close()
	if err := dir.Clear(); err != nil {
		return stopped, err
	}
	if whySimulate() == "" {
		return stopped, removeCgroups(cgroups(dir))
	}
	return stopped, nil
}

// stop asks the process to end and waits until it has given back the lock.
func stop(ctx context.Context, dir state.Dir, r state.Run) error {
	signal := syscall.SIGTERM
	for range 2 {
		// It held the lock a moment ago.
		if err := syscall.Kill(r.PID, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stopping process %d: %w", r.PID, err)
		}
		deadline := time.Now().Add(downTimeout)
		for time.Now().Before(deadline) {
			if _, err := dir.Running(); errors.Is(err, state.ErrNotRunning) {
				return nil
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(50 * time.Millisecond):
			}
		}
		signal = syscall.SIGKILL
	}
	return fmt.Errorf("process %d did not end", r.PID)
}
