//go:build unix

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrLocked reports that a platform runs here.
var ErrLocked = errors.New("the local platform is already running in this checkout; stop it with: go run ./tools/local down")

// Lock takes the folder for this process, or fails with ErrLocked. Closing the file, or the end of the process, gives
// it back. Child processes do not inherit it. The process must open the file only once: closing it anywhere gives the
// lock back.
func (d Dir) Lock() (*os.File, error) {
	f, err := os.OpenFile(d.Path("lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: %s belongs to another user (was `up` run with sudo?): run this as that user, or remove it", err, d)
	} else if err != nil {
		return nil, err
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, ErrLocked
	}
	return nil, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
}

// Holder returns the process that has the lock, or 0. It does not take the lock.
func (d Dir) Holder() (pid int, err error) {
	f, err := os.Open(d.Path("lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil {
		return 0, &os.PathError{Op: "look at lock", Path: f.Name(), Err: err}
	}
	if l.Type == unix.F_UNLCK {
		return 0, nil
	}
	return int(l.Pid), nil
}
