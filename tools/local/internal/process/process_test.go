package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// helper is the argument that turns the test binary into a parent of components that a test can kill.
const helper = "process-test-parent"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == helper {
		parent(os.Args[2])
		return
	}
	os.Exit(m.Run())
}

// parent runs a component that writes its pid to a pipe, and waits to be killed.
func parent(dir string) {
	g := &Group{LogDir: dir, Report: func(Event) {}}
	spec := shell("child", `exec sleep 300`)
	if err := g.Start(context.Background(), [][]Spec{{spec}}, func(error) {}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	g.mu.Lock()
	for pid := range g.running {
		fmt.Println(pid)
	}
	g.mu.Unlock()
	select {}
}

func shell(name, script string) Spec {
	return Spec{Name: name, Path: "/bin/sh", Args: []string{"-c", script}}
}

// events collects what a group reports.
type events struct {
	mu  sync.Mutex
	all []Event
}

func (e *events) report(event Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

func (e *events) of(state State) []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(e.all), func(event Event) bool { return event.State != state })
}

func newGroup(t *testing.T) (*Group, *events) {
	t.Helper()
	reported := &events{}
	g := &Group{LogDir: t.TempDir(), Report: reported.report}
	t.Cleanup(g.Stop)
	return g, reported
}

func noFatal(t *testing.T) func(error) {
	return func(err error) { t.Errorf("fatal: %v", err) }
}

// readyWith is a probe that succeeds once a file exists.
func readyWith(t *testing.T, file string) Probe {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !exists(file) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(srv.Close)
	return Probe{URL: srv.URL}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func touch(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(data)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// remaining returns how many children a group has not waited for.
func (g *Group) remaining() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.running)
}

func TestStagesStartInOrder(t *testing.T) {
	t.Parallel()
	g, reported := newGroup(t)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	component := func(name string) Spec {
		s := shell(name, `ls $DIR > $DIR/$NAME.saw; until [ -e $DIR/go ]; do sleep 0.01; done; : > $DIR/$NAME.ready; exec sleep 300`)
		s.Env = []string{"NAME=" + name, "DIR=" + dir}
		s.Ready = readyWith(t, file(name+".ready"))
		return s
	}
	once := shell("once", `ls $DIR > $DIR/once.saw; echo said; : > $DIR/once.ended`)
	once.Env, once.Once = []string{"DIR=" + dir}, true
	done := make(chan error, 1)
	go func() {
		done <- g.Start(t.Context(), [][]Spec{{component("a"), component("b")}, {once}, {component("c")}}, noFatal(t))
	}()
	// Both of the first stage run before either is ready.
	eventually(t, "the first stage runs", func() bool { return exists(file("a.saw")) && exists(file("b.saw")) })
	touch(t, file("go"))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{"once": {"a.ready", "b.ready"}, "c": {"a.ready", "b.ready", "once.ended"}} {
		saw := strings.Fields(content(t, file(name+".saw")))
		for _, w := range want {
			if !slices.Contains(saw, w) {
				t.Errorf("%s started when there was %v; want %s", name, saw, w)
			}
		}
	}
	if got := content(t, filepath.Join(g.LogDir, "once.log")); got != "said\n" {
		t.Errorf("the log of once is %q", got)
	}
	if exited := reported.of(Exited); len(exited) != 1 || exited[0].Component != "once" {
		t.Errorf("exited: %v; want once", exited)
	}
	var ready []string
	for _, e := range reported.of(Ready) {
		ready = append(ready, e.Component)
		if e.After <= 0 {
			t.Errorf("%s was ready after %s", e.Component, e.After)
		}
	}
	slices.Sort(ready[:2])
	if !slices.Equal(ready, []string{"a", "b", "c"}) {
		t.Errorf("ready: %v; want a and b, then c", ready)
	}
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	never := Probe{Socket: filepath.Join(t.TempDir(), "none")}
	tests := []struct {
		name string
		spec Spec
		want []string
		not  []string
	}{
		{
			"ends before it is ready",
			Spec{Path: "/bin/sh", Args: []string{"-c", "for i in 1 2 3 4 5 6 7 8 9 10 11; do echo line $i; done; echo why >&2; exit 7"}, Ready: never},
			[]string{"victim: ", "ended before it was ready", "exit status 7", "\n\tline 5\n", "\n\twhy"},
			[]string{"line 4\n"},
		},
		{
			"ends well before it is ready",
			Spec{Path: "/bin/sh", Args: []string{"-c", "echo nothing to do"}, Ready: never},
			[]string{"victim: ", "ended before it was ready", "nothing to do"},
			[]string{"<nil>"},
		},
		{
			"is ended by a signal",
			Spec{Path: "/bin/sh", Args: []string{"-c", "kill -9 $$"}, Ready: never},
			[]string{"victim: ", "signal: killed"}, nil,
		},
		{
			"fails once",
			Spec{Path: "/bin/sh", Args: []string{"-c", "echo the reason; exit 3"}, Once: true},
			[]string{"victim: ", "exit status 3", "the reason"}, nil,
		},
		{
			"does not exist",
			Spec{Path: "/does/not/exist"},
			[]string{"victim: ", "/does/not/exist", "no such file"}, nil,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g, reported := newGroup(t)
			test.spec.Name = "victim"
			never := shell("next", "exec sleep 300")
			err := g.Start(t.Context(), [][]Spec{{test.spec}, {never}}, noFatal(t))
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			for _, not := range test.not {
				if strings.Contains(err.Error(), not) {
					t.Errorf("%q has %q", err, not)
				}
			}
			if len(reported.all) > 0 || exists(filepath.Join(g.LogDir, "next.log")) {
				t.Errorf("the next stage was started: %v", reported.all)
			}
		})
	}
}

