// Package cluster says which components make the local cluster and how each is run: a control plane of Kubernetes,
// the controllers of Flux as the AKS extension sets them up, and either a real node or KWOK.
//
// The components are upstream's; this package is their arguments and the few objects that AKS and Terraform would have
// made: the tenant service account of Flux, cluster DNS, and a volume in place of the storage account.
package cluster

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"text/template"

	"aks-platform/tools/internal/fluxcrd"
	"aks-platform/tools/local/internal/machine"
	"aks-platform/tools/local/internal/process"
)

// NodeName is the name of the real node and of KWOK's.
const NodeName = "local-0"

// The networks of a cluster, as nothing outside of it sees them. They are the usual ones of the field, so that what one
// reads elsewhere fits.
const (
	podCIDR     = "10.244.0.0/24"
	clusterCIDR = "10.244.0.0/16"
	serviceCIDR = "10.96.0.0/16"
	apiService  = "10.96.0.1"  // the first address of serviceCIDR, by definition
	dnsService  = "10.96.0.10" // manifests/dns.yaml gives it to the Service kube-dns
	nodeAddress = "10.250.0.10"
)

// Images that a node needs before any of the platform's. They are made of the programs in tools/local/node.
const (
	PauseImage   = "registry.localhost/pause:local"
	CoreDNSImage = "registry.localhost/coredns:local"
)

// GitRepository is the repository that Flux deploys, below Cluster.GitRepos.
const GitRepository = "platform.git"

// Programs are the folders of the sets of package upstream.
type Programs struct{ Kubernetes, Flux, Node, KWOK, Ko string }

// Cluster is one start of a local cluster.
type Cluster struct {
	Dir      string // an empty folder for what lives as long as the cluster
	LogDir   string
	GitRepos string
	Branch   string // of GitRepository that Flux follows
	Storage  string // the folder that plays the storage account, kept from start to start
	Programs Programs
	Runc     string // path of runc, for a real node
	Simulate bool   // KWOK in place of a node: pods are said to run, and do not
	Cgroup   string // see machine.Sandbox

	// What the parent listens on for the machine; indices as in machine.Config.
	KubeListener, RegistryListener, AppListener int
	KubeAddress                                 string // host:port of the first, for people's kubeconfig

	ports ports
}

// ports are where the parts of the control plane listen. In a machine of its own they are the usual ones; on the host's
// loopback they are whatever is free.
type ports struct {
	API, EtcdClient, EtcdPeer, ControllerManager, Scheduler int
	SourceMetrics, SourceHealth, SourceStorage              int
	KustomizeMetrics, KustomizeHealth, Git, Registry, KWOK  int
}

var usualPorts = ports{
	API: 6443, EtcdClient: 2379, EtcdPeer: 2380, ControllerManager: 10257, Scheduler: 10259,
	SourceMetrics: 9781, SourceHealth: 9782, SourceStorage: 9790,
	KustomizeMetrics: 9783, KustomizeHealth: 9784, Git: 9791, Registry: 5000, KWOK: 10247,
}

//go:embed manifests
var manifests embed.FS

// Config writes the cluster's files below Dir and returns the machine that runs it.
func (c *Cluster) Config() (machine.Config, error) {
	c.ports = usualPorts
	if c.Simulate {
		if err := c.ports.pick(); err != nil {
			return machine.Config{}, err
		}
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"making certificates", c.writePKI},
		{"writing manifests", c.writeManifests},
		{"writing the node's configuration", c.writeNode},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return machine.Config{}, fmt.Errorf("%s: %w", s.what, err)
		}
	}
	config := machine.Config{
		LogDir:   c.LogDir,
		Git:      machine.Server{Addr: c.addr(c.ports.Git)},
		GitRepos: c.GitRepos,
		Env: map[string]string{
			// Clients of the user's network must not be asked for the way to the machine's.
			"NO_PROXY": "*", "no_proxy": "*",
			"HOME": c.Dir, "KUBECONFIG": c.kubeconfig("admin"),
		},
		Stages: c.stages(),
	}
	if !c.Simulate {
		config.Sandbox = &machine.Sandbox{
			Hostname: NodeName, Address: nodeAddress + "/24", Scratch: filepath.Join(c.Dir, "node"), Cgroup: c.Cgroup,
		}
		config.Registry = machine.Server{Addr: c.addr(c.ports.Registry), Listener: c.RegistryListener}
		config.Blobs = filepath.Join(c.Dir, "registry")
		config.Forwards = []machine.Forward{
			{Listener: c.KubeListener, To: c.addr(c.ports.API)},
			{Listener: c.AppListener, To: "backend-api.apps.svc.cluster.local:80", DNS: dnsService + ":53"},
		}
	}
	return config, nil
}

// Kubeconfig is the path of an administrator's kubeconfig that works on the host.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }

