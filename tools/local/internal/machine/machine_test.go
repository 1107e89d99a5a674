package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
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

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/net/dns/dnsmessage"

	"aks-platform/tools/local/internal/process"
)

// The test binary stands in for tools/local: with the first of these arguments it is a machine, with the second one a
// parent that starts a machine and can be killed.
const (
	machineCommand = "machine-test-machine"
	parentCommand  = "machine-test-parent"
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == machineCommand:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		listeners, err := strconv.Atoi(os.Args[2])
		if err == nil {
			err = Main(ctx, listeners)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case len(os.Args) == 3 && os.Args[1] == parentCommand:
		parent(os.Args[2])
	default:
		os.Exit(m.Run())
	}
}

// parent starts the machine of a configuration file, prints its events and waits to be killed.
func parent(file string) {
	data, err := os.ReadFile(file)
	var c Config
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	var m *Machine
	if err == nil {
		m, err = Start(c, machineCommand, nil, os.Stderr)
	}
	if err == nil && c.Sandbox != nil {
		// Somebody goes on holding the machine's stdin, so that its end is not what ends the machine.
		keeper := exec.Command("sleep", "300")
		keeper.ExtraFiles = []*os.File{m.stdin.(*os.File)}
		if err = keeper.Start(); err == nil {
			err = os.WriteFile(file+".keeper", []byte(strconv.Itoa(keeper.Process.Pid)), 0o600)
		}
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	out := json.NewEncoder(os.Stdout)
	for e := range m.Events {
		if err := out.Encode(e); err != nil {
			os.Exit(1)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func content(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(data)
}

func shell(name, script string, args ...string) process.Spec {
	return process.Spec{Name: name, Path: "/bin/sh", Args: append([]string{"-c", script, name}, args...)}
}

// alive returns the processes of the host whose command line has that argument.
func alive(t *testing.T, argument string) (pids []int) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("looks for processes in /proc")
	}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		for _, a := range strings.Split(string(data), "\x00") {
			if a == argument {
				pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// unique is a number of seconds that nobody else sleeps for.
func unique() string { return fmt.Sprintf("%d.%09d", 100000+os.Getpid(), time.Now().Nanosecond()) }

// start starts a machine that ends with the test. listeners become those of the indices 1, 2, ...
func start(t *testing.T, c Config, listeners ...net.Listener) *Machine {
	t.Helper()
	var files []*os.File
	for _, l := range listeners {
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "machine.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m, err := Start(c, machineCommand, files, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Stop()
		if t.Failed() {
			t.Logf("the machine said %q", content(t, log.Name()))
		}
	})
	return m
}

// waitUp returns the events until all stages are ready.
func waitUp(t *testing.T, m *Machine) (before []Event) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case e, ok := <-m.Events:
			if !ok || e.Error != "" {
				t.Fatalf("the machine ended: %s", e.Error)
			}
			if e.Up {
				return before
			}
			before = append(before, e)
		case <-deadline:
			t.Fatal("not up within 20 s")
		}
	}
}

// waitEnd returns the errors that a machine says until it has ended.
func waitEnd(t *testing.T, m *Machine) (errs []string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case e, ok := <-m.Events:
			if !ok {
				return errs
			}
			if e.Error != "" {
				errs = append(errs, e.Error)
			}
		case <-deadline:
			t.Fatal("not ended within 20 s")
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// freeAddr is an address of loopback that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l := listen(t)
	defer l.Close()
	return l.Addr().String()
}

func TestMachine(t *testing.T) {
	t.Parallel()
	mark := unique()
	c := Config{
		LogDir: t.TempDir(),
		Env:    map[string]string{"MACHINE_TEST": "for everybody"},
		Stages: [][]process.Spec{
			{{Name: "env", Path: "/bin/sh", Args: []string{"-c", "echo $MACHINE_TEST"}, Once: true}},
			{{Name: "sleep", Path: "sleep", Args: []string{mark}}},
		},
	}
	m := start(t, c)
	var got []string
	for _, e := range waitUp(t, m) {
		got = append(got, e.Process.Component+" "+string(e.Process.State))
	}
	if want := []string{"env exited", "sleep ready"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("events %v; want %v", got, want)
	}
	if got := content(t, filepath.Join(c.LogDir, "env.log")); got != "for everybody\n" {
		t.Errorf("a component sees %q", got)
	}
	eventually(t, "the component runs", func() bool { return len(alive(t, mark)) == 1 })
	m.Stop()
	if pids := alive(t, mark); len(pids) > 0 {
		t.Errorf("Stop has left the processes %v", pids)
	}
	if errs := waitEnd(t, m); len(errs) > 0 {
		t.Errorf("a machine that is told to stop says %q", errs)
	}
	m.Stop() // once more does no harm
}

func TestMachineErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	taken := listen(t).Addr().String()
	for _, test := range []struct {
		name   string
		config Config
		want   []string
	}{
		{
			"a component that fails",
			Config{LogDir: dir, Stages: [][]process.Spec{{{Name: "bad", Path: "/bin/sh", Args: []string{"-c", "echo the reason; exit 5"}, Once: true}}}},
			[]string{"bad: ", "exit status 5", "the reason"},
		},
		{"an address in use", Config{LogDir: dir, Registry: Server{Addr: taken}, Blobs: dir}, []string{"registry: ", taken, "in use"}},
		{"a listener that was not handed down", Config{LogDir: dir, Forwards: []Forward{{Listener: 7, To: "x:1"}}}, []string{"forward to x:1: "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := start(t, test.config)
			errs := waitEnd(t, m)
			if len(errs) != 1 {
				t.Fatalf("errors %q; want one", errs)
			}
			for _, want := range test.want {
				if !strings.Contains(errs[0], want) {
					t.Errorf("%q lacks %q", errs[0], want)
				}
			}
		})
	}
}

