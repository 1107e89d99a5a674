package delivery

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func newRegistry(t *testing.T) Registry {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return Registry(strings.TrimPrefix(srv.URL, "http://"))
}

func pull(t *testing.T, r Registry, image string) v1.Image {
	t.Helper()
	ref, err := name.ParseReference(string(r)+"/"+image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

type file struct {
	mode    int64
	content string
}

func files(t *testing.T, img v1.Image) map[string]file {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v; want 1", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all := map[string]file{}
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = file{h.Mode, string(data)}
	}
}

func TestPushProgram(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	program := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(program, []byte("ELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]string{
		"registry.k8s.io/pause:3.10":             "pause:3.10",
		"registry.k8s.io/coredns/coredns:v1.0.0": "coredns/coredns:v1.0.0",
	} {
		if err := r.PushProgram(t.Context(), image, program); err != nil {
			t.Fatal(err)
		}
		img := pull(t, r, want)
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if c := config.Config; !slices.Equal(c.Entrypoint, []string{"/pause"}) || c.User != "65532:65532" {
			t.Errorf("%s runs %v as %q", want, c.Entrypoint, c.User)
		}
		if config.OS != "linux" || config.Architecture != runtime.GOARCH {
			t.Errorf("%s is for %s/%s", want, config.OS, config.Architecture)
		}
		all := files(t, img)
		if got := all["pause"]; got != (file{0o755, "ELF"}) {
			t.Errorf("%s has the program %+v", want, got)
		}
		if got := all["tmp/"]; got.mode != 0o1777 || len(all) != 2 {
			t.Errorf("%s has %v; want the program and a /tmp for everybody", want, all)
		}
	}
	if err := r.PushProgram(t.Context(), "pause", program); err == nil || !strings.Contains(err.Error(), "pause has no registry") {
		t.Errorf("an image without a registry: %v", err)
	}
	if err := r.PushProgram(t.Context(), "registry.k8s.io/pause:1", program+"x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
}

func TestBaseImage(t *testing.T) {
	t.Parallel()
	first, err := baseImage()
	if err != nil {
		t.Fatal(err)
	}
	second, err := baseImage()
	if err != nil {
		t.Fatal(err)
	}
	a, errA := first.Digest()
	b, errB := second.Digest()
	if a != b || errA != nil || errB != nil {
		t.Errorf("two base images: %s and %s, %v, %v", a, b, errA, errB)
	}
	all := files(t, first)
	if !strings.Contains(all["etc/passwd"].content, "nonroot:x:65532:65532") || all["etc/passwd"].mode != 0o644 || all["etc/"].mode != 0o755 {
		t.Errorf("the base image has %+v", all)
	}
	config, err := first.ConfigFile()
	if err != nil || config.Config.User != "65532:65532" {
		t.Errorf("it runs as %q, %v", config.Config.User, err)
	}
}

// ko is a stand-in that records how it is called and prints what the genuine one does, which the end-to-end tests run.
// dir has the sources of two services.
func ko(t *testing.T, r Registry, script string) (b *Builder, dir string) {
	t.Helper()
	dir = t.TempDir()
	program := filepath.Join(t.TempDir(), "ko")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{"go.mod": "module m\n\ngo 1.26\n"}
	for _, s := range Services {
		sources["src/"+s+"/main.go"] = "package main\n\nfunc main() {}\n"
	}
	for name, content := range sources {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &Builder{Ko: program, Registry: r}, dir
}

const printRefs = `for a; do case $a in --image-refs=*) refs=${a#*=};; esac; done
for s in worker backend-api; do echo registry.localhost/src/$s@sha256:` + "$(printf %064d 7)" + `; done > $refs
`

func TestBuild(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	b, dir := ko(t, r, `echo "$@" > args; env > env`+"\n"+printRefs)
	for range 2 {
		got, err := b.Build(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		want := "sha256:" + strings.Repeat("0", 63) + "7"
		if len(got) != 2 || got["worker"] != want || got["backend-api"] != want {
			t.Errorf("built %v", got)
		}
	}
	args, errArgs := os.ReadFile(filepath.Join(dir, "args"))
	env, errEnv := os.ReadFile(filepath.Join(dir, "env"))
	if err := errors.Join(errArgs, errEnv); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"build ", "./src/backend-api", "./src/worker", "--platform=linux/" + runtime.GOARCH} {
		if !strings.Contains(string(args), want) {
			t.Errorf("ko %s lacks %s", args, want)
		}
	}
	for _, want := range []string{"KO_DOCKER_REPO=" + RegistryName + "\n", "SOURCE_DATE_EPOCH=0\n", "HTTP_PROXY=http://" + string(r) + "\n"} {
		if !strings.Contains(string(env), want) {
			t.Errorf("the environment of ko lacks %s", want)
		}
	}
	// The base is pinned, and the registry has it.
	_, base, ok := strings.Cut(string(env), "KO_DEFAULTBASEIMAGE="+RegistryName+"/")
	if !ok {
		t.Fatalf("no base image in %s", env)
	}
	base, _, _ = strings.Cut(base, "\n")
	if !strings.HasPrefix(base, "base@sha256:") {
		t.Errorf("the base image is %s", base)
	}
	pull(t, r, base)
}

func TestBuildErrors(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	for _, test := range []struct {
		name, script string
		want         []string
	}{
		{"fails", "echo src/worker/main.go:3: undefined: x >&2; exit 1", []string{"ko build", "undefined: x"}},
		{"builds too little", strings.ReplaceAll(printRefs, "worker backend-api", "worker"), []string{"backend-api"}},
		{"prints something else", strings.ReplaceAll(printRefs, "@sha256:", ":v1 "), []string{"ko printed"}},
		{"prints nothing", "", []string{".image-refs"}},
	} {
		b, dir := ko(t, r, test.script)
		_, err := b.Build(t.Context(), dir)
		if err == nil {
			t.Errorf("%s: no error", test.name)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q lacks %q", test.name, err, want)
			}
		}
	}
}

// What is wrong with the modules is said before ko is asked.
func TestBuildWithoutModule(t *testing.T) {
	t.Parallel()
	b, dir := ko(t, newRegistry(t), "exit 1")
	err := os.WriteFile(filepath.Join(dir, "src", "worker", "main.go"), []byte("package main\n\nimport _ \"example.test/missing\"\n\nfunc main() {}\n"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Build(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "example.test/missing") || !strings.Contains(err.Error(), "main.go:3") {
		t.Errorf("%v", err)
	}
}

func TestBuildIsCancelled(t *testing.T) {
	t.Parallel()
	b, dir := ko(t, newRegistry(t), ": > started; exec sleep 300")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := os.Stat(filepath.Join(dir, "started")); err == nil {
				cancel(why)
				return
			}
		}
	}()
	if _, err := b.Build(ctx, dir); !errors.Is(err, why) {
		t.Errorf("%v; want %v", err, why)
	}
}
