// Package platform runs the whole local platform for as long as `up` runs: it checks and prepares the host's side,
// starts the machine with the cluster in it, plays CI for every new commit of the checkout, and shows what Flux does.
//
// What runs where: this process stays on the host, because it builds images and reads the checkout. Everything else
// lives in the machine (package machine), reached through listeners on the host's loopback that it inherits.
package platform

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"aks-platform/tools/local/internal/cluster"
	"aks-platform/tools/local/internal/delivery"
	"aks-platform/tools/local/internal/flux"
	"aks-platform/tools/local/internal/machine"
	"aks-platform/tools/local/internal/process"
	"aks-platform/tools/local/internal/state"
	"aks-platform/tools/local/internal/upstream"
)

// Options are what a person chooses.
type Options struct {
	Root     string    // of the checkout
	Cache    string    // where built programs are kept
	Port     int       // of the API on the host's loopback
	Simulate bool      // KWOK instead of a node
	Out      io.Writer // progress, a line each
}

// MachineCommand is the name of the hidden command that turns this program into a machine.
const MachineCommand = "machine"

// How often we look at the checkout and at Flux. Both are cheap: one git process; two requests on loopback, and during a
// rollout one more for each object.
const (
	headInterval = 250 * time.Millisecond
	fluxInterval = 250 * time.Millisecond
)

// retryInterval is the time after which we try a commit again that we could not deliver: a full disk may be gone.
const retryInterval = 30 * time.Second

// uid is the user of the services in their images; it owns the storage folder.
const uid = 65532

// StateDir returns the state folder of a checkout.
func StateDir(root string) state.Dir { return state.Dir(filepath.Join(root, ".local")) }

// Up runs the platform until ctx ends or something that it can't do without fails. It leaves nothing running.
func Up(ctx context.Context, o Options) (err error) {
	p := &platform{
		Options:    o,
		dir:        StateDir(o.Root),
		checkout:   delivery.Checkout{Dir: o.Root},
		repository: delivery.Repository{ImagesFile: "apps/overlays/local/images/kustomization.yaml"},
		start:      time.Now(),
	}
	p.repository.Dir = filepath.Join(p.dir.Path("git"), cluster.GitRepository)
	head, err := checkCheckout(ctx, p.checkout)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(string(p.dir), 0o755); err != nil {
		return err
	}
	lock, err := p.dir.Lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	runc, err := p.chooseNode() // also decides about Simulate
	if err != nil {
		return err
	}
	defer p.closeListeners()
	if err := p.openListeners(); err != nil {
		return err
	}
	if err := p.buildPrograms(ctx); ctx.Err() != nil {
		return errors.New("interrupted while building; the next start goes on from here")
	} else if err != nil {
		return err
	}
	if err := p.prepare(ctx, runc); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.dir.Clear()) }()
	return p.run(ctx, head)
}

type platform struct {
	Options
	dir        state.Dir
	checkout   delivery.Checkout
	repository delivery.Repository
	start      time.Time

	cgroups             machine.Cgroups
	kube, app, registry *net.TCPListener // nil when pods are simulated
	programs            cluster.Programs
	builder             delivery.Builder
	cluster             *cluster.Cluster
	config              machine.Config

	imageInputs string            // what the newest images were made of
	digests     map[string]string // of the newest images

	mu       sync.Mutex // guards the rest
	current  state.Run
	welcomed bool
}

// say prints a line of progress: the time since the start, what it is about, what there is to say.
func (p *platform) say(about, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.Out, "%7.1fs  %-10s  %s\n", time.Since(p.start).Seconds(), about, fmt.Sprintf(format, args...))
}

// update changes the description of this run for other commands.
func (p *platform) update(change func(*state.Run)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.current)
	if err := p.dir.Write(p.current); err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	return nil
}

