// Package src_test runs the two services as they are deployed: as processes that share a directory.
package src_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// bin is where the programs are.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "e2e")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil { // for TestAsInAPod
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		build := exec.Command("go", "build", "-o", dir, "./backend-api", "./worker")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %s", err, out)
			return 1
		}
		bin = dir
		return m.Run()
	}())
}

// process is a running service.
type process struct {
	*exec.Cmd
	t    *testing.T
	log  *logWatcher
	once sync.Once
	err  error
}

// logWatcher keeps the log of a process, and the address in the last line with each message.
type logWatcher struct {
	mu   sync.Mutex
	text bytes.Buffer
	addr map[string]string
	done chan struct{}
}

func (l *logWatcher) watch(r io.Reader) {
	defer close(l.done)
	for s := bufio.NewScanner(r); s.Scan(); {
		var line struct{ Message, Addr string }
		l.mu.Lock()
		l.text.Write(append(s.Bytes(), '\n'))
		if json.Unmarshal(s.Bytes(), &line) == nil {
			l.addr[line.Message] = line.Addr
		}
		l.mu.Unlock()
	}
}

func (l *logWatcher) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logWatcher) address(message string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addr[message]
}

func command(name, dir string, env ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, name))
	// Nothing from the environment of the test.
	cmd.Env = append([]string{"STORAGE_URL=file://" + dir, "LISTEN_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0"}, env...)
	return cmd
}

// start starts a service and waits until it is ready.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = in, in
	p := &process{Cmd: cmd, t: t, log: &logWatcher{addr: map[string]string{}, done: make(chan struct{})}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	go p.log.watch(out)
	t.Cleanup(func() {
		p.kill()
		if err := out.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", filepath.Base(cmd.Path), p.log)
		}
	})
	poll(t, "the service is ready", func() bool {
		admin := p.log.address("admin server listens")
		if admin == "" || filepath.Base(cmd.Path) == "backend-api" && p.log.address("listening") == "" {
			return false
		}
		status, _ := get(t, "http://"+admin+"/readyz")
		return status == 200
	})
	return p
}

// wait waits for the end of a process.
func (p *process) wait() error {
	p.once.Do(func() {
		p.err = p.Wait()
		<-p.log.done
	})
	return p.err
}

func (p *process) kill() {
	// It may have ended, or be waited for.
	if err := p.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
	_ = p.wait()
}

// stop tells a process to stop, and checks that it does so in an orderly way.
func (p *process) stop() time.Duration {
	p.t.Helper()
	begin := time.Now()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if err := p.wait(); err != nil {
		p.t.Errorf("after SIGTERM: %v", err)
	}
	return time.Since(begin)
}

// api returns the URL of a backend-api.
func (p *process) api() string { return "http://" + p.log.address("listening") }

func (p *process) admin() string { return "http://" + p.log.address("admin server listens") }

