package platform

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aks-platform/tools/local/internal/delivery"
	"aks-platform/tools/local/internal/flux"
	"aks-platform/tools/local/internal/machine"
	"aks-platform/tools/local/internal/state"
)

// With one of these arguments and a checkout's folder, the test binary stands in for an `up`: one that runs, or one that
// has only just begun.
const (
	runsCommand   = "platform-test-runs"
	beginsCommand = "platform-test-begins"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && (os.Args[1] == runsCommand || os.Args[1] == beginsCommand) {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		dir := StateDir(os.Args[2])
		lock, err := dir.Lock()
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		defer lock.Close() // or the garbage collector does it too early
		if os.Args[1] == runsCommand {
			if err := dir.Write(state.Run{PID: os.Getpid()}); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
		fmt.Println("locked")
		<-ctx.Done()
		return
	}
	os.Exit(m.Run())
}

// up starts a stand-in for `up` that ends with the test.
func up(t *testing.T, command, root string) (ended <-chan error) {
	t.Helper()
	if err := os.MkdirAll(string(StateDir(root)), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], command, root)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "locked\n" {
		t.Fatalf("it says %q, %v", line, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it may have ended
	return done
}

// newCheckout makes a checkout without a commit.
func newCheckout(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if out, err := exec.Command("git", "init", "--quiet", root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return root
}

func commit(t *testing.T, root string) {
	t.Helper()
	cmd := exec.Command("git", "-C", root, "-c", "user.name=Ann", "-c", "user.email=ann@example.com", "commit", "--quiet", "--allow-empty", "--message=first")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func wantError(t *testing.T, err error, wants ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; want one with %q", wants)
		return
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}

func TestCheckCheckout(t *testing.T) {
	root := newCheckout(t)
	_, err := checkCheckout(t.Context(), delivery.Checkout{Dir: root})
	wantError(t, err, "no commit yet", "git add --all && git commit")
	commit(t, root)
	if head, err := checkCheckout(t.Context(), delivery.Checkout{Dir: root}); err != nil || len(head) != 40 {
		t.Errorf("%q, %v; want the commit", head, err)
	}
	dir := t.TempDir()
	_, err = checkCheckout(t.Context(), delivery.Checkout{Dir: dir})
	wantError(t, err, dir, "Flux deploys commits", "not a git repository")
	t.Setenv("PATH", t.TempDir())
	_, err = checkCheckout(t.Context(), delivery.Checkout{Dir: root})
	wantError(t, err, "git is missing", "install the package git")
}

// programs puts empty programs of these names, and no others, into PATH.
func programs(t *testing.T, names ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	return dir
}

func TestCheckNode(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("a node needs Linux")
	}
	hierarchies := t.TempDir()
	if err := os.Mkdir(filepath.Join(hierarchies, "cpu"), 0o755); err != nil {
		t.Fatal(err)
	}
	good := machine.Cgroups{Root: hierarchies, Name: "test"}
	for _, test := range []struct {
		has     []string
		cgroups machine.Cgroups
		want    []string
	}{
		{nil, good, []string{"runc", "nft", "apt-get install --yes --no-install-recommends nftables runc", "--simulate"}},
		{[]string{"runc"}, good, []string{"[nft]", "recommends nftables)", "--simulate"}},
		{[]string{"nft"}, good, []string{"[runc]", "recommends runc)", "--simulate"}},
		{[]string{"runc", "nft"}, machine.Cgroups{Root: hierarchies, Name: "no/such"}, []string{"cgroups", "privileged", "--simulate"}},
		{[]string{"runc", "nft"}, machine.Cgroups{Root: t.TempDir(), Name: "test"}, []string{"cgroup", "--simulate"}},
		{[]string{"runc", "nft"}, machine.Cgroups{Root: filepath.Join(hierarchies, "none"), Name: "test"}, []string{"cgroup", "--simulate"}},
	} {
		programs(t, test.has...)
		_, err := checkNode(test.cgroups)
		wantError(t, err, test.want...)
	}
	dir := programs(t, "runc", "nft")
	if runc, err := checkNode(good); err != nil || runc != filepath.Join(dir, "runc") {
		t.Errorf("%q, %v; want the path of runc", runc, err)
	}
	if entries, err := os.ReadDir(filepath.Join(hierarchies, "cpu")); err != nil || len(entries) > 0 {
		t.Errorf("the check has left %v, %v", entries, err)
	}
}

func TestCheckSpace(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "not", "yet", "there")
	if err := checkSpace(dir, 1, "this"); err != nil {
		t.Error(err)
	}
	wantError(t, checkSpace(dir, 1<<62, "this"), "this needs 4294967296.0 GiB free at "+dir, "make room")
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the check has made a folder: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, checkSpace(filepath.Join(file, "below"), 1, "this"), file)
}

func TestListen(t *testing.T) {
	t.Parallel()
	l, err := listen(0, "the API", "--port")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ip := l.Addr().(*net.TCPAddr).IP; !ip.IsLoopback() {
		t.Errorf("it listens on %s", ip)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_, err = listen(port, "the API", "--port")
	wantError(t, err, fmt.Sprintf("port %d for the API is in use", port), "ss -ltnp 'sport = :"+strconv.Itoa(port)+"'", "--port ")
}

func TestUpRefuses(t *testing.T) {
	root := newCheckout(t)
	o := Options{Root: root, Cache: filepath.Join(t.TempDir(), "cache"), Out: &strings.Builder{}}
	wantError(t, Up(t.Context(), o), "no commit yet")
	if _, err := os.Stat(string(StateDir(root))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a checkout without a commit was written to: %v", err)
	}
	commit(t, root)
	up(t, runsCommand, root)
	before, err := StateDir(root).Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := Up(t.Context(), o); !errors.Is(err, state.ErrLocked) {
		t.Errorf("while one runs: %v; want ErrLocked", err)
	}
	if after, err := StateDir(root).Read(); err != nil || after != before {
		t.Errorf("the description of the one that runs is %+v, %v; want %+v", after, err, before)
	}
	if _, err := os.Stat(o.Cache); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cache was written to: %v", err)
	}
}

// The port is looked at before anything is built, and the lock is given back.
func TestUpNeedsThePort(t *testing.T) {
	if why := whySimulate(); why != "" {
		t.Skip(why)
	}
	root := newCheckout(t)
	commit(t, root)
	if _, err := checkNode(cgroups(StateDir(root))); err != nil {
		t.Skip(err)
	}
	l, err := listen(0, "the test", "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	o := Options{Root: root, Cache: filepath.Join(t.TempDir(), "cache"), Port: port, Out: &strings.Builder{}}
	wantError(t, Up(t.Context(), o), fmt.Sprintf("port %d", port), "--port")
	if _, err := os.Stat(o.Cache); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cache was written to: %v", err)
	}
	if _, err := StateDir(root).Running(); !errors.Is(err, state.ErrNotRunning) {
		t.Errorf("after that: %v; want ErrNotRunning", err)
	}
	lock, err := StateDir(root).Lock()
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
}

func TestDown(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if stopped, err := Down(t.Context(), root); stopped || err != nil {
		t.Errorf("nothing runs: %t, %v", stopped, err)
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) > 0 {
		t.Errorf("it has made %v, %v", entries, err)
	}
	ended := up(t, runsCommand, root)
	if stopped, err := Down(t.Context(), root); !stopped || err != nil {
		t.Errorf("one runs: %t, %v", stopped, err)
	}
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v; want in order", err)
	}
	if _, err := StateDir(root).Read(); !errors.Is(err, state.ErrNotRunning) {
		t.Errorf("the description is left: %v", err)
	}
}