// chooseNode decides between a real node and a simulated one and checks what a real one needs.
func (p *platform) chooseNode() (runc string, err error) {
	if p.Simulate {
		p.say("pods", "simulated by KWOK, as asked: they are said to run, and do not")
		return "", nil
	}
	if why := whySimulate(); why != "" {
		p.Simulate = true
		p.say("pods", "simulated by KWOK, because %s: they are said to run, and do not", why)
		return "", nil
	}
	p.cgroups = cgroups(p.dir)
	// What a killed `up` left: the kernel ends its processes, but cgroups stay.
	if err := removeCgroups(p.cgroups); err != nil {
		return "", err
	}
	if err := checkVisible(p.Root, p.Cache); err != nil {
		return "", err
	}
	return checkNode(p.cgroups)
}

// cgroups names the cgroup of a checkout's platform.
func cgroups(dir state.Dir) machine.Cgroups {
	sum := sha256.Sum256([]byte(dir))
	return (&machine.Sandbox{Cgroup: "aks-platform-" + hex.EncodeToString(sum[:4])}).Cgroups()
}

// removeCgroups waits a moment for the last processes in it to end.
func removeCgroups(c machine.Cgroups) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := c.Remove()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("removing the pods' cgroups: %w", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *platform) openListeners() (err error) {
	if p.Simulate {
		return nil
	}
	if p.app, err = listen(p.Port, "the API", "--port"); err != nil {
		return err
	}
	if p.kube, err = listen(0, "the Kubernetes API", ""); err != nil {
		return err
	}
	p.registry, err = listen(0, "the registry", "")
	return err
}

func (p *platform) closeListeners() {
	for _, l := range []*net.TCPListener{p.kube, p.app, p.registry} {
		if l != nil {
			l.Close()
		}
	}
}

// Build builds the programs of others that Up would build.
func Build(ctx context.Context, o Options) error {
	p := &platform{Options: o, dir: StateDir(o.Root), start: time.Now()}
	if whySimulate() != "" {
		p.Simulate = true
	}
	if err := p.buildPrograms(ctx); err != nil {
		return err
	}
	p.say("build", "everything is in %s", p.Cache)
	return nil
}

// buildPrograms gets the programs of others, from the cache or by building them.
func (p *platform) buildPrograms(ctx context.Context) error {
	cache := &upstream.Cache{
		Root: p.Root, Dir: p.Cache, Go: "go", Log: func(format string, args ...any) { p.say("build", format, args...) },
	}
	type want struct {
		set upstream.Set
		dir *string
	}
	wanted := []want{{upstream.Kubernetes, &p.programs.Kubernetes}, {upstream.Flux, &p.programs.Flux}}
	if p.Simulate {
		wanted = append(wanted, want{upstream.KWOK, &p.programs.KWOK})
	} else {
		wanted = append(wanted, want{upstream.Node, &p.programs.Node}, want{upstream.Ko, &p.programs.Ko})
	}
	if err := checkSpace(string(p.dir), spaceToRun, "running the platform"); err != nil {
		return err
	}
	if slices.ContainsFunc(wanted, func(w want) bool { return !cache.Built(ctx, w.set) }) {
		compiled, err := exec.CommandContext(ctx, cache.Go, "env", "GOCACHE").Output()
		if err != nil {
			return fmt.Errorf("asking for Go's build cache: %w", err)
		}
		if err := checkSpace(strings.TrimSpace(string(compiled)), spaceToCompile, "compiling Kubernetes and Flux"); err != nil {
			return err
		}
		if err := checkSpace(p.Cache, spaceForSets, "keeping Kubernetes and Flux"); err != nil {
			return err
		}
	}
	for _, w := range wanted {
		dir, err := cache.Get(ctx, w.set)
		if err != nil {
			return err
		}
		*w.dir = dir
	}
	return nil
}

