// Package apicheck judges an object of a built-in kind with the API server's own code (k8s.io/kubernetes).
//
// An object goes the way of a request that creates it: strict decoding into the type of its version, the conversion to
// typed lists that server-side apply does, defaults, the internal version, and the strategy of its kind, which validates
// it and warns about it. What is not run needs a cluster: authorization, admission, webhooks, quotas.
//
// Server-side apply on a fresh object and a create differ in nothing but the typed conversion, so the findings are the
// ones that Flux meets when it applies the repository to an empty cluster. Two refusals of Flux come on top (see Scope).
//
// The target is the Kubernetes release that the module k8s.io/kubernetes in go.mod has.
package apicheck

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/applyconfigurations"
	componentversion "k8s.io/component-base/version"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"aks-platform/tools/validate/internal/check"
)

// The checks of this package.
var (
	UnknownField = &check.Check{
		ID:       "API-001",
		Title:    "Unknown field",
		Severity: check.Error,
		Why:      "Flux drops a field that the type does not have before it applies the object, without a word: what the field was meant to do does not happen. For RBAC roles and custom resources the API server refuses the object.",
		Fix:      "Correct the name or the indentation of the field, or remove it.",
		Example: `kind: Deployment
spec:
  replica: 2   # the field is called replicas`,
	}
	WrongType = &check.Check{
		ID:       "API-002",
		Title:    "Value has the wrong type",
		Severity: check.Error,
		Why:      "The API server cannot decode the object and refuses it. Nothing of the Kustomization that comes after it is applied.",
		Fix:      "Write the value in the type that the message names; quotes make a string of a number.",
		Example: `kind: Deployment
spec:
  replicas: "2"   # a number`,
	}
	Invalid = &check.Check{
		ID:       "API-003",
		Title:    "The API server refuses the object",
		Severity: check.Error,
		Why:      "This is the API server's own validation. Flux stops at the object and reports the same message.",
		Fix:      "Correct the field as the message says.",
		Example: `kind: Deployment
spec:
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: web}}   # the selector does not select these pods`,
	}
	Warned = &check.Check{
		ID:       "API-004",
		Title:    "The API server warns about the object",
		Severity: check.Warning,
		Why:      "The API server accepts the object, and says that it does not do what it seems to. Flux shows no warnings, so nobody would ever read it.",
		Fix:      "Change the field so that the warning goes away.",
		Example: `resources:
  requests: {memory: 100m}   # a tenth of a byte; 100Mi was meant`,
	}
	DuplicateKey = &check.Check{
		ID:       "API-005",
		Title:    "List has an element twice",
		Severity: check.Error,
		Why:      "Server-side apply merges such a list by a key, for example the name of an environment variable. A second element with the same key makes it refuse the object.",
		Fix:      "Remove one of the elements.",
		Example: `env:
  - {name: LOG_LEVEL, value: info}
  - {name: LOG_LEVEL, value: debug}`,
	}
	Removed = &check.Check{
		ID:       "API-006",
		Title:    "API version is not served",
		Severity: check.Error,
		Why:      "The cluster's Kubernetes release does not serve this version, so the object cannot be applied.",
		Fix:      "Use the version that replaced it; its fields may have other names.",
		Example: `apiVersion: policy/v1beta1   # removed in 1.25, use policy/v1
kind: PodDisruptionBudget`,
	}
	UnknownKind = &check.Check{
		ID:       "API-007",
		Title:    "Unknown kind",
		Severity: check.Error,
		Why:      "Neither Kubernetes nor Flux has this kind, and no CustomResourceDefinition in the cluster's manifests brings it. Flux stops with \"no matches for kind\".",
		Fix:      "Correct apiVersion and kind, or add the CustomResourceDefinition to the manifests of the cluster.",
		Example: `apiVersion: apps/v1
kind: Deploymnet`,
	}
	Scope = &check.Check{
		ID:       "API-009",
		Title:    "Namespace does not fit the kind",
		Severity: check.Error,
		Why:      "Flux puts objects in no namespace by itself: without one it stops with \"namespace not specified\". On an object without namespaces the field has no effect, and shows that something else was meant.",
		Fix:      "Set `namespace` in the kustomization file or targetNamespace in the Flux Kustomization, or remove the field.",
		Example: `kind: ConfigMap
metadata:
  name: settings   # no namespace, and no kustomization file that sets one`,
	}
	Deprecated = &check.Check{
		ID:       "API-010",
		Title:    "API version is deprecated",
		Severity: check.Warning,
		Why:      "A later release stops serving the version. The upgrade of the cluster then breaks the Kustomization.",
		Fix:      "Use the version that replaces it.",
		Example: `apiVersion: source.toolkit.fluxcd.io/v1beta2   # use v1
kind: GitRepository`,
	}
)

