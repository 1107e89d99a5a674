package flux

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

type body map[string]any

// cluster is an API server that has objects by the path of their URL.
type cluster struct {
	mu      sync.Mutex
	objects map[string]body
	patches []string
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Method == http.MethodPatch {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err)
		}
		c.patches = append(c.patches, r.URL.Path+" "+r.Header.Get("Content-Type")+" "+string(data))
	}
	o, ok := c.objects[r.URL.Path]
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		o = body{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
	}
	if err := json.NewEncoder(w).Encode(o); err != nil {
		panic(err)
	}
}

func (c *cluster) set(path string, o body) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o == nil {
		delete(c.objects, path)
		return
	}
	c.objects[path] = o
}

const (
	sourcesPath = "/apis/source.toolkit.fluxcd.io/v1/namespaces/flux-system/gitrepositories"
	appliedPath = "/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations"
	deployPath  = "/apis/apps/v1/namespaces/apps/deployments/worker"
)

func list(kind, version string, items ...body) body {
	for _, i := range items {
		i["kind"], i["apiVersion"] = kind, version
	}
	return body{"kind": kind + "List", "apiVersion": version, "items": items}
}

func sources(items ...body) body {
	return list("GitRepository", "source.toolkit.fluxcd.io/v1", items...)
}

func kustomizationsOf(items ...body) body {
	return list("Kustomization", "kustomize.toolkit.fluxcd.io/v1", items...)
}

// item is an object of Flux with conditions type=status:message.
func item(name string, status body, conditions ...string) body {
	var all []body
	for _, c := range conditions {
		kind, rest, _ := strings.Cut(c, "=")
		value, message, _ := strings.Cut(rest, ":")
		all = append(all, body{"type": kind, "status": value, "reason": "Reason", "message": message, "lastTransitionTime": "2030-01-01T00:00:00Z"})
	}
	if status == nil {
		status = body{}
	}
	status["conditions"] = all
	return body{"metadata": body{"name": name, "namespace": "flux-system"}, "status": status}
}

func artifact(commit string) body {
	return body{"artifact": body{"revision": "main@sha1:" + commit, "path": "p", "url": "u", "digest": "sha256:x", "lastUpdateTime": "2030-01-01T00:00:00Z"}}
}

func applied(commit string, ids ...string) body {
	var entries []body
	for _, id := range ids {
		entries = append(entries, body{"id": id, "v": "v1"})
	}
	return body{"lastAppliedRevision": "main@sha1:" + commit, "inventory": body{"entries": entries}}
}

func newClient(t *testing.T) (*Client, *cluster) {
	t.Helper()
	c := &cluster{objects: map[string]body{
		"/api":  {"kind": "APIVersions", "versions": []string{"v1"}},
		"/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []body{{"name": "apps", "versions": []body{{"groupVersion": "apps/v1", "version": "v1"}}, "preferredVersion": body{"groupVersion": "apps/v1", "version": "v1"}}, {"name": "rbac.authorization.k8s.io", "versions": []body{{"groupVersion": "rbac.authorization.k8s.io/v1", "version": "v1"}}}}},
		"/api/v1": {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": []body{
			{"name": "namespaces", "singularName": "namespace", "namespaced": false, "kind": "Namespace", "verbs": []string{"get"}},
		}},
		"/apis/apps/v1": {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "apps/v1", "resources": []body{
			{"name": "deployments", "singularName": "deployment", "namespaced": true, "kind": "Deployment", "verbs": []string{"get"}},
		}},
		"/apis/rbac.authorization.k8s.io/v1": {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "rbac.authorization.k8s.io/v1", "resources": []body{
			{"name": "clusterroles", "singularName": "clusterrole", "namespaced": false, "kind": "ClusterRole", "verbs": []string{"get"}},
		}},
		"/api/v1/namespaces/apps": {"kind": "Namespace", "apiVersion": "v1", "metadata": body{"name": "apps"}, "status": body{"phase": "Active"}},
		sourcesPath:               sources(),
		appliedPath:               kustomizationsOf(),
	}}
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	config := body{
		"apiVersion": "v1", "kind": "Config", "current-context": "x",
		"clusters": []body{{"name": "x", "cluster": body{"server": srv.URL}}},
		"contexts": []body{{"name": "x", "context": body{"cluster": "x"}}},
	}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := New(file)
	if err != nil {
		t.Fatal(err)
	}
	return client, c
}