func poll(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

var client = http.Client{Timeout: 20 * time.Second}

// do makes a request. A status of 0 means that there was no answer.
func do(t *testing.T, method, url, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	return do(t, "GET", url, "")
}

type jobView struct {
	ID, State, Reason string
	Links             struct{ Self, Result string }
}

func accept(t *testing.T, api, query, body string, header ...string) jobView {
	t.Helper()
	status, answer := do(t, "POST", api+"/v1/jobs?"+query, body, header...)
	var j jobView
	if err := json.Unmarshal([]byte(answer), &j); err != nil || status != 202 {
		t.Fatalf("POST: %d %s", status, answer)
	}
	return j
}

// finished waits until a job has ended.
func finished(t *testing.T, api string, j jobView) jobView {
	t.Helper()
	poll(t, "the job has ended", func() bool {
		status, answer := get(t, api+j.Links.Self)
		if status != 200 || json.Unmarshal([]byte(answer), &j) != nil {
			t.Fatalf("GET: %d %s", status, answer)
		}
		return j.State != "pending"
	})
	return j
}

// The whole loop, with two of each service.
func TestLoop(t *testing.T) {
	dir := t.TempDir()
	var apis, workers []*process
	for range 2 {
		apis = append(apis, start(t, command("backend-api", dir, "MAX_INPUT_BYTES=100000")))
		workers = append(workers, start(t, command("worker", dir)))
	}
	a, b := apis[0].api(), apis[1].api()

	j := finished(t, b, accept(t, a, "kind=csv-profile&delimiter=semicolon", "name;price\nx;1\ny;2.5\n"))
	if j.State != "succeeded" {
		t.Fatalf("the job %+v", j)
	}
	status, result := get(t, b+j.Links.Result)
	if status != 200 || !strings.Contains(result, `{"rows":2,"columns":[{"name":"name","type":"string"`) || !strings.Contains(result, `"mean":1.75`) {
		t.Errorf("result: %d %s", status, result)
	}
	bad := finished(t, a, accept(t, b, "kind=csv-profile", "a,b\n1\n"))
	if bad.State != "failed" || !strings.Contains(bad.Reason, "line 2") {
		t.Errorf("bad input: %+v", bad)
	}
	if status, _ := do(t, "POST", a+"/v1/jobs?kind=digest", strings.Repeat("x", 100_001)); status != 413 {
		t.Errorf("too large: %d", status)
	}
	if status, _ := do(t, "DELETE", a+j.Links.Self, ""); status != 204 {
		t.Errorf("DELETE: %d", status)
	}
	if status, _ := get(t, b+j.Links.Self); status != 404 {
		t.Errorf("after DELETE: %d", status)
	}

	// What is measured of it all.
	for url, want := range map[string][]string{
		apis[0].admin():    {"build_info{", "http_requests_total{", "jobs_accepted_total{", "queue_backlog ", "http_request_duration_seconds_bucket{"},
		workers[0].admin(): {"build_info{", "jobs_running ", "lease_lost_total ", "queue_backlog "},
	} {
		status, metrics := get(t, url+"/metrics")
		for _, w := range want {
			if status != 200 || !strings.Contains(metrics, w) {
				t.Errorf("metrics: %d without %q", status, w)
			}
		}
	}
	metrics := ""
	for _, w := range workers {
		_, m := get(t, w.admin()+"/metrics")
		metrics += m
	}
	for _, want := range []string{`job_attempts_total{kind="csv-profile",result="done"} 1`, `job_attempts_total{kind="csv-profile",result="rejected"} 1`, `jobs_finished_total{kind="csv-profile",state="failed"} 1`, "job_duration_seconds_count{", "job_wait_seconds_count{"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the workers do not say %s", want)
		}
	}
	if strings.Contains(metrics, j.ID) {
		t.Error("an id is a label")
	}
	for _, p := range append(apis, workers...) {
		if took := p.stop(); took > 5*time.Second {
			t.Errorf("an idle %s took %v to stop", filepath.Base(p.Path), took)
		}
		for line := range strings.Lines(p.log.String()) {
			var l struct{ Level, Time, Service, Message string }
			if err := json.Unmarshal([]byte(line), &l); err != nil || l.Level == "" || l.Service != filepath.Base(p.Path) || !strings.HasSuffix(l.Time, "Z") || l.Message == "" {
				t.Errorf("this is no line of a log: %s", line)
			}
		}
	}
}