// Checks lists what this package finds.
var Checks = []*check.Check{UnknownField, WrongType, Invalid, Warned, DuplicateKey, Removed, UnknownKind, Scope, Deprecated}

// Known says whether a kind is built in, in any version.
func Known(kind schema.GroupKind) bool {
	return len(legacyscheme.Scheme.VersionsForGroupKind(kind)) > 0
}

// Namespaced says whether the objects of a built-in kind live in namespaces.
func Namespaced(kind schema.GroupKind) bool {
	s, ok := strategies[kind]
	return ok && s.NamespaceScoped()
}

// serializer decodes JSON; a document that has an unknown field or a key twice is an error.
var serializer = sync.OnceValue(func() runtime.Serializer {
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, legacyscheme.Scheme, legacyscheme.Scheme, json.SerializerOptions{Strict: true})
})

// typeConverter knows the list keys of every type. It takes most of a tenth of a second to parse.
var typeConverter = sync.OnceValue(func() managedfields.TypeConverter {
	return applyconfigurations.NewTypeConverter(legacyscheme.Scheme)
})

// Check judges an object of a built-in kind, given as JSON.
func Check(data []byte) []check.Finding {
	object, gvk, err := serializer().Decode(data, nil, nil)
	var findings []check.Finding
	if strict, ok := runtime.AsStrictDecodingError(err); ok {
		for _, e := range strict.Errors() {
			findings = append(findings, strictFinding(e))
		}
	} else if err != nil {
		return []check.Finding{decodeFinding(err, gvk)}
	}
	if f := served(object, *gvk); f != nil {
		return append(findings, *f)
	}
	findings = append(findings, deprecation(object, *gvk)...)
	strategy, ok := strategies[gvk.GroupKind()]
	if !ok {
		return append(findings, check.Finding{Check: UnknownKind, Field: "kind", Message: fmt.Sprintf("%s is not a kind that can be applied", gvk.Kind)})
	}
	legacyscheme.Scheme.Default(object)
	findings = append(findings, create(strategy, object, *gvk)...)
	return findings
}

// create runs the part of the way that needs a sound object.
func create(strategy strategy, object runtime.Object, gvk schema.GroupVersionKind) []check.Finding {
	var findings []check.Finding
	internal, err := legacyscheme.Scheme.UnsafeConvertToVersion(object, runtime.InternalGroupVersioner)
	if err != nil {
		return []check.Finding{{Check: Invalid, Message: err.Error()}}
	}
	meta, ok := internal.(metav1.Object)
	if !ok {
		return []check.Finding{{Check: UnknownKind, Field: "kind", Message: fmt.Sprintf("%s is not a kind that can be applied", gvk.Kind)}}
	}
	namespace := ""
	if strategy.NamespaceScoped() {
		// Whether there is a namespace is Scope's question; the validation below is not to be distracted by it.
		if meta.GetNamespace() == "" {
			meta.SetNamespace(metav1.NamespaceDefault)
		}
		namespace = meta.GetNamespace()
	}
	duplicates := listKeys(object)
	findings = append(findings, duplicates...)

	ctx := request.WithNamespace(context.Background(), namespace)
	ctx = request.WithRequestInfo(ctx, &request.RequestInfo{
		IsResourceRequest: true, Verb: "create",
		APIGroup: gvk.Group, APIVersion: gvk.Version, Namespace: namespace, Name: meta.GetName(),
	})
	rest.FillObjectMetaSystemFields(meta)
	err = rest.BeforeCreate(strategy, ctx, internal)
	if status := (*apierrors.StatusError)(nil); errors.As(err, &status) && status.ErrStatus.Details != nil {
		for _, c := range status.ErrStatus.Details.Causes {
			findings = append(findings, check.Finding{Check: Invalid, Field: c.Field, Message: c.Message})
		}
	} else if err != nil {
		findings = append(findings, check.Finding{Check: Invalid, Message: err.Error()})
	}
	if len(findings) > 0 {
		// Warnings of an object that is refused are never shown, and those about duplicates would say it twice.
		return findings
	}
	for _, w := range strategy.WarningsOnCreate(ctx, internal) {
		f := check.Finding{Check: Warned, Message: w}
		if fieldPath, message, ok := strings.Cut(w, ": "); ok && !strings.ContainsRune(fieldPath, ' ') {
			f.Field, f.Message = fieldPath, message
		}
		findings = append(findings, f)
	}
	return findings
}

var duplicateEntry = regexp.MustCompile(`(\.[^\s:]+): duplicate entries for key (\[.*?\])`)

