package cluster

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/csv"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"

	"aks-platform/tools/local/internal/machine"
	"aks-platform/tools/local/internal/process"
)

// newCluster returns a cluster in an empty folder and what it makes of it.
func newCluster(t *testing.T, name string, simulate bool) (*Cluster, machine.Config) {
	t.Helper()
	root := filepath.Join(t.TempDir(), name)
	c := &Cluster{
		Dir: filepath.Join(root, "cluster"), LogDir: filepath.Join(root, "log"), GitRepos: filepath.Join(root, "git"),
		Storage:  filepath.Join(root, "storage"),
		Programs: Programs{Kubernetes: "/programs/kubernetes", Flux: "/programs/flux", Node: "/programs/node", KWOK: filepath.Join(root, "kwok")},
		Runc:     "/usr/sbin/runc", Simulate: simulate, Cgroup: "aks-platform-test",
	}
	if !simulate {
		c.KubeListener, c.AppListener, c.RegistryListener, c.KubeAddress = 1, 2, 3, "127.0.0.1:40123"
	}
	for name, data := range map[string]string{"stages/node-fast/a.yaml": "kind: Stage\nname: a\n", "stages/pod-fast/b.yaml": "kind: Stage\nname: b"} {
		path := filepath.Join(c.Programs.KWOK, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	config, err := c.Config()
	if err != nil {
		t.Fatal(err)
	}
	return c, config
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// both runs a test for a cluster with a node and for one without.
func both(t *testing.T, test func(t *testing.T, c *Cluster, config machine.Config)) {
	for name, simulate := range map[string]bool{"node": false, "simulated": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, config := newCluster(t, "checkout", simulate)
			test(t, c, config)
		})
	}
}

func spec(t *testing.T, config machine.Config, name string) process.Spec {
	t.Helper()
	for _, stage := range config.Stages {
		for _, s := range stage {
			if s.Name == name {
				return s
			}
		}
	}
	t.Fatalf("no component %s", name)
	return process.Spec{}
}

// What a component needs is in an earlier stage than the component.
func TestComponents(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, c *Cluster, config machine.Config) {
		stage := map[string]int{}
		for i, specs := range config.Stages {
			for _, s := range specs {
				if _, ok := stage[s.Name]; ok {
					t.Errorf("two components are called %s: they would share a log", s.Name)
				}
				stage[s.Name] = i
			}
		}
		order := [][2]string{
			{"etcd", "kube-apiserver"}, {"kube-apiserver", "kube-controller-manager"}, {"kube-apiserver", "kube-scheduler"},
			{"kube-apiserver", "apply-crds"}, {"apply-crds", "apply-bootstrap"}, {"apply-crds", "source-controller"},
			{"apply-crds", "kustomize-controller"},
		}
		only, others := []string{"containerd", "kubelet", "kube-proxy"}, []string{"kwok"}
		if c.Simulate {
			only, others = others, only
			order = append(order, [2]string{"kube-apiserver", "kwok"})
		} else {
			order = append(order, [2]string{"containerd", "kubelet"}, [2]string{"kube-apiserver", "kubelet"}, [2]string{"kube-apiserver", "kube-proxy"})
		}
		for _, o := range order {
			first, ok := stage[o[0]]
			second, ok2 := stage[o[1]]
			if !ok || !ok2 || first >= second {
				t.Errorf("%s is in stage %d (%t), %s in %d (%t); want it earlier", o[0], first, ok, o[1], second, ok2)
			}
		}
		for _, name := range only {
			if _, ok := stage[name]; !ok {
				t.Errorf("no %s", name)
			}
		}
		for _, name := range others {
			if _, ok := stage[name]; ok {
				t.Errorf("%s has nothing to do here", name)
			}
		}
		// All that goes on is waited for.
		for _, specs := range config.Stages {
			for _, s := range specs {
				if !s.Once && s.Ready == (process.Probe{}) {
					t.Errorf("nobody waits for %s", s.Name)
				}
			}
		}
	})
}

