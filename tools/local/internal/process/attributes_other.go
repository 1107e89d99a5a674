//go:build !linux

package process

import "syscall"

// attributes is empty: only Linux can tie a component's life to this process. machine.Run stops the components when its
// parent goes away.
func attributes() *syscall.SysProcAttr { return nil }
