// Package upstream builds the programs of others that the local platform runs: Kubernetes, Flux, containerd, CoreDNS,
// KWOK and ko, each from the versions that a go.mod below tools/local pins.
//
// A built set lies in the user's cache directory under a name that is a hash of everything that went into it (go.mod,
// go.sum, our own main packages, the Go version, the recipe below), so it is built once per machine and never stale.
// Go verifies every module against the committed go.sum; nothing else is downloaded.
package upstream

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/mod/modfile"
)

// Set is the programs of one go.mod.
type Set struct {
	Folder   string   // below tools/local; it holds the go.mod
	Main     string   // the module whose version names the set
	Title    string   // what a person calls it
	Packages []string // the main packages; a program is called like the last element of its path
	Links    []string // further names of the folder's own program, which acts by the name it is called by

	// assets are files of a module that the programs need: name in the set's folder -> module and pattern below it.
	assets map[string]asset
	// stamp gives the linker flags that tell the programs their version. The go command stamps only main modules.
	stamp func(version string) string
	// patch lists modules of which a changed copy is built, because as published they do not compile.
	patch []patch
}

type asset struct{ module, glob string }

type patch struct {
	module string
	add    map[string]string // file to add -> content
}

// Kubernetes is the control plane, the kubelet, kube-proxy and kubectl in one program.
var Kubernetes = Set{
	Folder:   "kubernetes",
	Main:     "k8s.io/kubernetes",
	Title:    "Kubernetes",
	Packages: []string{"."},
	Links: []string{
		"etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet",
	},
	// The variables that upstream's hack/lib/version.sh sets; without them every component says v0.0.0 and the
	// kubelet does not register.
	stamp: func(version string) string {
		part := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
		var flags []string
		for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
			for _, v := range [][2]string{
				{"gitVersion", version}, {"gitMajor", part[0]}, {"gitMinor", part[1]}, {"gitTreeState", "clean"},
			} {
				flags = append(flags, fmt.Sprintf("-X %s.%s=%s", pkg, v[0], v[1]))
			}
		}
		return strings.Join(flags, " ")
	},
}

// Flux is the two controllers that the platform needs and the command line.
var Flux = Set{
	Folder: "flux",
	Main:   "github.com/fluxcd/flux2/v2",
	Title:  "Flux",
	Packages: []string{
		"github.com/fluxcd/flux2/v2/cmd/flux",
		"github.com/fluxcd/kustomize-controller",
		"github.com/fluxcd/source-controller",
	},
	stamp: func(version string) string { return "-X main.VERSION=" + strings.TrimPrefix(version, "v") },
	// The command embeds manifests for `flux install` that its release process generates and its module lacks. The
	// platform does not install Flux that way, so an empty one is enough.
	patch: []patch{{
		module: "github.com/fluxcd/flux2/v2",
		add: map[string]string{
			"cmd/flux/manifests/none.yaml": "# built by aks-platform: Flux is installed by tools/local, or by AKS\n",
		},
	}},
}

// Node is what a node runs besides the kubelet and runc.
var Node = Set{
	Folder: "node",
	Main:   "github.com/containerd/containerd/v2",
	Title:  "containerd",
	Packages: []string{
		"github.com/containerd/containerd/v2/cmd/containerd",
		"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
		"./coredns",
		"github.com/containernetworking/plugins/plugins/ipam/host-local",
		"github.com/containernetworking/plugins/plugins/main/loopback",
		"./pause",
		"github.com/containernetworking/plugins/plugins/main/ptp",
	},
}

// KWOK plays nodes and pods where no real node can run.
var KWOK = Set{
	Folder:   "kwok",
	Main:     "sigs.k8s.io/kwok",
	Title:    "KWOK",
	Packages: []string{"sigs.k8s.io/kwok/cmd/kwok"},
	assets: map[string]asset{
		// How KWOK moves objects through their states; its program has none built in.
		"stages/node-fast":      {"sigs.k8s.io/kwok", "kustomize/stage/node/fast/node-*.yaml"},
		"stages/node-heartbeat": {"sigs.k8s.io/kwok", "kustomize/stage/node/heartbeat-with-lease/node-*.yaml"},
		"stages/pod-fast":       {"sigs.k8s.io/kwok", "kustomize/stage/pod/fast/pod-*.yaml"},
	},
}