func TestNodeAndSimulationDiffer(t *testing.T) {
	t.Parallel()
	c, node := newCluster(t, "checkout", false)
	wantSandbox := &machine.Sandbox{Hostname: NodeName, Address: "10.250.0.10/24", Scratch: filepath.Join(c.Dir, "node"), Cgroup: "aks-platform-test"}
	if !reflect.DeepEqual(node.Sandbox, wantSandbox) {
		t.Errorf("sandbox %+v; want %+v", node.Sandbox, wantSandbox)
	}
	wantForwards := []machine.Forward{
		{Listener: 1, To: "10.250.0.10:6443"},
		{Listener: 2, To: "backend-api.apps.svc.cluster.local:80", DNS: "10.96.0.10:53"},
	}
	if !reflect.DeepEqual(node.Forwards, wantForwards) {
		t.Errorf("forwards %+v; want %+v", node.Forwards, wantForwards)
	}
	if node.Registry.Listener != 3 || node.Registry.Addr != "10.250.0.10:5000" {
		t.Errorf("registry %+v", node.Registry)
	}

	c, simulated := newCluster(t, "checkout", true)
	if simulated.Sandbox != nil || simulated.Registry.Addr != "" || len(simulated.Forwards) > 0 || simulated.Git.Listener != 0 {
		t.Errorf("a simulation has a sandbox, a registry or listeners of the host: %+v", simulated)
	}
	if host, _, err := net.SplitHostPort(simulated.Git.Addr); err != nil || host != "127.0.0.1" {
		t.Errorf("the git server listens on %s, %v; want loopback", simulated.Git.Addr, err)
	}
	if got, want := string(read(t, filepath.Join(c.Dir, "stages.yaml"))), "---\nkind: Stage\nname: a\n---\nkind: Stage\nname: b"; got != want {
		t.Errorf("the stages of KWOK are %q; want %q", got, want)
	}
	if args := strings.Join(spec(t, simulated, "kube-apiserver").Args, " "); !strings.Contains(args, "--bind-address=127.0.0.1 ") {
		t.Errorf("kube-apiserver %s; want it on loopback", args)
	}
	// Whatever listens does so on loopback.
	for _, stage := range simulated.Stages {
		for _, s := range stage {
			for _, a := range s.Args {
				if strings.Contains(a, "10.250.") || strings.Contains(a, "0.0.0.0") {
					t.Errorf("%s %s", s.Name, a)
				}
			}
		}
	}
}

// No two parts of a cluster want the same port, and a simulation wants none that is taken.
func TestPorts(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, c *Cluster, _ machine.Config) {
		taken := map[int64]string{}
		for field, value := range reflect.ValueOf(c.ports).Fields() {
			port := value.Int()
			if other := taken[port]; other != "" || port == 0 {
				t.Errorf("%s has the port %d, as %q", field.Name, port, other)
			}
			taken[port] = field.Name
			if c.Simulate {
				l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
				if err != nil {
					t.Errorf("%s: %v", field.Name, err)
					continue
				}
				l.Close()
			}
		}
	})
}

// Every file that a component is told to read has been written.
func TestFilesOfArguments(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, c *Cluster, config machine.Config) {
		made := []string{ // by the component, or by package platform
			filepath.Join(c.Dir, "etcd"), filepath.Join(c.Dir, "artifacts"), filepath.Join(c.Dir, "tmp"),
		}
		checked := 0
		for _, stage := range config.Stages {
			for _, s := range stage {
				for _, a := range append(slices.Clone(s.Args), s.Env...) {
					_, path, _ := strings.Cut(a, "=")
					if !strings.HasPrefix(path, c.Dir) || slices.ContainsFunc(made, func(m string) bool { return strings.HasPrefix(path, m) }) {
						continue
					}
					checked++
					if _, err := os.Stat(path); err != nil {
						t.Errorf("%s %s: %v", s.Name, a, err)
					}
				}
			}
		}
		if checked < 10 {
			t.Errorf("only %d files were looked for", checked)
		}
		if got := config.Env["KUBECONFIG"]; got == "" || len(read(t, got)) == 0 {
			t.Errorf("KUBECONFIG=%s", got)
		}
	})
}