// APIs and workers are killed at random. Clients repeat each request with its key until it is answered with 202. Then
// every job has one outcome, and the right one.
func TestKilledProcesses(t *testing.T) {
	dir := t.TempDir()
	names := []string{"backend-api", "backend-api", "worker"}
	processes := make([]*process, len(names))
	var mu sync.Mutex
	run := func(i int) {
		p := start(t, command(names[i], dir, "WORKER_LEASE=1s", "WORKER_MAX_ATTEMPTS=100"))
		mu.Lock()
		defer mu.Unlock()
		processes[i] = p
	}
	for i := range names {
		run(i)
	}
	api := func() string {
		mu.Lock()
		defer mu.Unlock()
		return processes[rand.IntN(2)].api()
	}
	deadline := time.Now().Add(3 * time.Second)
	var clients sync.WaitGroup
	jobs := make([]map[string]jobView, 4)
	retries := make([]int, len(jobs))
	for c := range jobs {
		jobs[c] = map[string]jobView{}
		clients.Go(func() {
			for i := 0; time.Now().Before(deadline); i++ {
				input := fmt.Sprintf("client %d job %d", c, i)
				for tries := 0; ; tries++ {
					if tries > 1000 {
						t.Errorf("%s is never accepted", input)
						return
					}
					status, answer := do(t, "POST", api()+"/v1/jobs?kind=digest", input, "Idempotency-Key", input)
					if status == 202 {
						var j jobView
						if err := json.Unmarshal([]byte(answer), &j); err != nil {
							t.Error(err)
						}
						jobs[c][input] = j
						break
					}
					if status != 0 && status != 503 {
						t.Errorf("POST: %d %s", status, answer)
						return
					}
					retries[c]++
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	kills := 0
	for ; time.Now().Before(deadline); kills++ {
		i := rand.IntN(len(names))
		processes[i].kill()
		run(i)
	}
	clients.Wait()
	total, ids := 0, map[string]bool{}
	url := api()
	for c := range jobs {
		for input, j := range jobs[c] {
			total++
			ids[j.ID] = true
			j = finished(t, url, j)
			if _, result := get(t, url+j.Links.Result); j.State != "succeeded" || !strings.Contains(result, fmt.Sprintf(`"sha256":"%x"`, sha256.Sum256([]byte(input)))) {
				t.Errorf("%s: %+v %s", input, j, result)
			}
		}
	}
	t.Logf("%d kills, %d requests repeated, %d jobs", kills, retries[0]+retries[1]+retries[2]+retries[3], total)
	if len(ids) != total || total < 20 || kills < 3 {
		t.Errorf("%d jobs have %d ids; %d kills", total, len(ids), kills)
	}
}

// As in a pod: another user, the group that the volume belongs to, and not a file but in the volume.
func TestAsInAPod(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs the right to run processes as another user: run as root")
	}
	const group = 65532
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) { // the way there
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	volume := filepath.Join(dir, "volume")
	if err := errors.Join(os.Mkdir(volume, 0o770), os.Chown(volume, 0, group), os.Chmod(volume, 0o770|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	as := func(cmd *exec.Cmd, uid uint32) *exec.Cmd {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{group}}}
		cmd.Dir = "/"
		return cmd
	}
	// The users differ, so that only the group can let one work on the other's files.
	start(t, as(command("worker", volume), 65532))
	api := start(t, as(command("backend-api", volume), 65533))
	if j := finished(t, api.api(), accept(t, api.api(), "kind=digest", "x")); j.State != "succeeded" {
		t.Errorf("the job %+v", j)
	}
	// A volume that cannot be written stops the service at the start.
	readOnly := filepath.Join(dir, "readonly")
	if err := os.Mkdir(readOnly, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := as(command("worker", readOnly), 65532).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "permission denied") {
		t.Errorf("a volume that cannot be written: %v %s", err, out)
	}
}

// What the services say to an operator who calls them by hand, or configures them wrongly.
func TestCommandLine(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, fmt.Appendf(nil, "test:%x\n", sha256.Sum256([]byte("secret"))), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, args string
		env        []string
		code       int
		want       string
	}{
		{"backend-api", "-check-config", nil, 0, "STORAGE_URL=file:///x\nADMIN_ADDR=127.0.0.1:0\nLOG_LEVEL=info\nLISTEN_ADDR=127.0.0.1:0\nMAX_INPUT_BYTES=67108864\nAPI_KEYS_FILE=\nALLOW_ANONYMOUS=false\nSHUTDOWN_DELAY=0s\nSHUTDOWN_GRACE=20s\n"},
		{"worker", "-check-config", nil, 0, "STORAGE_URL=file:///x\nADMIN_ADDR=127.0.0.1:0\nLOG_LEVEL=info\nWORKER_CONCURRENCY=4\nWORKER_MAX_ATTEMPTS=5\nWORKER_LEASE=1m0s\nWORKER_JOB_TIMEOUT=5m0s\nSHUTDOWN_GRACE=10s\n"},
		{"backend-api", "-version", nil, 0, "backend-api "},
		{"worker", "--version", nil, 0, "go1."},
		{"worker", "-help", nil, 0, "WORKER_LEASE"},
		{"worker", "run", nil, 2, `unknown argument "run"`},
		{"worker", "-x", nil, 2, "usage: worker"},
		{"worker", "", []string{"WORKER_CONCURRENCY=0"}, 2, `WORKER_CONCURRENCY="0": want a number from 1 to 1024`},
		{"worker", "-check-config", []string{"STORAGE_URL=https://a.blob.core.windows.net"}, 2, "file:///absolute/path"},
		{"backend-api", "-check-config", []string{"LISTEN_ADDR=0.0.0.0:8080"}, 2, "API_KEYS_FILE"},
		{"backend-api", "-check-config", []string{"LISTEN_ADDR=:8080"}, 2, "API_KEYS_FILE"},
		{"backend-api", "-check-config", []string{"LISTEN_ADDR=[::]:8080"}, 2, "API_KEYS_FILE"},
		{"backend-api", "-check-config", []string{"LISTEN_ADDR=10.0.0.1:8080"}, 2, "API_KEYS_FILE"},
		{"backend-api", "-check-config", []string{"LISTEN_ADDR=api.example.com:8080"}, 2, "API_KEYS_FILE"},
		{"backend-api", "-check-config", []string{"LISTEN_ADDR=[::1]:8080"}, 0, "LISTEN_ADDR=[::1]:8080"},
		{"backend-api", "-check-config", []string{"LISTEN_ADDR=localhost:8080"}, 0, "LISTEN_ADDR=localhost:8080"},
		{"backend-api", "-check-config", []string{"LISTEN_ADDR=:8080", "ALLOW_ANONYMOUS=true"}, 0, "ALLOW_ANONYMOUS=true"},
		{"backend-api", "-check-config", []string{"LISTEN_ADDR=:8080", "API_KEYS_FILE=" + keys}, 0, "API_KEYS_FILE=" + keys},
		{"backend-api", "-check-config", []string{"ALLOW_ANONYMOUS=true", "API_KEYS_FILE=" + keys}, 2, "ALLOW_ANONYMOUS=true: contradicts"},
		{"backend-api", "", []string{"API_KEYS_FILE=/does/not/exist", "STORAGE_URL=file://" + t.TempDir()}, 1, "API_KEYS_FILE"},
	} {
		cmd := command(c.name, "/x", c.env...)
		cmd.Args = append(cmd.Args, strings.Fields(c.args)...)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.want) {
			t.Errorf("%v %s %s: exit code %d, %v:\n%s\nwant %d and %q", c.env, c.name, c.args, code, err, out, c.code, c.want)
		}
	}
}

// With keys, only who has one may call; without, the log warns.
func TestKeys(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, fmt.Appendf(nil, "test:%x\n", sha256.Sum256([]byte("secret"))), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	closed := start(t, command("backend-api", dir, "API_KEYS_FILE="+keys))
	if status, answer := do(t, "POST", closed.api()+"/v1/jobs?kind=digest", "x"); status != 401 {
		t.Errorf("without a key: %d %s", status, answer)
	}
	accept(t, closed.api(), "kind=digest", "x", "Authorization", "Bearer secret")
	open := start(t, command("backend-api", dir, "LISTEN_ADDR=0.0.0.0:0", "ALLOW_ANONYMOUS=true"))
	if !strings.Contains(open.log.String(), `"level":"warn"`) || !strings.Contains(open.log.String(), "ALLOW_ANONYMOUS") {
		t.Errorf("no warning in\n%s", open.log)
	}
	accept(t, strings.Replace(open.api(), "[::]", "127.0.0.1", 1), "kind=digest", "x")
}

// A request that arrives while the API drains is served, and the API is unready meanwhile.
func TestDrain(t *testing.T) {
	p := start(t, command("backend-api", t.TempDir(), "SHUTDOWN_DELAY=400ms"))
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	poll(t, "it is unready", func() bool {
		status, answer := get(t, p.admin()+"/readyz")
		return status == 503 && strings.Contains(answer, "draining")
	})
	if status, _ := get(t, p.admin()+"/healthz"); status != 200 {
		t.Errorf("a draining process is not healthy: %d", status)
	}
	accept(t, p.api(), "kind=digest", "the last one")
	if err := p.wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if status, _ := get(t, p.api()+"/v1/jobs"); status != 0 {
		t.Errorf("it still answers: %d", status)
	}
}
