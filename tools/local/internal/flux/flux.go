// Package flux asks the local cluster what Flux does, and tells Flux that there is a new commit.
package flux

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fluxcd/pkg/apis/meta"
)

// Namespace is where every object of Flux lives: under the multi-tenancy of the AKS extension nothing may refer to
// another namespace.
const Namespace = "flux-system"

// Source is the name of the one GitRepository.
const Source = "flux-system"

var (
	gitRepositories = schema.GroupVersionResource{Group: "source.toolkit.fluxcd.io", Version: "v1", Resource: "gitrepositories"}
	kustomizations  = schema.GroupVersionResource{Group: "kustomize.toolkit.fluxcd.io", Version: "v1", Resource: "kustomizations"}
)

// Client talks to a cluster with Flux in it.
type Client struct {
	api    dynamic.Interface
	mapper *restmapper.DeferredDiscoveryRESTMapper // from kinds to resources
}

// New returns a client for the cluster of a kubeconfig file.
func New(kubeconfig string) (*Client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.Timeout = 10 * time.Second
	config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } // it is on this machine
	config.QPS = -1                                                          // it is our own API server, and we ask little
	api, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	kinds, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Client{api, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(kinds))}, nil
}

// Object is the state of a GitRepository or Kustomization.
type Object struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Revision string `json:"revision"` // last fetched or applied: branch@sha1:commit; empty before the first
	Ready    string `json:"ready"`    // True, False or Unknown
	Reason   string `json:"reason"`
	Message  string `json:"message"`

	doing     string           // what is being done, in the controller's words
	inventory []inventoryEntry // what a Kustomization manages
}

// Commit is the commit of the object's revision.
func (o Object) Commit() string {
	_, commit, _ := strings.Cut(o.Revision, "@sha1:")
	return commit
}

// Objects returns the source and the Kustomizations, in this order, the latter by name.
func (c *Client) Objects(ctx context.Context) ([]Object, error) {
	var all []Object
	for _, kind := range []schema.GroupVersionResource{gitRepositories, kustomizations} {
		list, err := c.api.Resource(kind).Namespace(Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", kind.Resource, err)
		}
		start := len(all)
		for _, item := range list.Items {
			o, err := object(&item)
			if err != nil {
				return nil, err
			}
			all = append(all, o)
		}
		slices.SortFunc(all[start:], func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
	}
	return all, nil
}

func object(u *unstructured.Unstructured) (Object, error) {
	var status struct {
		Status struct {
			Conditions          []metav1.Condition `json:"conditions"`
			LastAppliedRevision string             `json:"lastAppliedRevision"`
			Artifact            *meta.Artifact     `json:"artifact"`
			Inventory           struct {
				Entries []inventoryEntry `json:"entries"`
			} `json:"inventory"`
		} `json:"status"`
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &status); err != nil {
		return Object{}, fmt.Errorf("reading %s %s: %w", u.GetKind(), u.GetName(), err)
	}
	o := Object{
		Kind: u.GetKind(), Name: u.GetName(), Revision: status.Status.LastAppliedRevision, Ready: "Unknown",
		inventory: status.Status.Inventory.Entries,
	}
	if a := status.Status.Artifact; a != nil {
		o.Revision = a.Revision
	}
	for _, condition := range status.Status.Conditions {
		switch condition.Type {
		case meta.ReadyCondition:
			o.Ready, o.Reason, o.Message = string(condition.Status), condition.Reason, condition.Message
		case meta.ReconcilingCondition:
			o.doing = condition.Message
		}
	}
	return o, nil
}

// Poke makes source-controller fetch now rather than at its next interval, as a webhook Receiver does it.
func (c *Client) Poke(ctx context.Context) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{
		meta.ReconcileRequestAnnotation: time.Now().Format(time.RFC3339Nano),
	}}})
	if err != nil {
		return err
	}
	_, err = c.api.Resource(gitRepositories).Namespace(Namespace).
		Patch(ctx, Source, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "tools-local"})
	if err != nil {
		return fmt.Errorf("asking Flux to fetch: %w", err)
	}
	return nil
}
