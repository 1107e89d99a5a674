package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// isolate makes cmd, which must run this program's machine, the first process of the namespaces that a Sandbox needs.
// The kernel ends it when the calling process ends, and everything in it with it.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}

// sysctls are the machine-wide settings that the kubelet insists on (pkg/kubelet/cm, setupKernelTunables) and sets
// where they differ. They belong to the host, so the machine shows it files with these values instead.
var sysctls = map[string]string{
	"kernel/panic":         "10",
	"kernel/panic_on_oops": "1",
	"vm/overcommit_memory": "1",
	"vm/panic_on_oom":      "0",
}

// enter turns the fresh namespaces into a machine. All of it ends with the mount and network namespaces.
func (s *Sandbox) enter() error {
	if err := s.mounts(); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := s.network(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := s.Cgroups().Make(); err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	return nil
}

func (s *Sandbox) mounts() error {
	// Private first: without it every mount below would appear on the host. Then shared among ourselves, because
	// the kubelet's mounts must reach containerd's pods.
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			return fmt.Errorf("propagation of /: %w", err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("/proc: %w", err)
	}
	for _, dir := range Hidden {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/run/lock", "/var/log/pods", "/var/log/containers"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := shadow("/var/lib", "/run/host-var-lib"); err != nil {
		return fmt.Errorf("/var/lib: %w", err)
	}
	// Here the CNI library keeps what it has set up; a host with a cluster of its own has the folder as well.
	if err := os.MkdirAll("/var/lib/cni", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/var/lib/cni", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("/var/lib/cni: %w", err)
	}
	// On a disk, for images and volumes; a tmpfs would count as memory.
	kubelet := filepath.Join(s.Scratch, "kubelet")
	for _, dir := range []string{kubelet, "/var/lib/kubelet"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(kubelet, "/var/lib/kubelet", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("/var/lib/kubelet: %w", err)
	}
	if err := unix.Mount("", "/var/lib/kubelet", "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("/var/lib/kubelet: %w", err)
	}
	if err := os.MkdirAll("/run/sysctl", 0o755); err != nil {
		return err
	}
	for name, value := range sysctls {
		file := filepath.Join("/run/sysctl", strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("/proc/sys/%s: %w", name, err)
		}
	}
	return nil
}

// Hidden lists the folders of the host that a machine does not see. Nothing that it needs may lie there.
var Hidden = []string{"/run", "/var/log"}

// shadow replaces dir by a tmpfs that shows the folders and files of dir, so that what is created in dir itself stays in
// the machine.
func shadow(dir, aside string) error {
	if err := os.MkdirAll(aside, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(dir, aside, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	// Or what is mounted on dir would appear on it as well.
	if err := unix.Mount("", aside, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	entries, err := os.ReadDir(aside)
	if err != nil {
		return err
	}
	for _, e := range entries {
		from, to := filepath.Join(aside, e.Name()), filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			err = os.Mkdir(to, 0o755)
		case e.Type().IsRegular():
			err = os.WriteFile(to, nil, 0o644)
		default:
			continue // links, sockets and the like are nothing that a node needs
		}
		if err == nil {
			err = unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
		}
		if err != nil {
			return fmt.Errorf("showing %s: %w", from, err)
		}
	}
	return nil
}

// network gives the machine one interface with an address and a default route that leads nowhere: the components look
// for both, and no packet can leave.
func (s *Sandbox) network() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	// A pair, because not every kernel has dummy interfaces. The other end only makes this one's carrier.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "uplink"}); err != nil {
		return fmt.Errorf("making a pair of virtual interfaces, which needs the kernel's veth module: %w", err)
	}
	addr, err := netlink.ParseAddr(s.Address)
	if err != nil {
		return err
	}
	for _, name := range []string{"uplink", "eth0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if name == "eth0" {
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		if name == "eth0" {
			everywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere}); err != nil {
				return fmt.Errorf("default route: %w", err)
			}
		}
	}
	// This one belongs to the network namespace.
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1\n"), 0o644)
}

// Init is the first process of a machine's PID namespace, whose duty it is to wait for the processes that lose their
// parent there (containerd's shims, above all). It runs this program once more with the same arguments and files, where
// Run does the machine's work, and ends when that ends. It is a process of its own so that nobody else's children are
// waited for here. listeners is how many files beyond the standard ones to hand down.
func Init(listeners int) error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	for i := range listeners {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(3+i), "listener"))
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("waiting for the machine: %w", err)
		case pid == cmd.Process.Pid && status.Signaled():
			return fmt.Errorf("the machine was ended by a signal: %s", status.Signal())
		case pid == cmd.Process.Pid && status.ExitStatus() != 0:
			return fmt.Errorf("the machine ended with exit status %d", status.ExitStatus())
		case pid == cmd.Process.Pid:
			return nil
		}
	}
}

// Cgroups returns the cgroup of the sandbox's pods.
func (s *Sandbox) Cgroups() Cgroups { return Cgroups{Root: "/sys/fs/cgroup", Name: s.Cgroup} }

// Cgroups is a cgroup of one name in every hierarchy of a host, version 1 or 2.
type Cgroups struct {
	Root string // where the hierarchies are mounted
	Name string
}

// dirs lists the cgroup's folder in each hierarchy, whether it exists or not.
func (c Cgroups) dirs() ([]string, error) {
	if _, err := os.Stat(filepath.Join(c.Root, "cgroup.controllers")); err == nil {
		return []string{filepath.Join(c.Root, c.Name)}, nil // version 2: one hierarchy
	}
	entries, err := os.ReadDir(c.Root)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		// Links are second names (cpu -> cpu,cpuacct). A hybrid host has a version 2 hierarchy without controllers
		// as well, unified, in which runc makes cgroups too.
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(c.Root, e.Name(), c.Name))
		}
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy in %s", c.Root)
	}
	return dirs, nil
}

// Make makes the cgroup in every hierarchy. It is no error if it exists.
func (c Cgroups) Make() error {
	dirs, err := c.dirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A new cpuset is empty and takes no process until it is given what its parent has.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
			if err != nil {
				continue // another hierarchy, or version 2, where an empty set means the parent's
			}
			if err := os.WriteFile(filepath.Join(dir, name), parent, 0o644); err != nil {
				return err
			}
		}
		// Version 2 hands a controller on to children only when told so.
		if available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err == nil {
			var on []string
			for _, name := range strings.Fields(string(available)) {
				on = append(on, "+"+name)
			}
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(strings.Join(on, " ")), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// Remove removes the cgroup and those below it from every hierarchy. It fails while processes are in them.
func (c Cgroups) Remove() error {
	dirs, err := c.dirs()
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		var below []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				below = append(below, path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		errs = append(errs, err)
		for i := len(below) - 1; i >= 0; i-- { // children first
			if err := os.Remove(below[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
				break
			}
		}
	}
	return errors.Join(errs...)
}