// GitURL is the URL of the repository as Flux sees it.
func (c *Cluster) GitURL() string {
	return "http://" + c.addr(c.ports.Git) + "/" + GitRepository
}

func (c *Cluster) host() string {
	if c.Simulate {
		return "127.0.0.1"
	}
	return nodeAddress
}

func (c *Cluster) addr(port int) string { return net.JoinHostPort(c.host(), strconv.Itoa(port)) }

func (c *Cluster) pki(name string) string { return filepath.Join(c.Dir, "pki", name) }

func (c *Cluster) kubeconfig(identity string) string { return c.pki(identity + ".kubeconfig") }

func (c *Cluster) manifest(name string) string { return filepath.Join(c.Dir, "manifests", name) }

func (c *Cluster) writePKI() error {
	server := "https://" + c.addr(c.ports.API)
	err := writePKI(c.pki(""), server, []string{
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local", "127.0.0.1", apiService, c.host(),
	})
	if err != nil {
		return err
	}
	admin, err := os.ReadFile(c.kubeconfig("admin"))
	if err != nil {
		return err
	}
	if !c.Simulate {
		admin = bytes.Replace(admin, []byte(server), []byte("https://"+c.KubeAddress), 1)
	}
	return os.WriteFile(c.Kubeconfig(), admin, 0o600)
}

// writeManifests writes what is applied before Flux starts: its CRDs, then what AKS and Terraform would have made.
func (c *Cluster) writeManifests() error {
	if err := os.CopyFS(c.manifest("crds"), fluxcrd.FS); err != nil {
		return err
	}
	all, err := template.ParseFS(manifests, "manifests/*.yaml")
	if err != nil {
		return err
	}
	if err := c.execute(all.Lookup("source.yaml"), c.SourceManifest()); err != nil {
		return err
	}
	names := []string{"flux.yaml", "storage.yaml"}
	if c.Simulate {
		names = append(names, "node.yaml")
	} else {
		names = append(names, "dns.yaml")
	}
	for _, name := range names {
		err := c.execute(all.Lookup(name), filepath.Join(c.Dir, "manifests", "bootstrap", name))
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) writeNode() error {
	if err := os.MkdirAll(filepath.Join(c.Dir, "node", "volume-plugins"), 0o755); err != nil {
		return err
	}
	if c.Simulate {
		return c.writeStages()
	}
	all, err := template.ParseFS(manifests, "manifests/node/*")
	if err != nil {
		return err
	}
	for _, t := range all.Templates() {
		name := t.Name()
		switch name {
		case "hosts.toml":
			// containerd asks this registry for every image, whatever registry its name says.
			name = filepath.Join("registries", "_default", name)
		case "pods.conflist":
			name = filepath.Join("cni", name)
		}
		if err := c.execute(t, filepath.Join(c.Dir, "node", name)); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(c.Dir, "registry"), 0o755)
}

// writeStages gathers KWOK's stages in one file, as its command line wants them.
func (c *Cluster) writeStages() error {
	var all bytes.Buffer
	err := fs.WalkDir(os.DirFS(c.Programs.KWOK), "stages", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(c.Programs.KWOK, path))
		all.WriteString("---\n")
		all.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.Dir, "stages.yaml"), all.Bytes(), 0o644)
}