// objects returns the documents of all manifests.
func objects(t *testing.T, c *Cluster) (docs [][]byte) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(c.Dir, "manifests"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Base(filepath.Dir(path)) == "crds" {
			return err
		}
		docs = append(docs, bytes.Split(read(t, path), []byte("\n---\n"))...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

// Every object is one that its API knows, field by field.
func TestManifests(t *testing.T) {
	t.Parallel()
	known := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(known), sourcev1.AddToScheme(known), kustomizev1.AddToScheme(known)); err != nil {
		t.Fatal(err)
	}
	strict := serializer.NewCodecFactory(known, serializer.EnableStrict).UniversalDeserializer()
	both(t, func(t *testing.T, c *Cluster, _ machine.Config) {
		kinds := map[string]int{}
		for _, doc := range objects(t, c) {
			object, kind, err := strict.Decode(doc, nil, nil)
			if err != nil {
				t.Errorf("%v in\n%s", err, doc)
				continue
			}
			kinds[kind.Kind]++
			if repo, ok := object.(*sourcev1.GitRepository); ok && repo.Spec.URL != c.GitURL() {
				t.Errorf("Flux fetches from %s; want %s", repo.Spec.URL, c.GitURL())
			}
		}
		want := map[string]int{
			"GitRepository": 1, "Kustomization": 1, "Namespace": 1, "ServiceAccount": 1, "ClusterRoleBinding": 1,
			"StorageClass": 1, "PersistentVolume": 1,
		}
		if c.Simulate {
			want["Node"] = 1
		} else {
			for _, kind := range []string{"ServiceAccount", "ClusterRoleBinding", "ClusterRole", "ConfigMap", "Deployment", "Service"} {
				want[kind]++
			}
		}
		if !reflect.DeepEqual(kinds, want) {
			t.Errorf("objects: %v; want %v", kinds, want)
		}
		crds, err := filepath.Glob(filepath.Join(c.Dir, "manifests", "crds", "*"))
		if err != nil || len(crds) == 0 {
			t.Errorf("CRDs: %v, %v", crds, err)
		}
	})
}

func TestNodeConfiguration(t *testing.T) {
	t.Parallel()
	c, config := newCluster(t, "checkout", false)
	node := func(name ...string) []byte {
		return read(t, filepath.Join(append([]string{c.Dir, "node"}, name...)...))
	}

	var kubelet kubeletconfig.KubeletConfiguration
	if err := yaml.UnmarshalStrict(node("kubelet.yaml"), &kubelet); err != nil {
		t.Fatal(err)
	}
	for what, pair := range map[string][2]string{
		"certificate authority": {kubelet.Authentication.X509.ClientCAFile, filepath.Join(c.Dir, "pki", "ca.crt")},
		"cgroup":                {kubelet.CgroupRoot, "/" + config.Sandbox.Cgroup},
		"runtime":               {kubelet.ContainerRuntimeEndpoint, "unix:///run/containerd/containerd.sock"},
		"resolv.conf":           {*kubelet.ResolverConfig, filepath.Join(c.Dir, "node", "resolv.conf")},
		"address":               {kubelet.Address, "10.250.0.10"},
		"DNS":                   {strings.Join(kubelet.ClusterDNS, " "), dnsService},
	} {
		if pair[0] != pair[1] {
			t.Errorf("the kubelet's %s is %q; want %q", what, pair[0], pair[1])
		}
	}

	var proxy struct {
		Kind             string
		ClientConnection struct{ Kubeconfig string }
		ClusterCIDR      string
		HostnameOverride string
		Mode             string
	}
	if err := yaml.Unmarshal(node("proxy.yaml"), &proxy); err != nil {
		t.Fatal(err)
	}
	if proxy.Kind != "KubeProxyConfiguration" || proxy.HostnameOverride != NodeName || proxy.ClusterCIDR != clusterCIDR || len(read(t, proxy.ClientConnection.Kubeconfig)) == 0 {
		t.Errorf("kube-proxy: %+v", proxy)
	}

	var pods struct {
		Plugins []struct {
			Type string
			Ipam struct{ Ranges [][]struct{ Subnet string } }
		}
	}
	if err := json.Unmarshal(node("cni", "pods.conflist"), &pods); err != nil {
		t.Fatal(err)
	}
	if len(pods.Plugins) != 1 || pods.Plugins[0].Type != "ptp" || pods.Plugins[0].Ipam.Ranges[0][0].Subnet != podCIDR {
		t.Errorf("the pods' network is %+v", pods)
	}
	_, all, err := net.ParseCIDR(clusterCIDR)
	if err != nil {
		t.Fatal(err)
	}
	if address, _, err := net.ParseCIDR(podCIDR); err != nil || !all.Contains(address) {
		t.Errorf("%s is not in %s, %v", podCIDR, clusterCIDR, err)
	}

	// No parser of TOML is among the modules of this repository; each line has one of a few shapes.
	line := regexp.MustCompile(`^\s*(#.*|\[[a-z0-9.'_]+\]|\[host\."http://[0-9.:]+"\]|\w+ = ("[^"]*"|\d+|true|false|\["[^"]*"(, "[^"]*")*\]))?$`)
	for _, file := range [][]string{{"containerd.toml"}, {"registries", "_default", "hosts.toml"}} {
		for _, l := range strings.Split(string(node(file...)), "\n") {
			if !line.MatchString(l) {
				t.Errorf("%v: %q is no TOML", file, l)
			}
		}
	}
	toml := string(node("containerd.toml"))
	for _, want := range []string{
		`config_path = "` + filepath.Join(c.Dir, "node", "registries") + `"`, `sandbox = "` + PauseImage + `"`,
		`conf_dir = "` + filepath.Join(c.Dir, "node", "cni") + `"`, `bin_dirs = ["/programs/node"]`, `BinaryName = "/usr/sbin/runc"`,
		`address = "/run/containerd/containerd.sock"`,
	} {
		if !strings.Contains(toml, want) {
			t.Errorf("containerd's configuration lacks %s", want)
		}
	}
	if hosts := string(node("registries", "_default", "hosts.toml")); !strings.Contains(hosts, `[host."http://`+config.Registry.Addr+`"]`) {
		t.Errorf("images come from\n%s", hosts)
	}
	if got := spec(t, config, "containerd").Ready.Socket; got != "/run/containerd/containerd.sock" {
		t.Errorf("containerd is ready when %s accepts", got)
	}
	if info, err := os.Stat(config.Blobs); err != nil || !info.IsDir() {
		t.Errorf("the registry's folder: %v", err)
	}
}

func certificate(t *testing.T, c *Cluster, name string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.pki(name+".crt"), c.pki(name+".key")) // checks that they belong together
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, c *Cluster, _ machine.Config) {
		roots := x509.NewCertPool()
		roots.AddCert(certificate(t, c, "ca"))
		server, client := certificate(t, c, "apiserver"), certificate(t, c, "apiserver-kubelet-client")
		names := []string{"localhost", "127.0.0.1", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "10.96.0.1", c.host()}
		for _, name := range names {
			if _, err := server.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
				t.Errorf("as %s: %v", name, err)
			}
		}
		for _, name := range []string{"example.com", "10.96.0.2"} {
			if _, err := server.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err == nil {
				t.Errorf("the API server may call itself %s", name)
			}
		}
		asClient := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		if _, err := client.Verify(asClient); err != nil {
			t.Errorf("the API server as a client: %v", err)
		}
		if _, err := server.Verify(asClient); err == nil {
			t.Error("the API server's certificate is good for a client")
		}
		if !slices.Equal(client.Subject.Organization, []string{"system:masters"}) {
			t.Errorf("to the kubelet, the API server is in %v", client.Subject.Organization)
		}
		if server.SerialNumber.Cmp(client.SerialNumber) == 0 {
			t.Error("two certificates with one serial number")
		}
		// The key of service accounts fits its public part.
		private, _ := pem.Decode(read(t, c.pki("service-account.key")))
		public, _ := pem.Decode(read(t, c.pki("service-account.pub")))
		key, err := x509.ParsePKCS8PrivateKey(private.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(key.(crypto.Signer).Public())
		if err != nil || !bytes.Equal(der, public.Bytes) {
			t.Errorf("service-account.pub is not of service-account.key: %v", err)
		}
	})
}