// One that fails ends the wait for the others of its stage, and Stop ends these as well.
func TestFailureEndsTheStage(t *testing.T) {
	t.Parallel()
	g, _ := newGroup(t)
	dir := t.TempDir()
	never := Probe{Socket: filepath.Join(dir, "none")}
	slow := shell("slow", ": > $FILE; exec sleep 300")
	slow.Env, slow.Ready = []string{"FILE=" + filepath.Join(dir, "slow")}, never
	once := shell("once", ": > $FILE; exec sleep 300")
	once.Env, once.Once = []string{"FILE=" + filepath.Join(dir, "once")}, true
	bad := shell("bad", "until [ -e $DIR/slow ] && [ -e $DIR/once ]; do sleep 0.01; done; exit 1")
	bad.Env, bad.Ready = []string{"DIR=" + dir}, never
	err := g.Start(t.Context(), [][]Spec{{slow, once, bad}}, noFatal(t))
	if err == nil || !strings.HasPrefix(err.Error(), "bad: ended before it was ready") {
		t.Errorf("error %v; want that of bad", err)
	}
	g.Stop()
	if n := g.remaining(); n > 0 {
		t.Errorf("Stop has left %d processes", n)
	}
}

func TestStartIsCancelled(t *testing.T) {
	t.Parallel()
	for _, once := range []bool{false, true} {
		g, _ := newGroup(t)
		dir := t.TempDir()
		spec := shell("slow", ": > $FILE; exec sleep 300")
		spec.Env = []string{"FILE=" + filepath.Join(dir, "started")}
		spec.Ready, spec.Once = Probe{Socket: filepath.Join(dir, "none")}, once
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		go func() {
			for !exists(filepath.Join(dir, "started")) {
				time.Sleep(time.Millisecond)
			}
			cancel(why)
		}()
		if err := g.Start(ctx, [][]Spec{{spec}}, noFatal(t)); !errors.Is(err, why) {
			t.Errorf("once %t: error %v; want %v", once, err, why)
		}
		g.Stop()
		if n := g.remaining(); n > 0 {
			t.Errorf("once %t: Stop has left %d processes", once, n)
		}
	}
}

func TestStopLeavesNobody(t *testing.T) {
	t.Parallel()
	g, reported := newGroup(t)
	var stage []Spec
	for i := range 8 {
		// Deaf to everything that can be ignored.
		stage = append(stage, shell(fmt.Sprint("c", i), "trap '' TERM INT HUP; echo $$; exec sleep 300"))
	}
	if err := g.Start(t.Context(), [][]Spec{stage}, noFatal(t)); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, s := range stage {
		log := filepath.Join(g.LogDir, s.Name+".log")
		eventually(t, "the pid in "+log, func() bool { return strings.HasSuffix(content(t, log), "\n") })
		pid, err := strconv.Atoi(strings.TrimSpace(content(t, log)))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	g.Stop()
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there: %v", pid, err)
		}
	}
	if restarted := reported.of(Restarted); len(restarted) > 0 {
		t.Errorf("restarted: %v", restarted)
	}
	// Stopped is stopped.
	if err := g.Start(t.Context(), [][]Spec{{shell("late", "exec sleep 300")}}, noFatal(t)); err == nil {
		t.Error("a stopped group starts components")
	}
	g.Stop()
}

func TestRestart(t *testing.T) {
	t.Parallel()
	g, reported := newGroup(t)
	dir := t.TempDir()
	spec := shell("c", `echo started; : > $DIR/ready; until [ -e $DIR/die ]; do sleep 0.01; done; rm $DIR/die; exit 9`)
	spec.Env, spec.Ready = []string{"DIR=" + dir}, readyWith(t, filepath.Join(dir, "ready"))
	if err := g.Start(t.Context(), [][]Spec{{spec}}, noFatal(t)); err != nil {
		t.Fatal(err)
	}
	touch(t, filepath.Join(dir, "die"))
	log := filepath.Join(g.LogDir, "c.log")
	eventually(t, "the second start", func() bool { return content(t, log) == "started\nstarted\n" })
	eventually(t, "the event", func() bool { return len(reported.of(Restarted)) == 1 })
	if e := reported.of(Restarted)[0]; e.Component != "c" || e.Message != "ended: exit status 9" {
		t.Errorf("reported %+v", e)
	}
	if n := g.remaining(); n != 1 {
		t.Errorf("%d processes run; want 1", n)
	}
}

