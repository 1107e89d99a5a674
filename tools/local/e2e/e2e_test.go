//go:build e2e

// Package e2e proves the loop: a commit is deployed by genuine Flux to running pods. It starts the platform from a
// clone of this checkout's HEAD, so it needs no network once the programs are built, and leaves the checkout alone.
//
//	make e2e
//
// The tests need root on Linux for the real node. Nothing is skipped silently: without root TestNode fails and says so.
package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// local is the program under test, built once.
var local string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "aks-platform-e2e-")
	if err != nil {
		panic(err)
	}
	local = filepath.Join(dir, "local")
	build := exec.Command("go", "build", "-o", local, "aks-platform/tools/local")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building tools/local: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// TestNode drives the platform with a real node through the life of a repository. The steps build on each other.
func TestNode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("a real node needs root; TestOrdinaryUser is the part that does without")
	}
	whole := t // what a step starts may be needed by the next
	before := hostState(t)
	p := start(t, clone(t))
	api := p.status(t).API

	step(t, "Kustomizations are Ready", func(t *testing.T) {
		head := p.status(t).Published
		p.waitFor(t, time.Minute, "flux get kustomizations says Ready for all", func() (bool, string) {
			out := p.local(t, "flux", "get", "kustomizations", "--no-header")
			for _, name := range []string{"apps", "infra-configs", "flux-system-cluster"} {
				line := regexp.MustCompile(`(?m)^` + name + `\s+main@sha1:` + head[:8] + `\s+False\s+True\s`)
				if !line.MatchString(out) {
					return false, out
				}
			}
			return true, ""
		})
	})

	step(t, "a CSV posted to the API gives the right profile", func(t *testing.T) {
		checkProfile(t, api)
	})

	step(t, "pods are as hardened as their manifests say", func(t *testing.T) {
		out := p.local(t, "kubectl", "get", "pods", "--namespace=apps", "--output=json")
		var pods struct {
			Items []struct {
				Spec struct{ Containers []struct{ Image string } }
			}
		}
		if err := json.Unmarshal([]byte(out), &pods); err != nil {
			t.Fatal(err)
		}
		if len(pods.Items) != 3 {
			t.Errorf("%d pods, want 2 of backend-api and 1 of worker", len(pods.Items))
		}
		byDigest := regexp.MustCompile(`^registry\.localhost/(backend-api|worker)@sha256:[0-9a-f]{64}$`)
		for _, pod := range pods.Items {
			for _, c := range pod.Spec.Containers {
				if !byDigest.MatchString(c.Image) {
					t.Errorf("image %s is not ours by digest", c.Image)
				}
			}
		}
		// The API server refuses what the namespace does not allow; a pod as root is the usual mistake.
		cmd := exec.Command(local, "--root", p.dir, "kubectl", "run", "--namespace=apps", "root", "--image=x")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "violates PodSecurity") {
			t.Errorf("a pod without a security context was not refused: %v: %s", err, out)
		}
	})

	step(t, "a changed value and replica count are rolled out", func(t *testing.T) {
		p.edit(t, "apps/base/backend-api/kustomization.yaml", "LOG_LEVEL=info", "LOG_LEVEL=debug")
		p.edit(t, "apps/base/backend-api/deployment.yaml", "replicas: 2", "replicas: 3")
		p.deploy(t, "Log more, on three pods")
		out := p.local(t, "kubectl", "get", "deployment", "backend-api", "--namespace=apps",
			"--output=jsonpath={.status.readyReplicas} {.status.updatedReplicas}")
		if out != "3 3" {
			t.Errorf("ready and updated replicas are %q, want 3 3", out)
		}
		// The pods' own word for it: the configuration that they log at the start.
		p.waitFor(t, 30*time.Second, "the pods log at level debug", func() (bool, string) {
			env := p.local(t, "kubectl", "get", "configmaps", "--namespace=apps", "--output=jsonpath={.items[*].data.LOG_LEVEL}")
			return strings.Contains(env, "debug"), env
		})
		checkProfile(t, api)
	})

	step(t, "commits are rolled out within seconds", func(t *testing.T) {
		p.measureRollouts(t, "apps/base/backend-api/kustomization.yaml", `SHUTDOWN_GRACE=\d+s`, "SHUTDOWN_GRACE=%ds")
	})

	step(t, "a deleted object is pruned", func(t *testing.T) {
		p.write(t, "apps/overlays/local/extra.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: extra\ndata:\n  a: b\n")
		p.edit(t, "apps/overlays/local/kustomization.yaml", "  - storage.yaml\n", "  - storage.yaml\n  - extra.yaml\n")
		p.deploy(t, "Add an object")
		if out := p.local(t, "kubectl", "get", "configmap", "extra", "--namespace=apps", "--output=jsonpath={.data.a}"); out != "b" {
			t.Fatalf("the object is %q", out)
		}
		p.edit(t, "apps/overlays/local/kustomization.yaml", "  - extra.yaml\n", "")
		p.git(t, "rm", "--quiet", "apps/overlays/local/extra.yaml")
		p.deploy(t, "Delete the object")
		p.waitFor(t, 30*time.Second, "the object is gone", func() (bool, string) {
			out := p.local(t, "kubectl", "get", "configmap", "extra", "--namespace=apps", "--ignore-not-found", "--output=name")
			return out == "", out
		})
	})

	step(t, "a broken commit is refused and reported, pods keep answering, reverting heals", func(t *testing.T) {
		answering := answersAllTheTime(t, api)
		pods := p.local(t, "kubectl", "get", "pods", "--namespace=apps", "--output=name")
		// The selector no longer matches the pods: the API server refuses the Deployment.
		p.edit(t, "apps/base/backend-api/deployment.yaml", "    matchLabels:\n      app.kubernetes.io/name: backend-api", "    matchLabels:\n      app.kubernetes.io/name: other")
		p.commit(t, "Break the selector")
		p.waitFor(t, time.Minute, "Flux reports the broken Kustomization", func() (bool, string) {
			out := p.local(t, "flux", "get", "kustomizations", "apps", "--no-header")
			return strings.Contains(out, "False\tFalse\t") && strings.Contains(out, "selector"), out
		})
		p.waitFor(t, 10*time.Second, "up shows it as well", func() (bool, string) {
			out := p.output(t)
			return strings.Contains(out, "apps") && strings.Contains(out, "Ready=False"), out
		})
		if now := p.local(t, "kubectl", "get", "pods", "--namespace=apps", "--output=name"); now != pods {
			t.Errorf("pods changed:\n%s\nbefore:\n%s", now, pods)
		}
		p.git(t, "revert", "--no-edit", "HEAD")
		p.rolledOut(t)
		answering()
	})

	step(t, "a release that does not start leaves the old pods able to restart, reverting heals", func(t *testing.T) {
		old := strings.Fields(p.local(t, "kubectl", "get", "pods", "--namespace=apps", "--output=jsonpath={.items[*].metadata.name}",
			"--selector=app.kubernetes.io/name=backend-api"))
		// A value that the service refuses: the new pods end at once.
		p.edit(t, "apps/base/backend-api/kustomization.yaml", "LOG_LEVEL=debug", "LOG_LEVEL=loud")
		p.commit(t, "Log loudly")
		p.waitFor(t, 30*time.Second, "a new pod that does not start", func() (bool, string) {
			out := p.local(t, "kubectl", "get", "pods", "--namespace=apps", "--output=json")
			return strings.Contains(out, `"restartCount": 1`), out
		})
		p.local(t, "kubectl", "delete", "pod", "--namespace=apps", "--wait=false", old[0])
		available := func(n string) func() (bool, string) {
			return func() (bool, string) {
				out := p.local(t, "kubectl", "get", "deployment", "backend-api", "--namespace=apps", "--output=jsonpath={.status.availableReplicas}")
				return out == n, out + " pods available"
			}
		}
		p.waitFor(t, 30*time.Second, "one pod fewer", available("2"))
		p.waitFor(t, 30*time.Second, "the old pod is replaced by one of its own release", available("3"))
		checkProfile(t, api)
		p.waitFor(t, 2*time.Minute, "Flux reports the release", func() (bool, string) {
			out := p.local(t, "flux", "get", "kustomizations", "apps", "--no-header")
			return strings.Contains(out, "False\tFalse\t") && strings.Contains(out, "Deployment/apps/backend-api"), out
		})
		p.git(t, "revert", "--no-edit", "HEAD")
		p.rolledOut(t)
		checkProfile(t, api)
	})

	step(t, "memory", func(t *testing.T) {
		used := memory(t, p.status(t).PID)
		t.Logf("the platform uses %d MiB (proportional set size of all its processes)", used>>20)
		if used > 2<<30 {
			t.Errorf("more than 2 GiB")
		}
	})

	step(t, "up after SIGKILL starts again", func(t *testing.T) {
		if err := syscall.Kill(p.status(t).PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-p.exited
		p = start(whole, p.dir)
		checkProfile(t, p.status(t).API)
	})

	step(t, "Ctrl-C leaves nothing", func(t *testing.T) {
		if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := <-p.exited; err != nil {
			t.Errorf("up: %v", err)
		}
		sameHost(t, before)
	})

	step(t, "down after SIGKILL leaves nothing", func(t *testing.T) {
		p = start(whole, p.dir)
		if err := syscall.Kill(p.status(t).PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-p.exited
		p.local(t, "down")
		sameHost(t, before)
	})
}

// TestOrdinaryUser runs the platform without root, with simulated pods.
func TestOrdinaryUser(t *testing.T) {
	dir := clone(t)
	args := []string{}
	var credential *syscall.Credential
	if os.Geteuid() == 0 {
		// Somebody else owns the clone and a copy of the built programs.
		const nobody = 65534
		credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		if out, err := exec.Command(local, "--root", dir, "build", "--simulate").CombinedOutput(); err != nil {
			t.Fatalf("building the programs: %v\n%s", err, out)
		}
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache := filepath.Join(dir, ".local", "cache")
		for _, set := range []string{"kubernetes", "flux", "kwok"} {
			found, err := filepath.Glob(filepath.Join(user, "aks-platform", set+"-*"))
			if err != nil || len(found) == 0 {
				t.Fatalf("no %s in the cache: %v", set, err)
			}
			for _, f := range found {
				run(t, dir, "cp", "-a", f, mkdir(t, cache))
			}
		}
		if out, err := exec.Command("chown", "-R", fmt.Sprint(nobody, ":", nobody), dir).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for at := dir; at != os.TempDir() && at != "/"; at = filepath.Dir(at) {
			if err := os.Chmod(at, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		args = append(args, "--cache", cache)
	}
	p := startAs(t, dir, credential, args...)
	if out := p.output(t); !strings.Contains(out, "simulated by KWOK, because a real node needs root") && !strings.Contains(out, "needs Linux") {
		t.Errorf("it is not said that pods are simulated:\n%s", out)
	}
	if s := p.status(t); !s.Simulated || s.API != "" {
		t.Errorf("status says simulated %v, API %q", s.Simulated, s.API)
	}
	p.measureRollouts(t, "apps/base/backend-api/deployment.yaml", `replicas: \d+`, "replicas: %d")
	p.local(t, "down")
	if err := <-p.exited; err != nil {
		t.Errorf("up: %v", err)
	}
}

// TestRefusals starts `up` where it can't run: it must say why and the way out, and leave nothing.
func TestRefusals(t *testing.T) {
	tests := []struct {
		name    string
		root    bool // needs root
		prepare func(t *testing.T, dir string) (env []string, args []string)
		want    []string
	}{
		{"unborn branch", false, func(t *testing.T, dir string) ([]string, []string) {
			run(t, dir, "git", "checkout", "--quiet", "--orphan", "fresh")
			return nil, nil
		}, []string{"no commit yet", "git commit"}},
		{"not a git checkout", false, func(t *testing.T, dir string) ([]string, []string) {
			if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
				t.Fatal(err)
			}
			return []string{"GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir)}, nil
		}, []string{"not a usable git checkout"}},
		{"no runc", true, func(t *testing.T, dir string) ([]string, []string) {
			bin := mkdir(t, filepath.Join(t.TempDir(), "bin"))
			for _, name := range []string{"git", "go", "nft"} {
				path, err := exec.LookPath(name)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
					t.Fatal(err)
				}
			}
			return []string{"PATH=" + bin}, nil
		}, []string{"runc", "apt-get install", "--simulate"}},
		{"port in use", true, func(t *testing.T, dir string) ([]string, []string) {
			l := listen(t)
			return nil, []string{"--port", l}
		}, []string{"is in use", "--port"}},
		{"no such command line", false, func(t *testing.T, dir string) ([]string, []string) {
			return nil, []string{"--prot", "1"}
		}, []string{"unknown flag", "help"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.root && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			dir := clone(t)
			env, args := test.prepare(t, dir)
			cmd := exec.Command(local, append([]string{"--root", dir, "up"}, args...)...)
			cmd.Env = append(os.Environ(), env...)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("it went on:\n%s", out)
			}
			for _, want := range test.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
		})
	}
}

// TestFullDisk runs `up` in a mount namespace of its own, where the clone lies on a file system that is too small.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a small file system")
	}
	dir := clone(t)
	script := `mount -t tmpfs -o size=64m tmpfs "$1.small" && cp -a "$1/." "$1.small" && exec "$2" --root "$1.small" up`
	mkdir(t, dir+".small")
	cmd := exec.Command("sh", "-c", script, "sh", dir, local)
	// Go makes the mounts of an unshared namespace private, so the host does not see this one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err == nil || !regexp.MustCompile(`needs [\d.]+ GiB free at .*small.*make room`).Match(out) {
		t.Errorf("%v:\n%s", err, out)
	}
}

