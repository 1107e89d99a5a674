package flux

import (
	"context"
	"fmt"
	"strings"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Rollout tells how far a commit is: nothing when it is rolled out, and otherwise what it waits for, for people.
//
// A commit is rolled out when every Kustomization has applied it and every object that they manage is as its spec says
// (a Deployment: all pods are new and available). That is what Flux's own Ready says too, but Flux looks at the objects
// of a Kustomization with `wait` only every five seconds (kustomize-controller, checkHealth); the library that computes
// an object's state is the same.
func (c *Client) Rollout(ctx context.Context, commit string) (waiting []string, err error) {
	objects, err := c.Objects(ctx)
	if err != nil {
		return nil, err
	}
	kustomizations := 0
	var entries []inventoryEntry
	for _, o := range objects {
		switch {
		case o.Kind == "GitRepository" && o.Commit() != commit:
			waiting = append(waiting, "GitRepository "+o.Name+": not fetched")
		case o.Kind != "Kustomization":
		case o.applied(commit):
			entries = append(entries, o.inventory...)
		case o.Ready == "False":
			waiting = append(waiting, "Kustomization "+o.Name+": "+o.Message)
		default:
			waiting = append(waiting, "Kustomization "+o.Name+": not applied")
		}
		if o.Kind == "Kustomization" {
			kustomizations++
		}
	}
	if kustomizations < 2 {
		// The one that brings the others is not enough.
		waiting = append(waiting, "no other Kustomization yet")
	}
	if len(waiting) > 0 {
		return waiting, nil
	}
	for _, e := range entries {
		why, err := c.current(ctx, e)
		if err != nil {
			return nil, err
		}
		if why != "" {
			waiting = append(waiting, why)
		}
	}
	return waiting, nil
}

// applied reports whether every object of that commit has been applied; they need not be ready.
func (o Object) applied(commit string) bool {
	if strings.HasPrefix(o.doing, "Running health checks for revision ") && strings.Contains(o.doing, "@sha1:"+commit) {
		return true // said when all is applied (kustomize-controller, checkHealth)
	}
	return o.Ready == "True" && o.Commit() == commit
}

// inventoryEntry names an object that a Kustomization manages: namespace_name_group_kind, and the version.
type inventoryEntry struct {
	ID      string `json:"id"`
	Version string `json:"v"`
}

// parse takes the ID apart. A colon in a name, which only RBAC objects may have, is written as two underscores
// (fluxcd/cli-utils, pkg/object).
func (e inventoryEntry) parse() (namespace, name string, kind schema.GroupKind, err error) {
	namespace, rest, ok := strings.Cut(e.ID, "_")
	lastKind := strings.LastIndexByte(rest, '_')
	if !ok || lastKind < 0 {
		return "", "", kind, fmt.Errorf("inventory entry %q: want namespace_name_group_kind", e.ID)
	}
	rest, kind.Kind = rest[:lastKind], rest[lastKind+1:]
	lastGroup := strings.LastIndexByte(rest, '_')
	if lastGroup < 0 {
		return "", "", kind, fmt.Errorf("inventory entry %q: want namespace_name_group_kind", e.ID)
	}
	name, kind.Group = rest[:lastGroup], rest[lastGroup+1:]
	return namespace, strings.ReplaceAll(name, "__", ":"), kind, nil
}

// current returns nothing if the object is as its spec says, and otherwise what is missing.
func (c *Client) current(ctx context.Context, e inventoryEntry) (waiting string, err error) {
	namespace, name, kind, err := e.parse()
	if err != nil {
		return "", err
	}
	if kind.Group == "kustomize.toolkit.fluxcd.io" {
		return "", nil // has been looked at by itself
	}
	mapping, err := c.mapper.RESTMapping(kind, e.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset() // its CRD may be new
		return fmt.Sprintf("%s %s: the API server does not know the kind yet", kind.Kind, name), nil
	} else if err != nil {
		return "", fmt.Errorf("looking for %s: %w", kind, err)
	}
	u, err := c.api.Resource(mapping.Resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Sprintf("%s %s: not there", kind.Kind, name), nil
	} else if err != nil {
		return "", fmt.Errorf("getting %s %s: %w", kind.Kind, name, err)
	}
	result, err := status.Compute(u)
	if err != nil {
		return "", fmt.Errorf("judging %s %s: %w", kind.Kind, name, err)
	}
	if result.Status == status.CurrentStatus {
		return "", nil
	}
	return fmt.Sprintf("%s %s: %s", kind.Kind, name, result.Message), nil
}
