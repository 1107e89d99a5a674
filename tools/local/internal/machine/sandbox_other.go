//go:build !linux

package machine

import (
	"errors"
	"os/exec"
)

// isolate does nothing: namespaces are Linux's.
func isolate(*exec.Cmd) {}

// Hidden is empty: see isolate.
var Hidden []string

func (s *Sandbox) enter() error { return errors.New("a real node needs Linux") }

// Init is not needed without PID namespaces.
func Init(int) error { return errors.ErrUnsupported }

// Cgroups is empty here.
func (s *Sandbox) Cgroups() Cgroups { return Cgroups{} }

// Cgroups exist on Linux only.
type Cgroups struct{ Root, Name string }

// Make does nothing.
func (c Cgroups) Make() error { return nil }

// Remove does nothing.
func (c Cgroups) Remove() error { return nil }