// TestDetachedAndDirty deploys a detached HEAD and says what of a dirty checkout is not deployed.
func TestDetachedAndDirty(t *testing.T) {
	dir := clone(t)
	run(t, dir, "git", "checkout", "--quiet", "--detach")
	if err := os.WriteFile(filepath.Join(dir, "platform.yaml"), []byte("changed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := start(t, dir, "--simulate")
	if out := p.output(t); !strings.Contains(out, "1 uncommitted file(s) of the checkout are not deployed") {
		t.Errorf("nothing is said of the uncommitted change:\n%s", out)
	}
	if status := run(t, dir, "git", "status", "--porcelain"); status != " M platform.yaml\n" {
		t.Errorf("the checkout was written: %s", status)
	}
	p.local(t, "down")
	<-p.exited
}

// TestREADME runs the commands of README.md as they are written there. `make test` is left to whoever runs this test.
func TestREADME(t *testing.T) {
	dir := clone(t)
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllSubmatch(readme, -1) {
		blocks = append(blocks, strings.TrimSpace(string(m[1])))
	}
	if len(blocks) != 3 || blocks[0] != "make up" || blocks[2] != "make test" {
		t.Fatalf("README.md has the commands %q: this test has to know what they do", blocks)
	}
	p := &platform{dir: dir, exited: make(chan error, 1)}
	p.cmd = exec.Command("sh", "-c", blocks[0])
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a terminal does it, for Ctrl-C
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.exited <- p.cmd.Wait() }()
	t.Cleanup(func() { p.local(t, "down") })
	p.rolledOut(t)
	if out := p.output(t); os.Geteuid() == 0 && !strings.Contains(out, "/v1/jobs?kind=csv-profile") {
		t.Errorf("up does not show the command of README.md:\n%s", out)
	}
	if os.Geteuid() == 0 {
		if out := run(t, dir, "sh", "-c", blocks[1]); !strings.Contains(out, `"state":"pending"`) || !strings.Contains(out, `"links"`) {
			t.Errorf("%s printed %s", blocks[1], out)
		}
	}
	ran := 0
	for _, m := range regexp.MustCompile("`(go run \\./tools/(?:validate|local (?:flux|kubectl))[^`]*)`").FindAllSubmatch(readme, -1) {
		run(t, dir, "sh", "-c", string(m[1]))
		ran++
	}
	if ran < 4 {
		t.Errorf("only %d commands found in the tables", ran)
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	if s := p.status(t); s.PID != 0 {
		t.Errorf("Ctrl-C left process %d", s.PID)
	}
}

// checkProfile posts a table to the API and compares the profile with what is known of it.
func checkProfile(t *testing.T, api string) {
	t.Helper()
	table := "city,population\nLyon,522250\nTurin,848885\nGhent,\n"
	resp, err := http.Post(api+"/v1/jobs?kind=csv-profile", "text/csv", strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("%s %s (%v)", resp.Status, body, err)
	}
	job := api + resp.Header.Get("Location")
	deadline := time.Now().Add(30 * time.Second)
	for {
		var state struct{ State, Reason string }
		getJSON(t, job, &state)
		if state.State == "succeeded" {
			break
		}
		if state.State == "failed" || time.Now().After(deadline) {
			t.Fatalf("job %s is %s: %s", job, state.State, state.Reason)
		}
		time.Sleep(50 * time.Millisecond)
	}
	var profile struct {
		Rows    int
		Columns []struct {
			Name, Type      string
			Nulls, Distinct int
			Min, Max, Mean  float64
		}
	}
	getJSON(t, job+"/result", &profile)
	got := fmt.Sprintf("%+v", profile)
	want := "{Rows:3 Columns:[{Name:city Type:string Nulls:0 Distinct:3 Min:0 Max:0 Mean:0} " +
		"{Name:population Type:integer Nulls:1 Distinct:2 Min:522250 Max:848885 Mean:685567.5}]}"
	if got != want {
		t.Errorf("profile is\n%s, want\n%s", got, want)
	}
}

func getJSON(t *testing.T, url string, into any) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %s (%v)", url, resp.Status, body, err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		t.Fatalf("GET %s: %v: %s", url, err, body)
	}
}

// answersAllTheTime asks the API again and again until the returned function is called, which fails the test if an
// answer was missing.
func answersAllTheTime(t *testing.T, api string) (stop func()) {
	done, result := make(chan struct{}), make(chan error)
	go func() {
		var failed error
		asked := 0
		client := &http.Client{Timeout: 5 * time.Second}
		for {
			select {
			case <-done:
				if failed == nil && asked == 0 {
					failed = fmt.Errorf("the API was never asked")
				}
				result <- failed
				return
			case <-time.After(50 * time.Millisecond):
			}
			resp, err := client.Get(api + "/v1/jobs?limit=1")
			asked++
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("the API answered %s", resp.Status)
				}
			}
			if err != nil && failed == nil {
				failed = err
			}
		}
	}()
	return func() {
		t.Helper()
		close(done)
		if err := <-result; err != nil {
			t.Errorf("the API did not answer all the time: %v", err)
		}
	}
}

// step runs a subtest and ends the test if it fails, because the next ones build on it.
func step(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	if !t.Run(name, f) {
		t.FailNow()
	}
}
