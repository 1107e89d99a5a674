package worker

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"aks-platform/src/internal/job"
	"aks-platform/src/internal/queue"
	"aks-platform/src/internal/queue/queuetest"
	"aks-platform/src/internal/store"
	"aks-platform/src/internal/store/storetest"
)

var chaos = flag.Duration("chaos", 4*time.Second, "how long to kill workers in TestChaos")

// These are set in the processes that tests start to run as workers: this program again, on that directory, with that
// lease.
const (
	workerDir   = "WORKER_TEST_DIR"
	workerLease = "WORKER_TEST_LEASE"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(workerDir); dir != "" {
		if err := runAsWorker(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runAsWorker(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	lease, err := time.ParseDuration(os.Getenv(workerLease))
	if err != nil {
		return err
	}
	q, err := queue.OpenDir(filepath.Join(dir, "queue"))
	if err != nil {
		return err
	}
	s, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	New(Config{
		Queue: q, Store: s,
		Kinds: map[string]job.Kind{
			"hash": {Run: func(ctx context.Context, in job.Input) ([]byte, error) {
				pause(ctx, rand.N(20*time.Millisecond)) // time to be killed in
				sum := sha256.New()
				_, err := io.Copy(sum, in)
				return fmt.Appendf(nil, `"%x"`, sum.Sum(nil)), err
			}},
			"kill": {Run: func(context.Context, job.Input) ([]byte, error) {
				return nil, syscall.Kill(os.Getpid(), syscall.SIGKILL) // as the kernel does when memory runs out
			}},
			"sleep": {Run: func(ctx context.Context, _ job.Input) ([]byte, error) {
				fmt.Println("sleeping")
				<-ctx.Done()
				return nil, ctx.Err()
			}},
		},
		Concurrency: 4, MaxAttempts: 1000, Lease: lease, Timeout: time.Minute, Grace: 200 * time.Millisecond,
		Backoff: 10 * time.Millisecond, Log: zerolog.New(os.Stderr).Level(zerolog.WarnLevel), Metrics: prometheus.NewRegistry(),
	}).Run(ctx)
	return nil
}

// workerCommand returns a worker process that run starts.
func workerCommand(t *testing.T, dir string, lease time.Duration) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	// The race detector would let the process sleep for a second at its end.
	cmd.Env = append(os.Environ(), workerDir+"="+dir, workerLease+"="+lease.String(), "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}

// run starts a process. It is killed at the end of the test if it still runs.
func run(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(t, cmd) })
	return cmd
}

// kill kills a process as the kernel would, and waits until it is gone.
func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if cmd.ProcessState != nil {
		return
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // says that it was killed
}

func processFixture(t *testing.T) (*fixture, string) {
	t.Helper()
	dir := t.TempDir()
	q, err := queue.OpenDir(filepath.Join(dir, "queue"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{t: t, queue: &queuetest.Faults{Queue: q}, store: &storetest.Faults{Store: s}, log: &syncBuffer{}}, dir
}

// Workers are killed at random while jobs come in. Every job gets its outcome, and every outcome is right.
func TestChaos(t *testing.T) {
	f, dir := processFixture(t)
	workers := make([]*exec.Cmd, 3)
	for i := range workers {
		workers[i] = run(t, workerCommand(t, dir, 700*time.Millisecond))
	}
	want := map[string]job.Spec{} // by the hash of the input
	kills := 0
	nextKill := time.Now().Add(300 * time.Millisecond)
	for end := time.Now().Add(*chaos); time.Now().Before(end); {
		input := fmt.Sprint("input ", len(want))
		spec := f.put("hash", input)
		f.send(spec.ID)
		want[fmt.Sprintf("%x", sha256.Sum256([]byte(input)))] = spec
		if time.Now().After(nextKill) {
			i := rand.IntN(len(workers))
			kill(t, workers[i])
			workers[i] = run(t, workerCommand(t, dir, 700*time.Millisecond))
			kills++
			nextKill = time.Now().Add(100*time.Millisecond + rand.N(300*time.Millisecond))
		}
	}
	accepted := time.Now()
	f.wantEmpty()
	missing, wrong := 0, 0
	for hash, spec := range want {
		switch state, body := f.outcome(spec); {
		case state == "":
			missing++
		case state != job.Succeeded || body != `"`+hash+`"`:
			wrong++
		}
	}
	t.Logf("%d kills, %d jobs, %d missing, %d wrong; drained in %v", kills, len(want), missing, wrong, time.Since(accepted).Round(time.Millisecond))
	if missing+wrong > 0 || kills < 3 || len(want) < 20 {
		t.Errorf("%d of %d jobs have no outcome and %d a wrong one, after %d kills", missing, len(want), wrong, kills)
	}
	for _, w := range workers {
		if err := w.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := w.Wait(); err != nil {
			t.Errorf("a worker that was told to stop: %v", err)
		}
	}
}

// A job that kills its worker is given up, and the last worker survives.
func TestJobThatKills(t *testing.T) {
	f, dir := processFixture(t)
	spec := f.put("kill", "x")
	f.send(spec.ID)
	const attempts = 2
	for range attempts {
		w := run(t, workerCommand(t, dir, 700*time.Millisecond))
		if err := w.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the worker ended with %v, want to be killed", err)
		}
	}
	if state, _ := f.outcome(spec); state != "" {
		t.Fatalf("the job has the outcome %s", state)
	}
	w := f.worker(echo, func(c *Config) {
		c.MaxAttempts = attempts
		c.Kinds = map[string]job.Kind{"kill": {Run: func(context.Context, job.Input) ([]byte, error) {
			t.Error("the handler ran again")
			return nil, nil
		}}}
	})
	f.start(w)
	f.wantOutcome(spec, job.Failed, "gave up after 2 attempts")
	f.wantEmpty()
}

// SIGTERM while a job runs: the process ends after its grace period, and another worker has the job at once.
func TestSIGTERM(t *testing.T) {
	f, dir := processFixture(t)
	spec := f.put("sleep", "x")
	f.send(spec.ID)
	cmd := workerCommand(t, dir, time.Hour)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	run(t, cmd)
	if _, err := io.ReadFull(out, make([]byte, len("sleeping"))); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the process ended with %v", err)
	}
	ended := time.Since(begin)
	ds, err := f.queue.Queue.Receive(t.Context(), 1, time.Minute)
	if err != nil || len(ds) != 1 || ds[0].Body != spec.ID {
		t.Fatalf("the message was not given back: %d, %v", len(ds), err)
	}
	t.Logf("ended %v after SIGTERM, with a grace period of 200 ms", ended.Round(time.Millisecond))
	if ended < 200*time.Millisecond {
		t.Error("the job did not get its grace period")
	}
}