func TestObjects(t *testing.T) {
	t.Parallel()
	client, c := newClient(t)
	c.set(sourcesPath, sources(item("flux-system", artifact("abc"), "Ready=True:stored", "ArtifactInStorage=True:x")))
	c.set(appliedPath, kustomizationsOf(
		item("second", nil),
		item("first", applied("def"), "Reconciling=True:at work", "Ready=False:no such file"),
	))
	got, err := client.Objects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		got[i].doing, got[i].inventory = "", nil
	}
	want := []Object{
		{Kind: "GitRepository", Name: "flux-system", Revision: "main@sha1:abc", Ready: "True", Reason: "Reason", Message: "stored"},
		{Kind: "Kustomization", Name: "first", Revision: "main@sha1:def", Ready: "False", Reason: "Reason", Message: "no such file"},
		{Kind: "Kustomization", Name: "second", Ready: "Unknown"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if got[0].Commit() != "abc" || got[2].Commit() != "" {
		t.Errorf("commits %q and %q", got[0].Commit(), got[2].Commit())
	}
	c.set(appliedPath, nil)
	if _, err := client.Objects(t.Context()); err == nil || !strings.Contains(err.Error(), "kustomizations") {
		t.Errorf("without the CRD: %v; want an error that names it", err)
	}
}

func TestPoke(t *testing.T) {
	t.Parallel()
	client, c := newClient(t)
	if err := client.Poke(t.Context()); err == nil || !strings.Contains(err.Error(), "asking Flux to fetch") {
		t.Errorf("nobody there: %v", err)
	}
	c.set(sourcesPath+"/flux-system", sources(item("flux-system", nil)))
	if err := client.Poke(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(c.patches) != 2 || !strings.HasPrefix(c.patches[1], sourcesPath+"/flux-system application/merge-patch+json ") || !strings.Contains(c.patches[1], `"reconcile.fluxcd.io/requestedAt":"20`) {
		t.Errorf("patches %q", c.patches)
	}
	if c.patches[0] == c.patches[1] {
		t.Error("two requests that look the same: the second one is none")
	}
}

func deployment(generation, observed, replicas, available int) body {
	return body{
		"kind": "Deployment", "apiVersion": "apps/v1", "metadata": body{"name": "worker", "namespace": "apps", "generation": generation},
		"spec": body{"replicas": replicas},
		"status": body{
			"observedGeneration": observed, "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": available, "availableReplicas": available,
			"conditions": []body{{"type": "Available", "status": "True"}, {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}},
		},
	}
}

// A commit is rolled out when all of Flux has it and every object is as it should be; until then the answer says why not.
func TestRollout(t *testing.T) {
	t.Parallel()
	const ready = "Ready=True:Applied revision"
	cluster0 := func(commit string) body { return item("flux-system-cluster", applied(commit), ready) }
	for _, test := range []struct {
		name string
		set  map[string]body
		want []string // parts of each answer; none: rolled out
	}{
		{"all there", nil, nil},
		{"nothing yet", map[string]body{sourcesPath: sources(), appliedPath: kustomizationsOf()}, []string{"no other Kustomization"}},
		{"not fetched", map[string]body{sourcesPath: sources(item("flux-system", artifact("old"), ready))}, []string{"not fetched"}},
		{"the first Kustomization alone", map[string]body{appliedPath: kustomizationsOf(cluster0("new"))}, []string{"no other Kustomization"}},
		{"an old one", map[string]body{appliedPath: kustomizationsOf(cluster0("new"), item("apps", applied("old"), ready), item("infra", applied("new"), ready))}, []string{"Kustomization apps: not applied"}},
		{"one that fails", map[string]body{appliedPath: kustomizationsOf(cluster0("new"), item("apps", applied("old"), "Ready=False:no such file"), item("infra", applied("new"), ready))}, []string{"Kustomization apps: no such file"}},
		{
			"one whose objects are looked at",
			map[string]body{appliedPath: kustomizationsOf(cluster0("new"), item("apps", applied("old", "apps_worker_apps_Deployment"), "Ready=Unknown:x", "Reconciling=True:Running health checks for revision main@sha1:new with a timeout of 1m"))},
			nil,
		},
		{
			"one whose old objects are looked at",
			map[string]body{appliedPath: kustomizationsOf(cluster0("new"), item("apps", applied("old"), "Ready=Unknown:x", "Reconciling=True:Running health checks for revision main@sha1:older with a timeout of 1m"))},
			[]string{"Kustomization apps: not applied"},
		},
		{"too few pods", map[string]body{deployPath: deployment(1, 1, 2, 1)}, []string{"Deployment worker: "}},
		{"a change that the controller has not seen", map[string]body{deployPath: deployment(2, 1, 2, 2)}, []string{"Deployment worker: "}},
		{"a missing object", map[string]body{deployPath: nil}, []string{"Deployment worker: not there"}},
		{
			"a kind that is not known",
			map[string]body{appliedPath: kustomizationsOf(cluster0("new"), item("apps", applied("new", "apps_x_example.com_Thing"), ready))},
			[]string{"Thing x: the API server does not know the kind yet"},
		},
		{
			"a name with a colon, as RBAC has them",
			map[string]body{
				appliedPath: kustomizationsOf(cluster0("new"), item("apps", applied("new", "_system__reader_rbac.authorization.k8s.io_ClusterRole"), ready)),
				"/apis/rbac.authorization.k8s.io/v1/clusterroles/system:reader": {"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": body{"name": "system:reader"}},
			},
			nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			client, c := newClient(t)
			c.set(sourcesPath, sources(item("flux-system", artifact("new"), ready)))
			c.set(appliedPath, kustomizationsOf(cluster0("new"), item("apps", applied("new", "apps_worker_apps_Deployment", "_apps__Namespace"), ready)))
			c.set(deployPath, deployment(1, 1, 2, 2))
			for path, o := range test.set {
				c.set(path, o)
			}
			got, err := client.Rollout(t.Context(), "new")
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(test.want) {
				t.Fatalf("waits for %q; want %q", got, test.want)
			}
			for _, want := range test.want {
				if !slices.ContainsFunc(got, func(g string) bool { return strings.Contains(g, want) }) {
					t.Errorf("waits for %q; want %q", got, want)
				}
			}
		})
	}
}