// Ko builds the platform's own images.
var Ko = Set{
	Folder:   "ko",
	Main:     "github.com/google/ko",
	Title:    "ko",
	Packages: []string{"github.com/google/ko"},
}

// Version returns the version of the set's main module as its go.mod pins it.
func (s Set) Version(root string) (string, error) {
	path := filepath.Join(root, "tools", "local", s.Folder, "go.mod")
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	mod, err := modfile.ParseLax(path, data, nil)
	if err != nil {
		return "", err
	}
	for _, r := range mod.Require {
		if r.Mod.Path == s.Main {
			return r.Mod.Version, nil
		}
	}
	return "", fmt.Errorf("%s does not require %s", path, s.Main)
}

// Cache is a directory of built sets.
type Cache struct {
	Root string // of the repository: the go.mod files lie in Root/tools/local
	Dir  string // where the sets go
	Go   string // the go command
	// Log gets what a person wants to read while a build runs, a line each.
	Log func(format string, args ...any)
}

// dir returns where s lies or will lie in the cache.
func (c *Cache) dir(ctx context.Context, s Set) (string, error) {
	key := sha256.New()
	src := filepath.Join(c.Root, "tools", "local", s.Folder)
	version, err := s.Version(c.Root)
	if err != nil {
		return "", err
	}
	// There, because a go.mod may ask for another toolchain.
	out, err := c.command(ctx, src, "version").Output()
	if err != nil {
		return "", fmt.Errorf("asking for the Go version: %w", err)
	}
	recipe, err := json.Marshal(s.recipe(version))
	if err != nil {
		return "", err
	}
	fmt.Fprintf(key, "%s%s\n", out, recipe)
	err = filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		fmt.Fprintf(key, "%s %d\n%s", rel, len(data), data)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("hashing the inputs of %s: %w", s.Title, err)
	}
	return filepath.Join(c.Dir, s.Folder+"-"+version+"-"+hex.EncodeToString(key.Sum(nil))[:16]), nil
}

// recipe is everything about the build that is not in the set's folder.
func (s Set) recipe(version string) any {
	ld := "-s -w"
	if s.stamp != nil {
		ld += " " + s.stamp(version)
	}
	var patches []any
	for _, p := range s.patch {
		patches = append(patches, []any{p.module, p.add})
	}
	assets := map[string]string{}
	for name, a := range s.assets {
		assets[name] = a.module + " " + a.glob
	}
	return map[string]any{
		"ldflags": ld, "packages": s.Packages, "links": s.Links, "patches": patches, "assets": assets,
	}
}

// Built reports whether Get would return without building.
func (c *Cache) Built(ctx context.Context, s Set) bool {
	dir, err := c.dir(ctx, s)
	if err != nil {
		return false
	}
	_, err = os.Stat(dir)
	return err == nil
}

// Get returns the folder with the programs of s; it builds them first if the cache does not have them. A build that is
// interrupted leaves nothing behind but Go's own build cache, from which the next one goes on. Sets of other versions
// stay: a checkout may come back to them.
func (c *Cache) Get(ctx context.Context, s Set) (string, error) {
	dir, err := c.dir(ctx, s)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	version, err := s.Version(c.Root)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache: %w", err)
	}
	if err := c.sweep(); err != nil {
		return "", fmt.Errorf("removing builds that were cut off: %w", err)
	}
	tmp, err := os.MkdirTemp(c.Dir, building+s.Folder+"-")
	if err != nil {
		return "", fmt.Errorf("making room for %s: %w", s.Title, err)
	}
	defer os.RemoveAll(tmp)
	start := time.Now()
	c.Log("%s %s: building from source, once", s.Title, version)
	if err := c.build(ctx, s, version, tmp); err != nil {
		return "", fmt.Errorf("building %s %s: %w", s.Title, version, err)
	}
	// Another process may have been faster: its set is as good.
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		if _, statErr := os.Stat(dir); statErr != nil {
			return "", fmt.Errorf("keeping %s: %w", s.Title, err)
		}
	}
	c.Log("%s %s: built in %s", s.Title, version, time.Since(start).Round(time.Second))
	return dir, nil
}