// What a killed platform left: its description, and its cgroups where it had any.
func TestDownAfterACrash(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := StateDir(root)
	bystander := sleeper(t)
	if err := os.MkdirAll(string(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := dir.Write(state.Run{PID: bystander.Process.Pid}); err != nil {
		t.Fatal(err)
	}
	made := whySimulate() == "" && cgroups(dir).Make() == nil
	if stopped, err := Down(t.Context(), root); stopped || err != nil {
		t.Errorf("%t, %v; want nothing to stop", stopped, err)
	}
	if _, err := dir.Read(); !errors.Is(err, state.ErrNotRunning) {
		t.Errorf("the description is left: %v", err)
	}
	if left, err := filepath.Glob("/sys/fs/cgroup/*/" + cgroups(dir).Name); made && (err != nil || len(left) > 0) {
		t.Errorf("left: %v, %v", left, err)
	}
	checkAlive(t, bystander)
}

// While an `up` is on its way, the description is that of an earlier one, whose number may be anybody's by now.
func TestDownWhileUpBegins(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	bystander := sleeper(t)
	ended := up(t, beginsCommand, root)
	if err := StateDir(root).Write(state.Run{PID: bystander.Process.Pid}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if stopped, err := Down(ctx, root); !stopped || err != nil {
		t.Errorf("%t, %v; want it stopped", stopped, err)
	}
	// It gives the lock back just before it ends.
	select {
	case <-ended:
	case <-ctx.Done():
		t.Error("it still runs")
	}
	checkAlive(t, bystander)
}

// sleeper is a process that has nothing to do with a platform.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // a failing test may have ended it
		_ = cmd.Wait()
	})
	return cmd
}

func checkAlive(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if runtime.GOOS == "linux" && (err != nil || strings.Contains(string(data), "State:\tZ")) {
		t.Errorf("process %d, which is not ours, was ended: %v", cmd.Process.Pid, err)
	}
}

func TestCgroupsOfCheckouts(t *testing.T) {
	t.Parallel()
	a, b := cgroups(StateDir("/a")), cgroups(StateDir("/b"))
	if runtime.GOOS == "linux" && (a == b || a != cgroups(StateDir("/a"))) {
		t.Errorf("%+v and %+v: want one for each checkout", a, b)
	}
}

func TestTransient(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		object flux.Object
		want   bool
	}{
		{flux.Object{Ready: "Unknown"}, true},
		{flux.Object{Ready: "False", Reason: "DependencyNotReady"}, true},
		{flux.Object{Ready: "False", Reason: "ArtifactFailed", Message: "Source artifact not found, retrying in 30s"}, true},
		{flux.Object{Ready: "False", Reason: "BuildFailed", Message: "kustomize build failed"}, false},
		{flux.Object{Ready: "True"}, false},
	} {
		if got := transient(test.object); got != test.want {
			t.Errorf("%+v: %t; want %t", test.object, got, test.want)
		}
	}
}

func TestSayAndUpdate(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	p := &platform{Options: Options{Out: &out, Simulate: true}, dir: state.Dir(t.TempDir()), start: time.Now()}
	p.say("about", "%d things", 3)
	if got := out.String(); !strings.HasSuffix(got, "s  about       3 things\n") {
		t.Errorf("it said %q", got)
	}
	for range 2 {
		if err := p.update(func(r *state.Run) { r.PID++ }); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := p.dir.Read(); err != nil || r.PID != 2 {
		t.Errorf("%+v, %v; want both changes", r, err)
	}
	for range 2 {
		p.welcome()
	}
	if n := strings.Count(out.String(), "Flux has deployed this repository"); n != 1 {
		t.Errorf("it welcomed %d times", n)
	}
}