// prepare makes the state folder ready for a new start and writes the cluster's files.
func (p *platform) prepare(ctx context.Context, runc string) error {
	for _, part := range []string{"cluster", "log", "build"} {
		if err := os.RemoveAll(p.dir.Path(part)); err != nil {
			return fmt.Errorf("removing the last cluster: %w", err)
		}
	}
	for _, part := range []string{"cluster/artifacts", "cluster/tmp/kustomize", "cluster/tmp/source", "log", "storage"} {
		if err := os.MkdirAll(p.dir.Path(part), 0o755); err != nil {
			return err
		}
	}
	if os.Geteuid() == 0 {
		// Volumes of this kind are not given to a pod's group by the kubelet.
		storage := p.dir.Path("storage")
		if err := errors.Join(os.Chown(storage, uid, uid), os.Chmod(storage, fs.ModeSetgid|0o770)); err != nil {
			return err
		}
	}
	if err := p.repository.Init(ctx); err != nil {
		return err
	}
	p.cluster = &cluster.Cluster{
		Dir:      p.dir.Path("cluster"),
		LogDir:   p.dir.Path("log"),
		GitRepos: p.dir.Path("git"),
		Branch:   delivery.Branch,
		Storage:  p.dir.Path("storage"),
		Programs: p.programs,
		Runc:     runc,
		Simulate: p.Simulate,
		Cgroup:   p.cgroups.Name,
	}
	if !p.Simulate {
		p.cluster.KubeListener, p.cluster.AppListener, p.cluster.RegistryListener = 1, 2, 3
		p.cluster.KubeAddress = p.kube.Addr().String()
		p.builder = delivery.Builder{
			Ko: filepath.Join(p.programs.Ko, "ko"), Registry: delivery.Registry(p.registry.Addr().String()),
		}
	}
	var err error
	if p.config, err = p.cluster.Config(); err != nil {
		return err
	}
	return p.update(func(r *state.Run) {
		*r = state.Run{
			PID:        os.Getpid(),
			Started:    p.start,
			Simulated:  p.Simulate,
			Kubeconfig: p.cluster.Kubeconfig(),
			Kubectl:    filepath.Join(p.programs.Kubernetes, "kubectl"),
			Flux:       filepath.Join(p.programs.Flux, "flux"),
		}
		if !p.Simulate {
			r.API = "http://" + p.app.Addr().String()
		}
	})
}

func (p *platform) run(ctx context.Context, head string) (err error) {
	log, err := os.Create(filepath.Join(p.dir.Path("log"), "machine.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	var files []*os.File
	for _, l := range []*net.TCPListener{p.kube, p.app, p.registry} {
		if l == nil {
			continue
		}
		f, err := l.File()
		if err != nil {
			return err
		}
		defer f.Close()
		files = append(files, f)
	}
	m, err := machine.Start(p.config, MachineCommand, files, log)
	if err != nil {
		return err
	}
	defer func() {
		stopping := time.Now()
		m.Stop()
		if p.cgroups.Name != "" {
			err = errors.Join(err, removeCgroups(p.cgroups))
		}
		p.say("stopped", "in %.1f s; jobs and results are kept in %s", time.Since(stopping).Seconds(), p.dir.Path("storage"))
	}()
	group, ctx := errgroup.WithContext(ctx)
	up := make(chan struct{})
	group.Go(func() error { return p.followMachine(ctx, m, up) })
	group.Go(func() error { return p.followCheckout(ctx, head, up) })
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil // asked to stop
	}
	return err
}

// followMachine shows what happens in the machine and closes up when the cluster is. It fails when the machine does.
func (p *platform) followMachine(ctx context.Context, m *machine.Machine, up chan<- struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case e, ok := <-m.Events:
			switch {
			case !ok:
				return fmt.Errorf("the machine has ended; see %s", p.dir.Path("log"))
			case e.Error != "":
				return errors.New(e.Error)
			case e.Process == nil && !e.Up:
			case e.Up:
				p.say("cluster", "up: KUBECONFIG=%s", p.cluster.Kubeconfig())
				close(up)
			case e.Process.State == process.Restarted:
				p.say("cluster", "%s %s; started again", e.Process.Component, e.Process.Message)
			case e.Process.State == process.Ready:
				p.say("cluster", "%s ready", e.Process.Component)
			}
		}
	}
}