// building starts the names of folders in which a set is being built.
const building = ".building-"

// sweep removes what builds left that were killed: no build takes a day.
func (c *Cache) sweep() error {
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), building) || time.Since(info.ModTime()) < 24*time.Hour {
			continue
		}
		if err := os.RemoveAll(filepath.Join(c.Dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) build(ctx context.Context, s Set, version, out string) error {
	src := filepath.Join(c.Root, "tools", "local", s.Folder)
	scratch := filepath.Join(out, ".src")
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	mod := filepath.Join(src, "go.mod")
	if len(s.patch) > 0 {
		var err error
		if mod, err = c.patched(ctx, s, src, scratch); err != nil {
			return err
		}
	}
	for name, a := range s.assets {
		if err := c.copyAsset(ctx, src, a, filepath.Join(out, name)); err != nil {
			return fmt.Errorf("copying %s: %w", name, err)
		}
	}
	ld := s.recipe(version).(map[string]any)["ldflags"].(string)
	args := []string{"build", "-v", "-modfile=" + mod, "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", ld, "-o"}
	args = append(args, out+string(filepath.Separator))
	if err := c.compile(ctx, s, src, append(args, s.Packages...)); err != nil {
		return err
	}
	for _, name := range s.Links {
		if err := os.Symlink(s.Folder, filepath.Join(out, name)); err != nil {
			return err
		}
	}
	return nil
}

// compile runs the go command and says from time to time how far it is.
func (c *Cache) compile(ctx context.Context, s Set, dir string, args []string) error {
	cmd := c.command(ctx, dir, args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	start := time.Now()
	var compiled atomic.Int64
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(15 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.Log("%s: %d packages compiled, %s", s.Title, compiled.Load(), time.Since(start).Round(time.Second))
			case <-done:
				return
			}
		}
	}()
	// With -v the go command prints the path of each package that it compiles; what else it prints are complaints.
	var complaints []string
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "go: downloading "):
		case !strings.ContainsAny(line, " \t:"):
			compiled.Add(1)
		case len(complaints) < 20:
			complaints = append(complaints, line)
		}
	}
	// What no line holds must be read all the same, or the go command waits.
	_, copyErr := io.Copy(io.Discard, stderr)
	close(done)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("go build: %w\n%s", err, strings.Join(complaints, "\n"))
	}
	return copyErr
}

// patched copies the modules to patch into scratch and writes a go.mod that builds the copies. The go command refuses
// overlays over its module cache.
func (c *Cache) patched(ctx context.Context, s Set, src, scratch string) (string, error) {
	mod := filepath.Join(scratch, "go.mod")
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(src, name))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(scratch, name), data, 0o644); err != nil {
			return "", err
		}
	}
	for i, p := range s.patch {
		dir, err := c.moduleDir(ctx, src, p.module)
		if err != nil {
			return "", err
		}
		to := filepath.Join(scratch, fmt.Sprint("patched-", i))
		if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
			return "", fmt.Errorf("copying %s: %w", p.module, err)
		}
		for name, content := range p.add {
			path := filepath.Join(to, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return "", err
			}
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				return "", err
			}
		}
		if out, err := c.command(ctx, src, "mod", "edit", "-replace", p.module+"="+to, mod).CombinedOutput(); err != nil {
			return "", fmt.Errorf("go mod edit: %w\n%s", err, out)
		}
	}
	return mod, nil
}

func (c *Cache) copyAsset(ctx context.Context, src string, a asset, to string) error {
	dir, err := c.moduleDir(ctx, src, a.module)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, a.glob))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%s has no %s", a.module, a.glob)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// moduleDir returns where the go command keeps a module; it downloads and verifies the module if need be.
func (c *Cache) moduleDir(ctx context.Context, src, module string) (string, error) {
	cmd := c.command(ctx, src, "mod", "download", "-json", module)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go mod download %s: %w\n%s", module, err, out)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(out, &m); err != nil {
		return "", fmt.Errorf("go mod download %s: %w", module, err)
	}
	return m.Dir, nil
}

func (c *Cache) command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Go, args...)
	cmd.Dir = dir
	// Static programs: they also run inside images that have nothing else. GOFLAGS and a workspace of the user's
	// are for the user's own code.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}
