package machine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"aks-platform/tools/local/internal/process"
)

// newSandbox returns a sandbox, and skips the test where none can be made. Its cgroup is gone when the test has ended.
func newSandbox(t *testing.T) *Sandbox {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a sandbox needs root")
	}
	probe := exec.Command("true")
	probe.SysProcAttr = &syscall.SysProcAttr{}
	isolate(probe)
	if err := probe.Run(); err != nil {
		t.Skipf("this system does not let root make namespaces: %v", err)
	}
	s := &Sandbox{
		Hostname: "sandbox-test",
		Address:  "10.250.0.10/24",
		Scratch:  t.TempDir(),
		Cgroup:   "aks-platform-test-" + unique(),
	}
	if err := s.Cgroups().Make(); err != nil {
		t.Skipf("this system does not let root make cgroups: %v", err)
	}
	if err := s.Cgroups().Remove(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Cgroups().Remove(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// run runs a script in a sandbox as a component; it returns when the script has ended.
func run(t *testing.T, s *Sandbox, script string, args ...string) *Machine {
	t.Helper()
	spec := shell("script", "set -e\n"+script, args...)
	spec.Once = true
	m := start(t, Config{LogDir: t.TempDir(), Sandbox: s, Stages: [][]process.Spec{{spec}}})
	waitUp(t, m)
	return m
}

// host is what a sandbox must not change.
type host struct {
	Hostname string
	Devices  string
	Mounts   map[string]int // how often something is mounted where the sandbox mounts
	Sysctls  map[string]string
	Entries  map[string]string // of the folders that the sandbox hides
}

func lookAround(t *testing.T, mark string) host {
	t.Helper()
	h := host{Mounts: map[string]int{}, Sysctls: map[string]string{}, Entries: map[string]string{}}
	var err error
	if h.Hostname, err = os.Hostname(); err != nil {
		t.Fatal(err)
	}
	devices, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		if d.Name == "eth0" || d.Name == "uplink" || d.Name == "lo" {
			addresses, err := d.Addrs()
			h.Devices += fmt.Sprintln(d.Name, d.Index, d.Flags, addresses, err)
		}
	}
	for _, line := range strings.Split(content(t, "/proc/self/mountinfo"), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		switch where := fields[4]; {
		case where == "/proc", where == "/run", where == "/var/log", where == "/var/lib", where == "/var/lib/kubelet",
			strings.HasPrefix(where, "/proc/sys"), strings.HasPrefix(where, "/run/host-var-lib"), strings.Contains(line, mark):
			h.Mounts[where]++
		}
	}
	for _, name := range []string{"kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "vm/panic_on_oom", "net/ipv4/ip_forward"} {
		h.Sysctls[name] = content(t, filepath.Join("/proc/sys", name))
	}
	for _, dir := range []string{"/run", "/var/lib", "/var/lib/kubelet", "/var/log"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if name := e.Name(); strings.Contains(name, mark) || name == "sysctl" || name == "host-var-lib" || name == "kubelet" {
				h.Entries[dir] += name + "\n"
			}
		}
	}
	return h
}

