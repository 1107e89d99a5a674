package state

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// helper is the argument that turns the test binary into a process that holds the lock of a folder.
const helper = "state-test-holder"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == helper {
		lock, err := Dir(os.Args[2]).Lock()
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		// Until it is killed. The lock must stay in use, or the garbage collector gives it back.
		<-make(chan os.Signal)
		lock.Close()
	}
	os.Exit(m.Run())
}

// hold locks a folder in another process, which ends with the test.
func hold(t *testing.T, d Dir) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], helper, string(d))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "locked\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	return cmd
}

func TestLockIsExclusive(t *testing.T) {
	t.Parallel()
	d := Dir(t.TempDir())
	other := hold(t, d)
	_, err := d.Lock()
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "local down") {
		t.Fatalf("the lock of another process: %v; want ErrLocked, which says the way out", err)
	}
	// However the holder ends.
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait() // killed
	lock, err := d.Lock()
	if err != nil {
		t.Fatalf("the lock of a killed process: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	lock, err = d.Lock()
	if err != nil {
		t.Fatalf("the lock that was given back: %v", err)
	}
	lock.Close()
}

func TestChildrenDoNotInheritTheLock(t *testing.T) {
	t.Parallel()
	d := Dir(t.TempDir())
	lock, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "300")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait() // killed
	}()
	lock.Close()
	again, err := d.Lock()
	if err != nil {
		t.Fatalf("a child holds the lock: %v", err)
	}
	again.Close()
}

// Whoever asks what runs must not keep `up` from starting.
func TestRunningDoesNotDisturb(t *testing.T) {
	t.Parallel()
	d := Dir(t.TempDir())
	stop := make(chan struct{})
	var asked atomic.Int64
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := d.Running(); err != nil && !errors.Is(err, ErrNotRunning) {
					t.Errorf("asking: %v", err)
					return
				}
				asked.Add(1)
			}
		})
	}
	for locked := 0; (locked < 5000 || asked.Load() < 5000) && !t.Failed(); locked++ {
		lock, err := d.Lock()
		if err != nil {
			t.Errorf("nobody runs, and %v", err)
			break
		}
		lock.Close()
	}
	close(stop)
	asking.Wait()
}

func TestRunning(t *testing.T) {
	t.Parallel()
	missing := Dir(t.TempDir()).Path("none")
	if _, err := Dir(missing).Running(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no folder: %v; want ErrNotRunning", err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("asking has made the folder: %v", err)
	}
	d := Dir(t.TempDir())
	if _, err := d.Running(); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "local up") {
		t.Errorf("an empty folder: %v; want ErrNotRunning, which says the way out", err)
	}
	want := Run{PID: 4711, Commit: "abc", Started: time.Now().UTC().Round(0)}
	if err := d.Write(want); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Running(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("what a killed platform left: %v; want ErrNotRunning", err)
	}
	want.PID = hold(t, d).Process.Pid
	if err := d.Write(want); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Running(); err != nil || got.Commit != want.Commit || got.PID != want.PID {
		t.Errorf("a running platform: %+v, %v", got, err)
	}
}

func TestWriteReadClear(t *testing.T) {
	t.Parallel()
	d := Dir(t.TempDir())
	if _, err := d.Read(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nothing written: %v", err)
	}
	want := Run{
		PID: 1, Started: time.Now().UTC().Round(0), Up: true, Simulated: true, API: "http://127.0.0.1:8080",
		Kubeconfig: "/k", Kubectl: "/kubectl", Flux: "/flux", Commit: "c", Published: "p",
	}
	for range 2 { // the second replaces the first
		if err := d.Write(want); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := d.Read(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
	entries, err := os.ReadDir(string(d))
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder has %v, %v; want run.json", entries, err)
	}
	for range 2 { // nothing to clear is no error
		if err := d.Clear(); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.Read(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("cleared: %v", err)
	}
	if err := os.WriteFile(d.Path("run.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(); err == nil || !strings.Contains(err.Error(), d.Path("run.json")) {
		t.Errorf("a broken file: %v; want an error with its path", err)
	}
}

// The names in the file are what scripts read.
func TestNames(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(Run{API: "x"})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pid", "started", "up", "simulated", "api", "kubeconfig", "kubectl", "flux", "commit", "published"} {
		if _, ok := got[name]; !ok {
			t.Errorf("%s lacks %s", data, name)
		}
	}
}

func TestReadersSeeWholeDescriptions(t *testing.T) {
	t.Parallel()
	d := Dir(t.TempDir())
	write := func(i int) error {
		long := strings.Repeat(fmt.Sprint(i%10), 1+i%7*3000)
		return d.Write(Run{PID: len(long), Commit: long})
	}
	if err := write(0); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 200 {
			if err := write(i); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		r, err := d.Read()
		if err != nil || r.PID != len(r.Commit) {
			t.Errorf("read half a description: %d of %d bytes, %v", len(r.Commit), r.PID, err)
			<-done
			return
		}
	}
}