func TestSecretsAreTheOwners(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, c *Cluster, _ machine.Config) {
		err := filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			data := read(t, path)
			if (bytes.Contains(data, []byte("PRIVATE KEY")) || bytes.Contains(data, []byte("token: ")) || d.Name() == "tokens.csv") && info.Mode().Perm() != 0o600 {
				t.Errorf("%s has the mode %s", path, info.Mode())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(c.pki("")); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("pki: %v, %v", info.Mode(), err)
		}
	})
}

type user struct{ name, groups string }

// tokens returns the users of tokens.csv by their token.
func tokens(t *testing.T, c *Cluster) map[string]user {
	t.Helper()
	rows, err := csv.NewReader(bytes.NewReader(read(t, c.pki("tokens.csv")))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]user{}
	for _, row := range rows {
		if len(row) != 4 || len(row[0]) < 26 {
			t.Errorf("the row %q", row)
			continue
		}
		all[row[0]] = user{row[1], row[3]}
	}
	if len(all) != len(identities) {
		t.Errorf("%d different tokens; want %d", len(all), len(identities))
	}
	return all
}

func load(t *testing.T, path string) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestKubeconfigs(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, c *Cluster, _ machine.Config) {
		users := tokens(t, c)
		for identity, want := range map[string]user{
			"admin":              {"admin", "system:masters"},
			"flux":               {"flux-controllers", "system:masters"},
			"controller-manager": {"system:kube-controller-manager", ""},
			"scheduler":          {"system:kube-scheduler", ""},
			"proxy":              {"system:kube-proxy", ""},
			"kubelet":            {"system:node:" + NodeName, "system:nodes"},
		} {
			config := load(t, c.kubeconfig(identity))
			if got := users[config.BearerToken]; got != want {
				t.Errorf("%s is %+v; want %+v", identity, got, want)
			}
			if want := "https://" + c.addr(c.ports.API); config.Host != want {
				t.Errorf("%s asks %s; want %s", identity, config.Host, want)
			}
		}
	})
}

