package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// repository writes a small repository.
func repository(t *testing.T, settings string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"clusters/dev/settings.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\n  namespace: default\n" + settings,
		"deep/inside/file":           "",
	} {
		p := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestRun(t *testing.T) {
	good, bad, deprecated := repository(t, ""), repository(t, "date: {}\n"), repository(t, "")
	warning := "apiVersion: source.toolkit.fluxcd.io/v1beta2\nkind: GitRepository\nmetadata: {name: a, namespace: flux-system}\nspec: {interval: 1h, url: 'https://example.com/a'}\n"
	if err := os.WriteFile(filepath.Join(deprecated, "clusters/dev/settings.yaml"), []byte(warning), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(good, "clusters", "dev", "settings.yaml")
	for name, test := range map[string]struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"clean":             {[]string{"--root", good}, 0, "dev: 1 object in 1 Kustomization (no findings)", ""},
		"findings":          {[]string{"--root", bad}, 1, "clusters/dev/settings.yaml:6  API-001  ConfigMap default/settings  date: unknown field", ""},
		"json":              {[]string{"--root", bad, "--format", "json"}, 1, `"id": "API-001"`, ""},
		"warning":           {[]string{"--root", deprecated}, 1, "API-010", ""},
		"warning tolerated": {[]string{"--root", deprecated, "--fail-on", "error"}, 0, "API-010", ""},
		"debug":             {[]string{"--root", good, "--log-level", "debug"}, 0, "no findings", "cluster checked"},
		"rules":             {[]string{"rules"}, 0, "FX-003", ""},
		"explain":           {[]string{"explain", "fx-003"}, 0, "kustomization path not found", ""},
		"explain unknown":   {[]string{"explain", "FX-999"}, 2, "", `there is no check "FX-999"`},
		"explain nothing":   {[]string{"explain"}, 2, "", "accepts 1 arg"},
		"unknown format":    {[]string{"--root", good, "--format", "xml"}, 2, "", `unknown format "xml"`},
		"unknown severity":  {[]string{"--root", good, "--fail-on", "fatal"}, 2, "", `unknown severity "fatal"`},
		"unknown level":     {[]string{"--root", good, "--log-level", "loud"}, 2, "", `unknown level "loud"`},
		"unknown flag":      {[]string{"--rot", good}, 2, "", "unknown flag: --rot"},
		"argument":          {[]string{"clusters"}, 2, "", `unknown command "clusters"`},
		"no such root":      {[]string{"--root", filepath.Join(good, "gone")}, 2, "", "no such file or directory"},
		"root is a file":    {[]string{"--root", file}, 2, "", "is not a folder"},
		"no clusters":       {[]string{"--root", filepath.Join(good, "deep")}, 2, "", "there is no cluster to check"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			code := run(context.Background(), test.args, &stdout, &stderr)
			if code != test.code || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("exit code %d, want %d\nstdout: %s\nwant: %s\nstderr: %s\nwant: %s", code, test.code, stdout.String(), test.stdout, stderr.String(), test.stderr)
			}
			if test.stderr == "" && stderr.Len() > 0 {
				t.Errorf("diagnostics without a reason: %s", stderr.String())
			}
			if test.code == 2 && stdout.Len() > 0 {
				t.Errorf("a run that failed writes to the standard output: %s", stdout.String())
			}
			if strings.Contains(strings.Join(test.args, " "), "json") && !json.Valid([]byte(stdout.String())) {
				t.Errorf("not JSON: %s", stdout.String())
			}
		})
	}
}

func TestRootIsFoundUpwards(t *testing.T) {
	root := repository(t, "")
	t.Chdir(filepath.Join(root, "deep", "inside"))
	var stdout, stderr strings.Builder
	if code := run(context.Background(), nil, &stdout, &stderr); code != exitClean {
		t.Errorf("exit code %d: %s%s", code, stdout.String(), stderr.String())
	}
	t.Chdir(t.TempDir())
	if code := run(context.Background(), nil, &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "--root") {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var stdout, stderr strings.Builder
	if code := run(ctx, []string{"--root", repository(t, "")}, &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "canceled") {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}
