//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// platform is a running `up`.
type platform struct {
	dir    string // the clone
	cmd    *exec.Cmd
	exited chan error // of up

	mu  sync.Mutex
	out bytes.Buffer
}

// Write takes what up prints.
func (p *platform) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *platform) output(*testing.T) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// clone makes a clone of this checkout's HEAD that the test may commit to.
func clone(t *testing.T) string {
	t.Helper()
	top := strings.TrimSpace(run(t, ".", "git", "rev-parse", "--show-toplevel"))
	dir := filepath.Join(t.TempDir(), "clone")
	run(t, top, "git", "clone", "--quiet", "--no-hardlinks", top, dir)
	run(t, dir, "git", "config", "user.name", "e2e")
	run(t, dir, "git", "config", "user.email", "e2e@localhost")
	return dir
}

// start runs `up` and returns when the commit is rolled out. The test stops it in the end, however it ends.
func start(t *testing.T, dir string, args ...string) *platform {
	t.Helper()
	return startAs(t, dir, nil, args...)
}

func startAs(t *testing.T, dir string, credential *syscall.Credential, args ...string) *platform {
	t.Helper()
	p := &platform{dir: dir, exited: make(chan error, 1)}
	p.cmd = exec.Command(local, append([]string{"--root", dir, "up", "--port=0"}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	if credential != nil {
		p.cmd.Env = append(os.Environ(), "HOME="+filepath.Join(dir, ".local"), "GOCACHE="+filepath.Join(dir, ".local", "go"))
		// The program under test lies in a folder of the one who runs the test.
		if err := os.Chmod(filepath.Dir(local), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.exited <- p.cmd.Wait() }()
	t.Cleanup(func() {
		if out, err := exec.Command(local, "--root", dir, "down").CombinedOutput(); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
		if t.Failed() {
			t.Logf("up printed:\n%s", p.output(t))
		}
	})
	p.rolledOut(t)
	t.Logf("up: rolled out after %.1f s", time.Since(begin).Seconds())
	return p
}

// status is what `local status` says.
func (p *platform) status(t *testing.T) (s struct {
	PID                    int
	Up, Simulated          bool
	API, Commit, Published string
	Objects                []struct{ Name, Ready, Revision string }
}) {
	t.Helper()
	// Exit code 1 is for a commit on its way, which is not our business here.
	out, err := exec.Command(local, "--root", p.dir, "status", "--format=json").Output()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("status: %v", err)
	}
	if len(out) > 0 {
		if err := json.Unmarshal(out, &s); err != nil {
			t.Fatalf("status: %v: %s", err, out)
		}
	}
	return s
}

// rolledOut waits until the newest commit is.
func (p *platform) rolledOut(t *testing.T) {
	t.Helper()
	head := strings.TrimSpace(p.git(t, "rev-parse", "HEAD"))
	// Long enough to build everything on a fresh machine.
	p.waitFor(t, 40*time.Minute, "rollout of "+head, func() (bool, string) {
		s := p.status(t)
		return s.Up && s.Commit == head, p.output(t)
	})
}

// settled waits until Flux has nothing to do. A commit that comes while it still looks at the health of the last one, up
// to five seconds after the rollout, waits as long.
func (p *platform) settled(t *testing.T) {
	t.Helper()
	p.waitFor(t, time.Minute, "Flux at rest", func() (bool, string) {
		s := p.status(t)
		for _, o := range s.Objects {
			if o.Ready != "True" || !strings.HasSuffix(o.Revision, s.Published) {
				return false, fmt.Sprint(o)
			}
		}
		return len(s.Objects) > 0, "no objects"
	})
}

func (p *platform) commit(t *testing.T, message string) {
	t.Helper()
	p.git(t, "add", "--all")
	p.git(t, "commit", "--quiet", "--message", message)
}

// deploy commits everything and waits for the rollout.
func (p *platform) deploy(t *testing.T, message string) {
	t.Helper()
	p.commit(t, message)
	p.rolledOut(t)
}

// measureRollouts rolls out five commits, in each of which a place of a file is another number, and fails if the median
// from the commit to the last pod is too long.
func (p *platform) measureRollouts(t *testing.T, file, pattern, replacement string) {
	t.Helper()
	// Four seconds are usual with a real node and two without; the rest is for a busy machine.
	const limit = 8 * time.Second
	var took []time.Duration
	for i := range 5 {
		p.edit(t, file, pattern, fmt.Sprintf(replacement, 5+i))
		p.settled(t)
		begin := time.Now()
		p.deploy(t, fmt.Sprint("Change number ", i))
		took = append(took, time.Since(begin).Round(100*time.Millisecond))
	}
	slices.Sort(took)
	t.Logf("commit to rollout: median %s of %v", took[2], took)
	if took[2] > limit {
		t.Errorf("the median is more than %s", limit)
	}
}

// edit replaces the one place in a file that matches the regular expression.
func (p *platform) edit(t *testing.T, file, pattern, replacement string) {
	t.Helper()
	path := filepath.Join(p.dir, file)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	re := regexp.MustCompile(pattern)
	if n := len(re.FindAll(old, -1)); n != 1 {
		t.Fatalf("%s has %d places that match %q, want 1", file, n, pattern)
	}
	p.write(t, file, string(re.ReplaceAllLiteral(old, []byte(replacement))))
}

func (p *platform) write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, file), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (p *platform) git(t *testing.T, args ...string) string {
	t.Helper()
	// The clone may belong to somebody else.
	return run(t, p.dir, "git", append([]string{"-c", "safe.directory=*"}, args...)...)
}

// local runs a command of the program and returns what it prints.
func (p *platform) local(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, p.dir, local, args...)
}