// The administrator's kubeconfig gets through TLS to a server that has the API server's certificate.
func TestAdministratorsKubeconfig(t *testing.T) {
	t.Parallel()
	c, _ := newCluster(t, "checkout", false)
	pair, err := tls.LoadX509KeyPair(c.pki("apiserver.crt"), c.pki("apiserver.key"))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 1)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	}))
	var current atomic.Pointer[tls.Certificate]
	current.Store(&pair)
	srv.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*current.Load()}}, nil
	}}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // a handshake is meant to fail
	srv.StartTLS()
	defer srv.Close()
	// Once more, now that it is known where people ask.
	if err := os.RemoveAll(c.Dir); err != nil {
		t.Fatal(err)
	}
	again := *c
	again.KubeAddress = srv.Listener.Addr().String()
	if _, err := again.Config(); err != nil {
		t.Fatal(err)
	}
	admin := load(t, again.Kubeconfig())
	if admin.Host != srv.URL {
		t.Errorf("it asks %s; want %s", admin.Host, srv.URL)
	}
	// Each start has another authority: the old server is none of this cluster's.
	if client, err := rest.HTTPClientFor(admin); err != nil {
		t.Fatal(err)
	} else if resp, err := client.Get(srv.URL); err == nil {
		resp.Body.Close()
		t.Error("the certificate of the last start is accepted")
	}
	fresh, err := tls.LoadX509KeyPair(again.pki("apiserver.crt"), again.pki("apiserver.key"))
	if err != nil {
		t.Fatal(err)
	}
	current.Store(&fresh)
	client, err := rest.HTTPClientFor(admin)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	if got := tokens(t, &again)[<-asked]; got.groups != "system:masters" {
		t.Errorf("it says it is %+v", got)
	}
}

func TestEveryStartHasItsOwnSecrets(t *testing.T) {
	t.Parallel()
	first, _ := newCluster(t, "checkout", true)
	second, _ := newCluster(t, "checkout", true)
	old := tokens(t, first)
	for token := range tokens(t, second) {
		if _, ok := old[token]; ok {
			t.Errorf("the token %s is used twice", token)
		}
	}
	for _, name := range []string{"ca.key", "apiserver.key", "service-account.key"} {
		if bytes.Equal(read(t, first.pki(name)), read(t, second.pki(name))) {
			t.Errorf("%s is used twice", name)
		}
	}
}

// A checkout may lie anywhere.
func TestAnyPath(t *testing.T) {
	t.Parallel()
	c, _ := newCluster(t, `Ann's checkout: #2`, false)
	if got := load(t, c.Kubeconfig()).CAFile; got != c.pki("ca.crt") {
		t.Errorf("the kubeconfig reads %s; want %s", got, c.pki("ca.crt"))
	}
	var kubelet kubeletconfig.KubeletConfiguration
	if err := yaml.UnmarshalStrict(read(t, filepath.Join(c.Dir, "node", "kubelet.yaml")), &kubelet); err != nil {
		t.Error(err)
	} else if got := kubelet.Authentication.X509.ClientCAFile; got != c.pki("ca.crt") {
		t.Errorf("the kubelet reads %s", got)
	}
	storage := false
	for _, doc := range objects(t, c) {
		var v struct {
			Kind string
			Spec struct{ HostPath struct{ Path string } }
		}
		if err := yaml.Unmarshal(doc, &v); err != nil {
			t.Errorf("%v in\n%s", err, doc)
			continue
		}
		if v.Kind == "PersistentVolume" {
			storage = true
			if v.Spec.HostPath.Path != c.Storage {
				t.Errorf("the volume is %s; want %s", v.Spec.HostPath.Path, c.Storage)
			}
		}
	}
	if !storage {
		t.Error("no volume")
	}
}