// A component that ends while Stop is called is not said to be started again.
func TestStopBeforeRestart(t *testing.T) {
	t.Parallel()
	g, reported := newGroup(t)
	var stage []Spec
	for i := range 20 {
		stage = append(stage, shell(fmt.Sprint("c", i), "echo started"))
	}
	if err := g.Start(t.Context(), [][]Spec{stage}, noFatal(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "their end", func() bool { return g.remaining() == 0 })
	g.Stop()
	if restarted := reported.of(Restarted); len(restarted) > 0 {
		t.Errorf("reported %v", restarted)
	}
	for _, s := range stage {
		if got := content(t, filepath.Join(g.LogDir, s.Name+".log")); got != "started\n" {
			t.Errorf("the log of %s is %q", s.Name, got)
		}
	}
}

// A component that keeps ending is given up. This takes 5 times time.Second.
func TestGiveUp(t *testing.T) {
	t.Parallel()
	g, reported := newGroup(t)
	// It keeps ending for longer than the window: what counts is the time since the last start.
	g.RestartDelay, g.RestartWindow = 50*time.Millisecond, 200*time.Millisecond
	fatal := make(chan error, 1)
	err := g.Start(t.Context(), [][]Spec{{shell("c", "echo the reason; exit 4")}}, func(err error) { fatal <- err })
	if err != nil {
		t.Fatal(err)
	}
	err = <-fatal
	for _, want := range []string{"c: ", "exit status 4", "the reason"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	if n := len(reported.of(Restarted)); n != 5 {
		t.Errorf("restarted %d times; want %d", n, 5)
	}
}

// When this process is killed, its components go as well.
func TestComponentsDieWithTheirParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ties a process to its parent")
	}
	t.Parallel()
	cmd := exec.Command(os.Args[0], helper, t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	killErr := cmd.Process.Kill()
	_ = cmd.Wait() // killed
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err := errors.Join(readErr, killErr, err); err != nil {
		t.Fatal(err)
	}
	eventually(t, fmt.Sprintf("the end of process %d", pid), func() bool {
		status := content(t, fmt.Sprintf("/proc/%d/status", pid))
		// Nobody may be there to wait for it: a zombie has ended as well.
		return status == "" || strings.Contains(status, "State:\tZ")
	})
}

func TestProbe(t *testing.T) {
	t.Parallel()
	answer := func(code int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	ok := httptest.NewServer(answer(http.StatusOK))
	defer ok.Close()
	secure := httptest.NewTLSServer(answer(http.StatusOK))
	defer secure.Close()
	bad := httptest.NewServer(answer(http.StatusInternalServerError))
	defer bad.Close()
	closed := httptest.NewServer(answer(http.StatusOK))
	closed.Close()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, test := range []struct {
		name  string
		probe Probe
		want  bool
	}{
		{"none", Probe{}, true},
		{"200", Probe{URL: ok.URL}, true},
		{"200 with a certificate of nobody", Probe{URL: secure.URL}, true},
		{"500", Probe{URL: bad.URL}, false},
		{"refused", Probe{URL: closed.URL}, false},
		{"no URL", Probe{URL: "://"}, false},
		{"socket", Probe{Socket: socket}, true},
		{"no socket", Probe{Socket: socket + "x"}, false},
	} {
		if got := test.probe.ok(t.Context()); got != test.want {
			t.Errorf("%s: %t; want %t", test.name, got, test.want)
		}
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	g, _ := newGroup(t)
	for _, test := range []struct{ log, want string }{
		{"", "\t"},
		{"one\n", "\tone"},
		{"one\ntwo", "\tone\n\ttwo"},
		{strings.Repeat("x\n", 20), "\t" + strings.Repeat("x\n\t", 7) + "x"},
		{strings.Repeat("a", 10<<10) + "\nend\n", "\t" + strings.Repeat("a", 4<<10-5) + "\n\tend"},
	} {
		if err := os.WriteFile(filepath.Join(g.LogDir, "c.log"), []byte(test.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := g.tail(Spec{Name: "c"}); got != test.want {
			t.Errorf("the end of %.40q is %q; want %q", test.log, got, test.want)
		}
	}
	if got := g.tail(Spec{Name: "none"}); !strings.Contains(got, "none.log") {
		t.Errorf("the end of no log is %q", got)
	}
}

// A component's environment is that of this process and its own.
func TestEnvironment(t *testing.T) {
	t.Setenv("OF_THE_PARENT", "one")
	t.Setenv("OVERRIDDEN", "one")
	g, _ := newGroup(t)
	spec := shell("c", "echo $OF_THE_PARENT $OVERRIDDEN")
	spec.Env, spec.Once = []string{"OVERRIDDEN=two"}, true
	if err := g.Start(t.Context(), [][]Spec{{spec}}, noFatal(t)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(g.LogDir, "c.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || string(got) != "one two\n" {
		t.Errorf("%q, %v", got, err)
	}
}