// A machine that is killed says so.
func TestMachineIsKilled(t *testing.T) {
	t.Parallel()
	m := start(t, Config{LogDir: t.TempDir()})
	waitUp(t, m)
	if err := m.kill(); err != nil {
		t.Fatal(err)
	}
	if errs := waitEnd(t, m); len(errs) != 1 || !strings.Contains(errs[0], "killed") || !strings.Contains(errs[0], "machine.log") {
		t.Errorf("errors %q; want one that says it was killed and names the log", errs)
	}
}

func TestConfigurationErrors(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"nothing":  "",
		"no line":  "{}",
		"no JSON":  "{\n",
		"too long": `{"LogDir": "` + strings.Repeat("x", maxConfig) + "\"}\n",
	} {
		var out strings.Builder
		err := Run(t.Context(), strings.NewReader(in), &out)
		if err == nil || !strings.Contains(err.Error(), "configuration") {
			t.Errorf("%s: %v; want an error about the configuration", name, err)
		}
	}
}

// The end of stdin ends a machine in order, and so does the end of its context.
func TestRunEnds(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		end  func(stdin io.Closer, cancel func())
	}{
		{"stdin", func(stdin io.Closer, _ func()) { stdin.Close() }},
		{"context", func(_ io.Closer, cancel func()) { cancel() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stdin, toStdin := io.Pipe()
			fromStdout, stdout := io.Pipe()
			mark := unique()
			c := Config{LogDir: t.TempDir(), Stages: [][]process.Spec{{{Name: "sleep", Path: "sleep", Args: []string{mark}}}}}
			done := make(chan error, 1)
			go func() {
				done <- Run(ctx, stdin, stdout)
				stdout.Close()
			}()
			if err := json.NewEncoder(toStdin).Encode(c); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(fromStdout)
			var e Event
			for !e.Up && lines.Scan() {
				e = Event{}
				if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
					t.Fatal(err)
				}
			}
			if !e.Up {
				t.Fatalf("not up: %v", lines.Err())
			}
			test.end(toStdin, cancel)
			for lines.Scan() {
				t.Errorf("it said %s", lines.Text())
			}
			if err := <-done; err != nil {
				t.Errorf("error %v; want none, because it was asked to end", err)
			}
			if pids := alive(t, mark); len(pids) > 0 {
				t.Errorf("the processes %v are left", pids)
			}
		})
	}
}

// However the parent ends, the machine and its components do.
func TestMachineEndsWithItsParent(t *testing.T) {
	t.Parallel()
	killParent(t, Config{})
}