// waitFor polls until ok. The last detail is printed if that takes too long or up has ended.
func (p *platform) waitFor(t *testing.T, timeout time.Duration, what string, ok func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		done, detail := ok()
		if done {
			return
		}
		select {
		case err := <-p.exited:
			t.Fatalf("up ended (%v) while waiting for: %s\n%s", err, what, p.output(t))
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for: %s\n%s", timeout, what, detail)
		}
	}
}

func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(program), strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// listen takes a port for the rest of the test.
func listen(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// hostState is what of the host a platform could change, and the processes of platforms.
func hostState(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	state["mounts"] = string(mounts)
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		state["interfaces"] += i.Name + "\n"
	}
	cgroups, err := filepath.Glob("/sys/fs/cgroup/*/aks-platform-*")
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Glob("/sys/fs/cgroup/aks-platform-*")
	if err != nil {
		t.Fatal(err)
	}
	state["cgroups"] = fmt.Sprintln(append(cgroups, top...))
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	// Where the kubelet, containerd, CNI and kubectl make folders if they are let.
	for _, dir := range []string{
		"/etc", "/opt", "/run", "/usr/libexec", "/usr/libexec/kubernetes", "/var/lib", "/var/lib/cni", "/var/lib/kubelet",
		"/var/log", filepath.Join(home, ".kube"), filepath.Join(home, ".kube", "cache"),
	} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			state[dir] += e.Name() + "\n"
		}
	}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward"} {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			t.Fatal(err)
		}
		state["sysctls"] += name + " " + string(value)
	}
	// A platform of the developer's own may run as well; it is there before and after.
	programs := regexp.MustCompile(`/(kubernetes|flux|node|kwok)-v[^/]*/`)
	running, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, exe := range running {
		if target, err := os.Readlink(exe); err == nil && programs.MatchString(target) {
			state["processes"] += filepath.Dir(exe) + " " + target + "\n"
		}
	}
	rules, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v\n%s", err, rules)
	}
	state["packet filter"] = string(rules)
	return state
}

// sameHost fails if the host is not as it was.
func sameHost(t *testing.T, before map[string]string) {
	t.Helper()
	now := hostState(t)
	for what := range now {
		if now[what] != before[what] {
			t.Errorf("%s of the host changed. Before:\n%s\nnow:\n%s", what, before[what], now[what])
		}
	}
}

// memory sums the proportional set size of a process and all that descend from it, in bytes.
func memory(t *testing.T, root int) (bytes int) {
	t.Helper()
	children := map[int][]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // has just ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			t.Fatal(err)
		}
		children[parent] = append(children[parent], pid)
	}
	pss := regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB$`)
	for todo := []int{root}; len(todo) > 0; todo = todo[1:] {
		todo = append(todo, children[todo[0]]...)
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", todo[0]))
		if err != nil {
			continue
		}
		if m := pss.FindSubmatch(rollup); m != nil {
			kib, err := strconv.Atoi(string(m[1]))
			if err != nil {
				t.Fatal(err)
			}
			bytes += kib << 10
		}
	}
	return bytes
}