func TestSandbox(t *testing.T) {
	t.Parallel()
	s, mark, out := newSandbox(t), "mark-"+unique(), t.TempDir()
	before := lookAround(t, mark)
	m := run(t, s, `
out=$1 mark=$2
look() { name=$1; shift; "$@" > "$out/$name"; }
look hostname cat /proc/sys/kernel/hostname
look devices sed -n 's/^ *\([^:]*\):.*/\1/p' /proc/net/dev
look routes cat /proc/net/route
look init cat /proc/1/cmdline
look self sed -n 's/^NSpid:\t//p' /proc/self/status
for name in kernel/panic kernel/panic_on_oops vm/overcommit_memory vm/panic_on_oom net/ipv4/ip_forward; do
	look "$(echo $name | tr / .)" cat /proc/sys/$name
done
echo 10 > /proc/sys/kernel/panic
for ns in net mnt pid uts ipc; do look ns.$ns readlink /proc/self/ns/$ns; done
look lib ls /var/lib
for dir in /var/lib /var/log /run /var/lib/kubelet; do
	mkdir "$dir/$mark"
	echo written > "$dir/$mark/file"
done
mount -t tmpfs "$mark" "/var/lib/$mark"
mkdir "$out/$mark"
mount -t tmpfs "$mark" "$out/$mark"
`, out, mark)
	defer m.Stop()

	for name, want := range map[string]string{
		"hostname": "sandbox-test\n", "kernel.panic": "10\n", "kernel.panic_on_oops": "1\n", "vm.overcommit_memory": "1\n",
		"vm.panic_on_oom": "0\n", "net.ipv4.ip_forward": "1\n",
	} {
		if got := content(t, filepath.Join(out, name)); got != want {
			t.Errorf("inside, %s is %q; want %q", name, got, want)
		}
	}
	devices := strings.Fields(content(t, filepath.Join(out, "devices")))
	var others []string
	for _, d := range devices {
		// Some kernels put their tunnels into each namespace.
		if d != "lo" && d != "eth0" && d != "uplink" && !strings.Contains(d, "tun") && !strings.Contains(d, "gre") && !strings.Contains(d, "sit") && !strings.Contains(d, "vti") {
			others = append(others, d)
		}
	}
	if len(others) > 0 || !strings.Contains(strings.Join(devices, " "), "eth0") {
		t.Errorf("inside, there are the interfaces %v", devices)
	}
	if routes := content(t, filepath.Join(out, "routes")); !strings.Contains(routes, "eth0\t00000000\t") {
		t.Errorf("inside, no default route in\n%s", routes)
	}
	if init := content(t, filepath.Join(out, "init")); !strings.Contains(init, machineCommand) {
		t.Errorf("inside, process 1 is %q", init)
	}
	for _, ns := range []string{"net", "mnt", "pid", "uts", "ipc"} {
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		if got := strings.TrimSpace(content(t, filepath.Join(out, "ns."+ns))); err != nil || got == ours || got == "" {
			t.Errorf("inside, the %s namespace is %s, and here it is %s, %v", ns, got, ours, err)
		}
	}
	// What the host has in /var/lib is seen.
	entries, err := os.ReadDir("/var/lib")
	if err != nil {
		t.Fatal(err)
	}
	inside := strings.Fields(content(t, filepath.Join(out, "lib")))
	seen := strings.Join(inside, "\n") + "\n"
	for _, e := range entries {
		if (e.IsDir() || e.Type().IsRegular()) && !strings.Contains(e.Name(), " ") && !strings.Contains(seen, e.Name()+"\n") {
			t.Errorf("inside, /var/lib lacks %s", e.Name())
		}
	}
	// The kubelet's folder is on a disk.
	if got := content(t, filepath.Join(s.Scratch, "kubelet", mark, "file")); got != "written\n" {
		t.Errorf("in the scratch folder is %q", got)
	}

	during := lookAround(t, mark)
	if a, b := fmt.Sprintf("%+v", before), fmt.Sprintf("%+v", during); a != b {
		t.Errorf("the sandbox has changed the host from\n%s\nto\n%s", a, b)
	}
	dirs, err := s.Cgroups().dirs()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if !exists(d) {
			t.Errorf("no cgroup %s", d)
		}
	}
	m.Stop()
	if err := s.Cgroups().Remove(); err != nil {
		t.Error(err)
	}
	for _, d := range dirs {
		if exists(d) {
			t.Errorf("the cgroup %s is left", d)
		}
	}
	after := lookAround(t, mark)
	if a, b := fmt.Sprintf("%+v", before), fmt.Sprintf("%+v", after); a != b {
		t.Errorf("the sandbox has left the host changed from\n%s\nto\n%s", a, b)
	}
}

// Whoever loses its parent is process 1's, which waits for it.
func TestSandboxReapsOrphans(t *testing.T) {
	t.Parallel()
	s, out := newSandbox(t), t.TempDir()
	run(t, s, `
out=$1
for i in 1 2 3 4 5 6 7 8 9 10; do
	# An orphan that has ended before the next line, and one that goes on.
	(: & ) >/dev/null
	(sleep 0.01 & ) >/dev/null
done
(sleep 300 & echo $! > "$out/pid")
sed -n 's/^PPid:\t//p' /proc/$(cat "$out/pid")/status > "$out/parent"
deadline=$(($(date +%s) + 15))
while cat /proc/[0-9]*/status 2>/dev/null | grep -q '^State:.Z' || [ "$(ls /proc/*/comm | xargs cat 2>/dev/null | grep -c '^sleep$')" -gt 1 ]; do
	if [ "$(date +%s)" -gt "$deadline" ]; then cat /proc/[0-9]*/stat > "$out/left"; break; fi
	sleep 0.02
done
: > "$out/done"
`, out)
	if got := content(t, filepath.Join(out, "parent")); got != "1\n" {
		t.Errorf("the parent of an orphan is %q; want 1", got)
	}
	if left := content(t, filepath.Join(out, "left")); left != "" || !exists(filepath.Join(out, "done")) {
		t.Errorf("not reaped:\n%s", left)
	}
}