// killParent starts a machine from another process, kills that and waits for the end of everything.
func killParent(t *testing.T, c Config) {
	t.Helper()
	mark, dir := unique(), t.TempDir()
	c.LogDir = dir
	c.Stages = append(c.Stages, []process.Spec{
		{Name: "sleep", Path: "sleep", Args: []string{mark}},
	})
	if c.Sandbox != nil {
		// A daemon: it has left its parent, its session and its process group.
		daemon := shell("daemon", `setsid sleep "$1" </dev/null >/dev/null 2>&1 &`, mark)
		daemon.Once = true
		c.Stages = append(c.Stages, []process.Spec{daemon})
	}
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], parentCommand, file)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		if keeper := content(t, file+".keeper"); keeper != "" {
			pid, err := strconv.Atoi(keeper)
			if err == nil {
				err = syscall.Kill(pid, syscall.SIGKILL)
			}
			if err != nil {
				t.Errorf("process %q: %v", keeper, err)
			}
		}
	})
	lines, up := bufio.NewScanner(out), false
	for !up && lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Error != "" {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		up = e.Up
	}
	if !up {
		t.Fatal("not up")
	}
	eventually(t, "the components run", func() bool { return len(alive(t, mark)) == len(c.Stages) })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	eventually(t, "everything has ended", func() bool { return len(alive(t, mark)) == 0 })
}

func TestForward(t *testing.T) {
	t.Parallel()
	// The target answers when the client has said all, as an HTTP/1.0 client or netcat may do it.
	target := listen(t)
	go func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				n, err := io.Copy(io.Discard, c)
				fmt.Fprintf(c, "%d %v", n, err)
			}()
		}
	}()
	_, port, err := net.SplitHostPort(target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []Forward{
		{To: target.Addr().String()},
		{To: "service.test:" + port, DNS: dns(t, "service.test.", [4]byte{127, 0, 0, 1})},
	} {
		l := listen(t)
		go func() { _ = f.run(t.Context(), l) }() // until l is closed
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		const size = 3 << 20
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if want := fmt.Sprintf("%d <nil>", size); err != nil || string(got) != want {
			t.Errorf("%+v: %q, %v; want %q", f, got, err, want)
		}
	}
}

// The other way round: the target says all and goes on listening.
func TestForwardPassesOnTheTargetsEnd(t *testing.T) {
	t.Parallel()
	target, l := listen(t), listen(t)
	heard := make(chan string, 1)
	go func() {
		c, err := target.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, "all")
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			heard <- err.Error()
		}
		data, err := io.ReadAll(c)
		heard <- fmt.Sprintf("%s %v", data, err)
	}()
	go func() { _ = (Forward{To: target.Addr().String()}).run(t.Context(), l) }() // until l is closed
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "all" {
		t.Fatalf("%q, %v", got, err)
	}
	fmt.Fprint(c, "more")
	c.Close()
	if got := <-heard; got != "more <nil>" {
		t.Errorf("the target heard %q", got)
	}
}

// A target that refuses, or whose name nobody knows, closes the client's connection; the forward goes on.
func TestForwardRefused(t *testing.T) {
	t.Parallel()
	for _, f := range []Forward{{To: freeAddr(t)}, {To: "none.test:80", DNS: dns(t, "service.test.", [4]byte{127, 0, 0, 1})}} {
		l := listen(t)
		done := make(chan error, 1)
		go func() { done <- f.run(t.Context(), l) }()
		for range 2 {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
				t.Errorf("%+v: %q, %v; want the end", f, got, err)
			}
			c.Close()
		}
		l.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("the end of the listener: %v", err)
		}
	}
}

// dns serves one address of one name over UDP.
func dns(t *testing.T, host string, address [4]byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(buf[:n]); err != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Additionals = true, nil
			q := m.Questions[0]
			switch {
			case q.Name.String() != host:
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
					Body:   &dnsmessage.AResource{A: address},
				}}
			}
			if data, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(data, from) // who is gone asks no more
			}
		}
	}()
	return conn.LocalAddr().String()
}

func git(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=Ann", "-c", "user.email=ann@example.com", "-C", dir}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0", "NO_PROXY=*", "no_proxy=*")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func mustGit(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := git(t, dir, args...)
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return out
}

// newRepos makes a folder with the bare repository platform.git and returns it with the repository's head.
func newRepos(t *testing.T) (dir, head string) {
	t.Helper()
	dir = t.TempDir()
	work := filepath.Join(t.TempDir(), "work")
	mustGit(t, dir, "init", "--quiet", "--bare", "--initial-branch=main", "platform.git")
	mustGit(t, dir, "init", "--quiet", "--initial-branch=main", work)
	for _, message := range []string{"first", "second"} {
		if err := os.WriteFile(filepath.Join(work, "file"), []byte(message), 0o600); err != nil {
			t.Fatal(err)
		}
		mustGit(t, work, "add", "--all")
		mustGit(t, work, "commit", "--quiet", "--message", message)
	}
	mustGit(t, work, "push", "--quiet", filepath.Join(dir, "platform.git"), "main")
	return dir, mustGit(t, work, "rev-parse", "HEAD")
}