func (c *Cluster) execute(t *template.Template, path string) error {
	var b bytes.Buffer
	err := t.Option("missingkey=error").Execute(&b, map[string]any{
		"Address":   nodeAddress,
		"Branch":    c.Branch,
		"CA":        c.pki("ca.crt"),
		"Cgroup":    "/" + c.Cgroup,
		"CNI":       filepath.Join(c.Dir, "node", "cni"),
		"Cluster":   clusterCIDR,
		"CoreDNS":   CoreDNSImage,
		"DNS":       dnsService,
		"Dir":       filepath.Join(c.Dir, "node"),
		"GitURL":    c.GitURL(),
		"Node":      NodeName,
		"Pause":     PauseImage,
		"Pods":      podCIDR,
		"Programs":  c.Programs.Node,
		"Proxy":     c.kubeconfig("proxy"),
		"Registry":  c.addr(c.ports.Registry),
		"Runc":      c.Runc,
		"Storage":   c.Storage,
		"SocketDir": "/run/containerd",
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

func (c *Cluster) stages() [][]process.Spec {
	stages := [][]process.Spec{
		{c.etcd()},
		{c.apiServer()},
		// Flux's controllers end when a CRD of theirs is not served yet.
		{c.apply("crds", c.manifest("crds")), c.controllerManager(), c.scheduler()},
		{c.apply("bootstrap", c.manifest("bootstrap")), c.established()},
		{c.sourceController(), c.kustomizeController()},
	}
	if c.Simulate {
		stages[2] = append(stages[2], c.kwok())
		return stages
	}
	stages[0] = append(stages[0], c.containerd())
	stages[2] = append(stages[2], c.kubelet(), c.proxy())
	return stages
}

func (c *Cluster) kubernetes(name string) string { return filepath.Join(c.Programs.Kubernetes, name) }

func local(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

func (c *Cluster) etcd() process.Spec {
	client, peer := "http://"+local(c.ports.EtcdClient), "http://"+local(c.ports.EtcdPeer)
	return process.Spec{
		Name: "etcd",
		Path: c.kubernetes("etcd"),
		Args: []string{
			"--data-dir=" + filepath.Join(c.Dir, "etcd"),
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=default=" + peer,
			"--log-level=warn",
			// The state is thrown away with the cluster: Git is the truth.
			"--unsafe-no-fsync",
		},
		Ready: process.Probe{URL: client + "/readyz"},
	}
}

func (c *Cluster) apiServer() process.Spec {
	args := []string{
		"--etcd-servers=http://" + local(c.ports.EtcdClient),
		"--bind-address=" + c.host(), "--advertise-address=" + c.host(), "--secure-port=" + strconv.Itoa(c.ports.API),
		"--tls-cert-file=" + c.pki("apiserver.crt"), "--tls-private-key-file=" + c.pki("apiserver.key"),
		"--client-ca-file=" + c.pki("ca.crt"),
		"--token-auth-file=" + c.pki("tokens.csv"),
		"--service-account-key-file=" + c.pki("service-account.pub"),
		"--service-account-signing-key-file=" + c.pki("service-account.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=" + serviceCIDR,
		"--kubelet-client-certificate=" + c.pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + c.pki("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
	}
	if c.Simulate {
		// Loopback is no valid endpoint of the Service kubernetes, and no pod is there to ask for it.
		args = append(args, "--endpoint-reconciler-type=none")
	}
	return process.Spec{
		Name:  "kube-apiserver",
		Path:  c.kubernetes("kube-apiserver"),
		Args:  args,
		Ready: process.Probe{URL: "https://" + c.addr(c.ports.API) + "/readyz"},
	}
}

func (c *Cluster) controllerManager() process.Spec {
	return process.Spec{
		Name: "kube-controller-manager",
		Path: c.kubernetes("kube-controller-manager"),
		Args: []string{
			"--kubeconfig=" + c.kubeconfig("controller-manager"),
			"--service-account-private-key-file=" + c.pki("service-account.key"),
			"--root-ca-file=" + c.pki("ca.crt"),
			"--cluster-signing-cert-file=" + c.pki("ca.crt"), "--cluster-signing-key-file=" + c.pki("ca.key"),
			"--use-service-account-credentials",
			// How soon a claim finds its volume again that it has missed at the start; the default is 15 s.
			"--pvclaimbinder-sync-period=1s",
			"--leader-elect=false",
			"--flex-volume-plugin-dir=" + filepath.Join(c.Dir, "node", "volume-plugins"), // not /usr/libexec
			"--allocate-node-cidrs", "--cluster-cidr=" + clusterCIDR, "--service-cluster-ip-range=" + serviceCIDR,
			"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.ports.ControllerManager),
		},
		Ready: process.Probe{URL: "https://" + local(c.ports.ControllerManager) + "/healthz"},
	}
}

func (c *Cluster) scheduler() process.Spec {
	return process.Spec{
		Name: "kube-scheduler",
		Path: c.kubernetes("kube-scheduler"),
		Args: []string{
			"--kubeconfig=" + c.kubeconfig("scheduler"),
			"--leader-elect=false",
			"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.ports.Scheduler),
		},
		Ready: process.Probe{URL: "https://" + local(c.ports.Scheduler) + "/healthz"},
	}
}

// apply makes objects by server-side apply, the way Flux does it later.
func (c *Cluster) apply(name, dir string) process.Spec {
	return process.Spec{
		Name: "apply-" + name,
		Path: c.kubernetes("kubectl"),
		Args: []string{"apply", "--server-side", "--recursive", "--filename=" + dir},
		Once: true,
	}
}

// established waits until the API server serves every CRD.
func (c *Cluster) established() process.Spec {
	return process.Spec{
		Name: "wait-crds",
		Path: c.kubernetes("kubectl"),
		Args: []string{"wait", "--for=condition=Established", "--timeout=60s", "customresourcedefinitions", "--all"},
		Once: true,
	}
}

// The flags of the Flux controllers are those of the AKS extension's multi-tenancy (multiTenancy.enforce): tenants by
// default, no reference across namespaces. Without --events-addr, because there is no
// notification-controller: events that nobody takes are retried inside the reconciler and stall it.
func (c *Cluster) sourceController() process.Spec {
	storage := local(c.ports.SourceStorage)
	return process.Spec{
		Name: "source-controller",
		Path: filepath.Join(c.Programs.Flux, "source-controller"),
		Args: []string{
			"--watch-all-namespaces",
			"--enable-leader-election=false",
			"--log-encoding=json",
			"--metrics-addr=" + local(c.ports.SourceMetrics), "--health-addr=" + local(c.ports.SourceHealth),
			"--storage-path=" + filepath.Join(c.Dir, "artifacts"),
			"--storage-addr=" + storage, "--storage-adv-addr=" + storage,
		},
		Env:   c.fluxEnv("source"),
		Ready: process.Probe{URL: "http://" + local(c.ports.SourceHealth) + "/readyz"},
	}
}

func (c *Cluster) kustomizeController() process.Spec {
	return process.Spec{
		Name: "kustomize-controller",
		Path: filepath.Join(c.Programs.Flux, "kustomize-controller"),
		Args: []string{
			"--watch-all-namespaces",
			"--default-service-account=flux-applier",
			"--no-cross-namespace-refs=true",
			"--no-remote-bases=true",
			"--enable-leader-election=false",
			"--log-encoding=json",
			"--metrics-addr=" + local(c.ports.KustomizeMetrics), "--health-addr=" + local(c.ports.KustomizeHealth),
			// How long a Kustomization waits to ask again whether those it depends on are ready. The default of
			// 30 s is for clusters with hundreds of them.
			"--requeue-dependency=1s",
		},
		Env:   c.fluxEnv("kustomize"),
		Ready: process.Probe{URL: "http://" + local(c.ports.KustomizeHealth) + "/readyz"},
	}
}

func (c *Cluster) fluxEnv(name string) []string {
	return []string{
		"KUBECONFIG=" + c.kubeconfig("flux"), "RUNTIME_NAMESPACE=flux-system",
		"TMPDIR=" + filepath.Join(c.Dir, "tmp", name),
	}
}

func (c *Cluster) kwok() process.Spec {
	return process.Spec{
		Name: "kwok",
		Path: filepath.Join(c.Programs.KWOK, "kwok"),
		Args: []string{
			"--kubeconfig=" + c.kubeconfig("admin"),
			"--config=" + filepath.Join(c.Dir, "stages.yaml"),
			"--manage-all-nodes",
			"--node-lease-duration-seconds=40",
			"--cidr=" + podCIDR,
			"--server-address=" + local(c.ports.KWOK),
		},
		Ready: process.Probe{URL: "http://" + local(c.ports.KWOK) + "/healthz"},
	}
}

func (c *Cluster) containerd() process.Spec {
	return process.Spec{
		Name: "containerd",
		Path: filepath.Join(c.Programs.Node, "containerd"),
		Args: []string{"--config=" + filepath.Join(c.Dir, "node", "containerd.toml")},
		// The shim is looked for here.
		Env:   []string{"PATH=" + c.Programs.Node + string(os.PathListSeparator) + os.Getenv("PATH")},
		Ready: process.Probe{Socket: "/run/containerd/containerd.sock"},
	}
}

func (c *Cluster) kubelet() process.Spec {
	return process.Spec{
		Name: "kubelet",
		Path: c.kubernetes("kubelet"),
		Args: []string{
			"--config=" + filepath.Join(c.Dir, "node", "kubelet.yaml"),
			"--kubeconfig=" + c.kubeconfig("kubelet"),
			"--hostname-override=" + NodeName, "--node-ip=" + nodeAddress,
		},
		Ready: process.Probe{URL: "http://127.0.0.1:10248/healthz"},
	}
}

func (c *Cluster) proxy() process.Spec {
	return process.Spec{
		Name:  "kube-proxy",
		Path:  c.kubernetes("kube-proxy"),
		Args:  []string{"--config=" + filepath.Join(c.Dir, "node", "proxy.yaml")},
		Ready: process.Probe{URL: "http://127.0.0.1:10256/healthz"},
	}
}

// pick replaces every port by a free one of the host's loopback. Somebody else may take it in the moment before the
// component does; that component then says so in its log and ends, and so does the start.
func (p *ports) pick() error {
	all := []*int{
		&p.API, &p.EtcdClient, &p.EtcdPeer, &p.ControllerManager, &p.Scheduler, &p.SourceMetrics, &p.SourceHealth,
		&p.SourceStorage, &p.KustomizeMetrics, &p.KustomizeHealth, &p.Git, &p.Registry, &p.KWOK,
	}
	for _, port := range all {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("looking for a free port: %w", err)
		}
		// Kept until all are chosen, so that none is chosen twice.
		defer l.Close()
		*port = l.Addr().(*net.TCPAddr).Port
	}
	return nil
}

// SourceManifest is the path of the manifest that makes Flux deploy the repository.
func (c *Cluster) SourceManifest() string { return c.manifest("source.yaml") }