// Stop returns when everything in the sandbox has ended, daemons included.
func TestSandboxStops(t *testing.T) {
	t.Parallel()
	s, mark := newSandbox(t), unique()
	m := run(t, s, `setsid sleep "$1" </dev/null >/dev/null 2>&1 & echo $$ > "$2"/cgroup.procs 2>/dev/null || true`, mark, t.TempDir())
	eventually(t, "the daemon runs", func() bool { return len(alive(t, mark)) == 1 })
	m.Stop()
	if pids := alive(t, mark); len(pids) > 0 {
		t.Errorf("Stop has left the processes %v", pids)
	}
	if err := s.Cgroups().Remove(); err != nil {
		t.Error(err)
	}
}

// A pod's processes are in the cgroup; when the machine has stopped, it can be removed at once.
func TestSandboxFreesItsCgroups(t *testing.T) {
	t.Parallel()
	s, mark := newSandbox(t), unique()
	dirs, err := s.Cgroups().dirs()
	if err != nil {
		t.Fatal(err)
	}
	m := run(t, s, `
mark=$1; shift
for dir; do
	mkdir "$dir/pod"
	for f in cpuset.cpus cpuset.mems; do
		if [ -e "$dir/pod/$f" ] && [ ! -e "$dir/cgroup.controllers" ]; then cat "$dir/$f" > "$dir/pod/$f"; fi
	done
	echo $$ > "$dir/pod/cgroup.procs"
done
setsid sleep "$mark" </dev/null >/dev/null 2>&1 &
`, append([]string{mark}, dirs...)...)
	eventually(t, "the pod runs", func() bool { return len(alive(t, mark)) == 1 })
	if err := s.Cgroups().Remove(); err == nil {
		t.Error("a cgroup was removed with a process in it")
	}
	m.Stop()
	if err := s.Cgroups().Remove(); err != nil {
		t.Errorf("after Stop: %v", err)
	}
	for _, d := range dirs {
		if exists(d) {
			t.Errorf("%s is left", d)
		}
	}
}

func TestSandboxEndsWithItsParent(t *testing.T) {
	t.Parallel()
	killParent(t, Config{Sandbox: newSandbox(t)})
}

// The servers of a sandbox are reached through listeners of the host, and in no other way.
func TestSandboxServes(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	checkServers(t, func(c *Config) {
		c.Sandbox, c.Git.Addr, c.Registry.Addr = s, "10.250.0.10:9791", "10.250.0.10:5000"
	})
}

// Two machines, with the same addresses and ports, do not disturb each other.
func TestTwoSandboxes(t *testing.T) {
	t.Parallel()
	for range 2 {
		c := Config{LogDir: t.TempDir(), Sandbox: newSandbox(t), Registry: Server{Addr: "10.250.0.10:5000"}, Blobs: t.TempDir()}
		waitUp(t, start(t, c))
	}
}

func TestSandboxErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		change func(*Sandbox)
		want   string
	}{
		{"no address", func(s *Sandbox) { s.Address = "none" }, "network: "},
		{"a host name that is too long", func(s *Sandbox) { s.Hostname = strings.Repeat("x", 100) }, "host name: "},
		{"a cgroup that can't be made", func(s *Sandbox) { s.Cgroup += "/no/such" }, "cgroups: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSandbox(t)
			test.change(s)
			errs := waitEnd(t, start(t, Config{LogDir: t.TempDir(), Sandbox: s}))
			if len(errs) != 1 || !strings.HasPrefix(errs[0], "making the machine: ") || !strings.Contains(errs[0], test.want) {
				t.Errorf("errors %q; want one with %q", errs, test.want)
			}
		})
	}
}