// followCheckout deploys the commit that is checked out, and then each new one, and shows how Flux gets on with it.
func (p *platform) followCheckout(ctx context.Context, head string, up <-chan struct{}) error {
	if !p.Simulate {
		// What the node needs before any pod.
		for image, program := range map[string]string{cluster.PauseImage: "pause", cluster.CoreDNSImage: "coredns"} {
			if err := p.builder.Registry.PushProgram(ctx, image, filepath.Join(p.programs.Node, program)); err != nil {
				return err
			}
		}
	}
	published, err := p.deliver(ctx, head)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-up:
	}
	if err := p.kubectl(ctx, "apply", "--server-side", "--filename="+p.cluster.SourceManifest()); err != nil {
		return err
	}
	client, err := flux.New(p.cluster.Kubeconfig())
	if err != nil {
		return err
	}
	show := &progress{platform: p, since: p.start, said: time.Now(), commit: head, published: published}
	unreadable := 0                  // how often in a row the checkout could not be read
	failed, again := "", time.Time{} // the commit that could not be delivered, and when to try it again
	look, ask := time.NewTicker(headInterval), time.NewTicker(fluxInterval)
	defer look.Stop()
	defer ask.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ask.C:
			if err := show.look(ctx, client); err != nil {
				return err
			}
		case <-look.C:
			now, err := p.checkout.Head(ctx)
			if err != nil {
				// git may be in the middle of something, so not at once.
				if unreadable++; unreadable == int(patience/headInterval) {
					p.say("failed", "the checkout can't be read any more: %v", err)
				}
				continue
			}
			unreadable = 0
			if now == show.commit {
				failed = ""
			}
			if now == show.commit || now == failed && time.Now().Before(again) {
				continue
			}
			since := time.Now()
			published, err := p.deliver(ctx, now)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			} else if err != nil {
				failed, again = now, time.Now().Add(retryInterval)
				p.say("failed", "%.9s is not deployed, %.9s stays: %v", now, show.commit, err)
				continue
			}
			show = &progress{platform: p, since: since, said: since, commit: now, published: published}
			if err := client.Poke(ctx); err != nil {
				p.say("flux", "%v; it fetches by itself within a minute", err)
			}
		}
	}
}

// deliver does what CI does with a commit: builds its images if their inputs changed, and publishes it with the digests.
func (p *platform) deliver(ctx context.Context, commit string) (published string, err error) {
	if err := p.repository.Import(ctx, p.checkout, commit); err != nil {
		return "", fmt.Errorf("importing the commit: %w", err)
	}
	if !p.Simulate {
		inputs, err := p.repository.Tree(ctx, commit, delivery.ImageInputs...)
		if err != nil {
			return "", err
		}
		if inputs != p.imageInputs {
			start := time.Now()
			p.say("images", "building from %.9s", commit)
			dir := p.dir.Path("build")
			if err := os.RemoveAll(dir); err != nil {
				return "", err
			}
			if err := p.repository.Export(ctx, commit, dir, delivery.ImageInputs...); err != nil {
				return "", err
			}
			digests, err := p.builder.Build(ctx, dir)
			if err != nil {
				return "", err
			}
			p.imageInputs, p.digests = inputs, digests
			for _, name := range delivery.Services {
				p.say("images", "%s@%.19s", name, digests[name])
			}
			p.say("images", "built and pushed in %.1f s", time.Since(start).Seconds())
		}
	}
	published, err = p.repository.Publish(ctx, commit, p.digests)
	if err != nil {
		return "", err
	}
	p.say("commit", "%.9s published as %.9s on %s", commit, published, delivery.Branch)
	if n, err := p.checkout.Uncommitted(ctx); err == nil && n > 0 {
		p.say("commit", "%d uncommitted file(s) of the checkout are not deployed: Flux deploys commits", n)
	}
	return published, p.update(func(r *state.Run) { r.Commit, r.Published, r.Up = commit, published, false })
}

func (p *platform) kubectl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(p.programs.Kubernetes, "kubectl"), args...)
	cmd.Env = append(os.Environ(), p.current.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", args[0], err, bytes.TrimSpace(out))
	}
	return nil
}

// answers reports whether the API in the cluster answers.
func (p *platform) answers(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.app.Addr().String()+"/v1/jobs?limit=1", nil)
	if err != nil {
		return false
	}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