// listKeys converts the object as server-side apply does.
func listKeys(object runtime.Object) []check.Finding {
	_, err := typeConverter().ObjectToTyped(object)
	if err == nil {
		return nil
	}
	matches := duplicateEntry.FindAllStringSubmatch(err.Error(), -1)
	if matches == nil {
		return []check.Finding{{Check: DuplicateKey, Message: err.Error()}}
	}
	var findings []check.Finding
	for _, m := range matches {
		findings = append(findings, check.Finding{
			Check: DuplicateKey, Field: strings.TrimPrefix(m[1], ".") + m[2],
			Message: fmt.Sprintf("more than one element with the key %s", m[2]),
		})
	}
	return findings
}

var (
	unknownFieldError = regexp.MustCompile(`^unknown field "(.*)"$`)
	stable            = regexp.MustCompile(`^v\d+$`)
	typeError         = regexp.MustCompile(`cannot unmarshal (\S+(?: \S+)?) into Go struct field (\S+) of type (\S+)`)
)

func strictFinding(err error) check.Finding {
	if m := unknownFieldError.FindStringSubmatch(err.Error()); m != nil {
		return check.Finding{Check: UnknownField, Field: m[1], Message: err.Error()}
	}
	return check.Finding{Check: UnknownField, Message: err.Error()}
}

// decodeFinding reports an object that cannot be decoded at all.
func decodeFinding(err error, gvk *schema.GroupVersionKind) check.Finding {
	if runtime.IsNotRegisteredError(err) {
		versions := legacyscheme.Scheme.VersionsForGroupKind(gvk.GroupKind())
		names := make([]string, 0, len(versions))
		for _, v := range versions {
			if v.Version != runtime.APIVersionInternal {
				names = append(names, v.String())
			}
		}
		return check.Finding{
			Check: Removed, Field: "apiVersion",
			Message: fmt.Sprintf("Kubernetes %s has no %s %s; it knows %s", Release(), gvk.GroupVersion(), gvk.Kind, strings.Join(names, ", ")),
		}
	}
	f := check.Finding{Check: WrongType, Message: err.Error()}
	if m := typeError.FindStringSubmatch(err.Error()); m != nil {
		// The path starts with the name of a Go type.
		_, f.Field, _ = strings.Cut(m[2], ".")
		f.Message = fmt.Sprintf("a %s where the type is %s", m[1], strings.TrimLeft(m[3], "*"))
	}
	return f
}

// lifecycle is what the code generator of Kubernetes adds to the types of versions that are not there forever.
type lifecycle interface {
	APILifecycleRemoved() (major, minor int)
	APILifecycleDeprecated() (major, minor int)
}

type replaced interface {
	APILifecycleReplacement() schema.GroupVersionKind
}

// served reports a version that the target release knows and does not serve. Alpha and beta versions of built-in groups
// are off unless a cluster's operator turns them on, which AKS offers to nobody.
func served(object runtime.Object, gvk schema.GroupVersionKind) *check.Finding {
	message := ""
	if l, ok := object.(lifecycle); ok {
		if major, minor := l.APILifecycleRemoved(); reached(major, minor) {
			message = fmt.Sprintf("%s is removed since Kubernetes %d.%d", gvk.GroupVersion(), major, minor)
		}
	}
	if message == "" && !stable.MatchString(gvk.Version) {
		message = fmt.Sprintf("%s is a preview that clusters do not serve by default", gvk.GroupVersion())
	}
	if message == "" {
		return nil
	}
	return &check.Finding{Check: Removed, Field: "apiVersion", Message: message, Fix: replacement(object)}
}

func deprecation(object runtime.Object, gvk schema.GroupVersionKind) []check.Finding {
	l, ok := object.(lifecycle)
	if !ok {
		return nil
	}
	if major, minor := l.APILifecycleDeprecated(); reached(major, minor) {
		return []check.Finding{{
			Check: Deprecated, Field: "apiVersion", Fix: replacement(object),
			Message: fmt.Sprintf("%s %s is deprecated since Kubernetes %d.%d", gvk.GroupVersion(), gvk.Kind, major, minor),
		}}
	}
	return nil
}

func replacement(object runtime.Object) string {
	if r, ok := object.(replaced); ok {
		if gvk := r.APILifecycleReplacement(); !gvk.Empty() {
			return fmt.Sprintf("Use %s %s.", gvk.GroupVersion(), gvk.Kind)
		}
	}
	return ""
}

// reached says whether the target release is at or after the given one.
func reached(major, minor int) bool {
	return major > 0 && target().AtLeast(version.MajorMinor(uint(major), uint(minor)))
}

// Release returns the Kubernetes release that objects are judged by, as major.minor.
func Release() string { return componentversion.DefaultKubeBinaryVersion }

var target = sync.OnceValue(func() *version.Version { return version.MustParseGeneric(Release()) })