func checkClone(t *testing.T, url, head string) {
	t.Helper()
	for _, depth := range []string{"--depth=1", "--depth=1000"} { // Flux fetches shallow
		clone := filepath.Join(t.TempDir(), "clone")
		mustGit(t, ".", "clone", "--quiet", "--branch=main", depth, url, clone)
		if got := mustGit(t, clone, "rev-parse", "HEAD"); got != head {
			t.Errorf("a clone has %s; want %s", got, head)
		}
	}
}

func TestGitServer(t *testing.T) {
	t.Parallel()
	dir, head := newRepos(t)
	h, err := gitHandler(dir)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	url := srv.URL + "/platform.git"
	checkClone(t, url, head)

	clone := filepath.Join(t.TempDir(), "clone")
	mustGit(t, ".", "clone", "--quiet", url, clone)
	mustGit(t, clone, "commit", "--quiet", "--allow-empty", "--message", "third")
	// Even if the repository would take it.
	mustGit(t, filepath.Join(dir, "platform.git"), "config", "http.receivepack", "true")
	if out, err := git(t, clone, "push", "origin", "main"); err == nil || !strings.Contains(out, "403") {
		t.Errorf("a push: %v, %s; want 403", err, out)
	}
	if got := mustGit(t, filepath.Join(dir, "platform.git"), "rev-parse", "main"); got != head {
		t.Errorf("a push has changed the repository to %s", got)
	}
	if _, err := git(t, ".", "ls-remote", srv.URL+"/none.git"); err == nil {
		t.Error("a repository that is not there was found")
	}

	for _, test := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/platform.git/info/refs?service=git-upload-pack", http.StatusOK},
		{http.MethodGet, "/platform.git/info/refs?service=git-receive-pack", http.StatusForbidden},
		{http.MethodPost, "/platform.git/git-receive-pack", http.StatusForbidden},
		{http.MethodGet, "/platform.git/../../../../../../etc/passwd", http.StatusInternalServerError}, // "aliased", says git
	} {
		req, err := http.NewRequestWithContext(t.Context(), test.method, srv.URL+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.want {
			t.Errorf("%s %s: %s, %v; want %d", test.method, test.path, resp.Status, err, test.want)
		}
		if test.want == http.StatusForbidden && !strings.Contains(string(body), "tools/local") {
			t.Errorf("%s %s says %q; want who writes", test.method, test.path, body)
		}
	}
}

func checkRegistry(t *testing.T, addr string) {
	t.Helper()
	ref, err := name.ParseReference(addr+"/team/app:v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	pushed, err := random.Image(4096, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, pushed); err != nil {
		t.Fatal(err)
	}
	pulled, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	want, errWant := pushed.Digest()
	got, errGot := pulled.Digest()
	if err := errors.Join(errWant, errGot); err != nil || got != want {
		t.Errorf("pulled %s, %v; want %s", got, err, want)
	}
	layers, err := pulled.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil { // verifies the digest
			t.Errorf("a layer: %v", err)
		}
		r.Close()
	}
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	blobs := t.TempDir()
	srv := httptest.NewServer(registryHandler(blobs))
	defer srv.Close()
	checkRegistry(t, strings.TrimPrefix(srv.URL, "http://"))
	if entries, err := os.ReadDir(blobs); err != nil || len(entries) == 0 {
		t.Errorf("the folder of layers has %v, %v", entries, err)
	}
}

// Servers and forwards of a machine, on listeners that it makes and on those that it inherits.
func TestMachineServes(t *testing.T) {
	t.Parallel()
	checkServers(t, func(c *Config) { c.Git.Addr, c.Registry.Addr = freeAddr(t), freeAddr(t) })
}

// checkServers starts a machine with every kind of server and uses them through inherited listeners.
func checkServers(t *testing.T, addresses func(*Config)) {
	t.Helper()
	repos, head := newRepos(t)
	forward, gitServer, images := listen(t), listen(t), listen(t)
	c := Config{LogDir: t.TempDir(), GitRepos: repos, Blobs: t.TempDir()}
	addresses(&c)
	c.Git.Listener, c.Registry.Listener = 2, 3
	c.Forwards = []Forward{{Listener: 1, To: c.Git.Addr}}
	waitUp(t, start(t, c, forward, gitServer, images))
	checkClone(t, "http://"+forward.Addr().String()+"/platform.git", head)
	checkClone(t, "http://"+gitServer.Addr().String()+"/platform.git", head)
	checkRegistry(t, images.Addr().String())
}
