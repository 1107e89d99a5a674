package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"aks-platform/tools/local/internal/platform"
	"aks-platform/tools/local/internal/state"
)

// asProgram in the environment makes the test binary this program.
const asProgram = "LOCAL_TEST_IS_THE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(context.Background()))
	}
	os.Exit(m.Run())
}

// local runs the program in a folder.
func local(t *testing.T, dir string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// newCheckout makes what the program takes for a checkout.
func newCheckout(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	file := filepath.Join(root, "clusters", "local", "kustomization.yaml")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	return root
}

// runPlatform makes this process look like a platform that runs, with shell scripts for programs.
func runPlatform(t *testing.T, root string) state.Run {
	t.Helper()
	dir := platform.StateDir(root)
	if err := os.MkdirAll(dir.Path("log"), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := dir.Lock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	r := state.Run{PID: os.Getpid(), Commit: "0123456789abcdef", Kubeconfig: filepath.Join(root, "kubeconfig")}
	for name, path := range map[string]*string{"kubectl": &r.Kubectl, "flux": &r.Flux} {
		*path = filepath.Join(root, name)
		script := "#!/bin/sh\necho " + name + " \"$KUBECONFIG\" \"$@\"\nexit 7\n"
		if err := os.WriteFile(*path, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := dir.Write(r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	checkout, elsewhere := newCheckout(t), t.TempDir()
	below := filepath.Join(checkout, "clusters", "local")
	for _, test := range []struct {
		name   string
		dir    string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"help", elsewhere, nil, 0, "Usage:", ""},
		{"an unknown command", checkout, []string{"start"}, 2, "", `unknown command "start"`},
		{"an unknown flag", checkout, []string{"up", "--fast"}, 2, "", "--fast"},
		{"too much", checkout, []string{"down", "now"}, 2, "", "now"},
		{"too little", checkout, []string{"logs"}, 2, "", "help"},
		{"a port that is none", checkout, []string{"up", "--port=70000"}, 2, "", "--port 70000: want 0 to 65535"},
		{"a format that is none", checkout, []string{"status", "--format=xml"}, 2, "", `--format "xml": want text or json`},
		{"a machine without a number", checkout, []string{"machine", "x"}, 2, "", "x"},
		{"no checkout", elsewhere, []string{"status"}, 1, "", "clusters/local/kustomization.yaml"},
		{"no checkout in --root", checkout, []string{"status", "--root", elsewhere}, 1, "", elsewhere},
		{"--root is not looked for upwards", elsewhere, []string{"status", "--root", below}, 1, "", below},
		{"nothing runs", below, []string{"status"}, 1, "", "go run ./tools/local up"},
		{"nothing runs, kubectl", below, []string{"kubectl", "get", "pods"}, 1, "", "go run ./tools/local up"},
		{"nothing runs, logs", below, []string{"logs", "etcd"}, 1, "", "no component etcd has a log"},
		{"nothing to stop", elsewhere, []string{"down", "--root", checkout}, 0, "nothing runs\n", ""},
		{"no commit", checkout, []string{"up"}, 1, "", "git"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := local(t, test.dir, test.args...)
			if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
				t.Errorf("exit code %d, %q, %q; want %d, %q, %q", code, stdout, stderr, test.code, test.stdout, test.stderr)
			}
			if test.code == 0 && stderr != "" {
				t.Errorf("it complains: %s", stderr)
			}
			if test.code != 0 && (stdout != "" || !strings.HasPrefix(stderr, "local: ")) {
				t.Errorf("stdout %q, stderr %q; want an error on stderr alone", stdout, stderr)
			}
		})
	}
}

func TestCommandsOfARunningPlatform(t *testing.T) {
	t.Parallel()
	root, elsewhere := newCheckout(t), t.TempDir()
	r := runPlatform(t, root)
	for name, data := range map[string]string{"etcd": "of etcd\n", "worker.x": ""} {
		if err := os.WriteFile(filepath.Join(platform.StateDir(root).Path("log"), name+".log"), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(root, "secret.log")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		dir    string
		args   []string
		code   int
		stdout string
	}{
		{"kubeconfig", root, []string{"kubeconfig"}, 0, r.Kubeconfig + "\n"},
		{"kubeconfig of another folder", elsewhere, []string{"--root", root, "kubeconfig"}, 0, r.Kubeconfig + "\n"},
		{"kubectl", root, []string{"kubectl", "get", "pods", "--namespace", "apps", "-o=wide"}, 7, "kubectl " + r.Kubeconfig + " get pods --namespace apps -o=wide\n"},
		{"kubectl of another folder", elsewhere, []string{"--root", root, "kubectl", "get", "--help"}, 7, "kubectl " + r.Kubeconfig + " get --help\n"},
		{"flux", root, []string{"flux", "get", "all", "--root=x"}, 7, "flux " + r.Kubeconfig + " get all --root=x\n"},
		{"log of a component", root, []string{"logs", "etcd"}, 0, "of etcd\n"},
		{"log of a workload", root, []string{"logs", "worker", "--follow"}, 7, "kubectl " + r.Kubeconfig + " logs --namespace=apps --selector=app.kubernetes.io/name=worker"},
		{"log of something outside", root, []string{"logs", "../../secret"}, 7, "kubectl "},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := local(t, test.dir, test.args...)
			if code != test.code || !strings.HasPrefix(stdout, test.stdout) || stderr != "" {
				t.Errorf("exit code %d, %q, %q; want %d, %q and nothing", code, stdout, stderr, test.code, test.stdout)
			}
		})
	}
}

func TestUpTwice(t *testing.T) {
	t.Parallel()
	root := newCheckout(t)
	for _, args := range [][]string{{"init", "--quiet"}, {"-c", "user.name=Ann", "-c", "user.email=ann@example.com", "commit", "--quiet", "--allow-empty", "--message=first"}} {
		if out, err := exec.Command("git", append([]string{"-C", root}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	runPlatform(t, root)
	for _, args := range [][]string{{"up"}, {"up", "--detach"}} {
		code, _, stderr := local(t, root, args...)
		if code != 1 || !strings.Contains(stderr, "already running") || !strings.Contains(stderr, "go run ./tools/local down") {
			t.Errorf("%v: exit code %d, %s; want 1 and the way out", args, code, stderr)
		}
	}
}

// The start in the background fails like the one in the foreground, with the same words.
func TestDetachedFailure(t *testing.T) {
	t.Parallel()
	root := newCheckout(t)
	if out, err := exec.Command("git", "init", "--quiet", root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, args := range [][]string{{"up", "--detach"}, {"up", "--detach=true"}} {
		code, stdout, stderr := local(t, root, args...)
		if code != 1 || !strings.Contains(stdout+stderr, "no commit yet") {
			t.Errorf("%v: exit code %d, %q, %q; want why", args, code, stdout, stderr)
		}
	}
}

// A folder may be called like the flag that `up --detach` leaves out.
func TestDetachedInAFolderCalledDetach(t *testing.T) {
	t.Parallel()
	checkout := newCheckout(t)
	parent := t.TempDir()
	if err := os.Rename(checkout, filepath.Join(parent, "detach")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("git", "init", "--quiet", filepath.Join(parent, "detach")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	code, stdout, stderr := local(t, parent, "up", "--detach", "--root", "detach")
	if code != 1 || !strings.Contains(stdout+stderr, "no commit yet") {
		t.Errorf("exit code %d, %q, %q; want why", code, stdout, stderr)
	}
}

func TestStatusOfAClusterThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	root := newCheckout(t)
	r := runPlatform(t, root)
	config := map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "x",
		"clusters": []any{map[string]any{"name": "x", "cluster": map[string]any{"server": "http://127.0.0.1:1"}}},
		"contexts": []any{map[string]any{"name": "x", "context": map[string]any{"cluster": "x"}}},
	}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.Kubeconfig, data, 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := local(t, root, "status")
	if code != 1 || stdout != "" || !strings.Contains(stderr, "may still be starting") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}
