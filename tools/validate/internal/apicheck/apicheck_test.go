package apicheck

import (
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"sigs.k8s.io/yaml"
)

// notCreated are kinds of the scheme that are no objects: requests to a subresource or reviews, which leave nothing
// behind, and ComponentStatus, which is only read.
var notCreated = map[schema.GroupKind]string{
	{Group: "", Kind: "Binding"}:                                      "pods/binding",
	{Group: "", Kind: "ComponentStatus"}:                              "read-only",
	{Group: "", Kind: "RangeAllocation"}:                              "internal",
	{Group: "", Kind: "SerializedReference"}:                          "internal",
	{Group: "", Kind: "PodStatusResult"}:                              "internal",
	{Group: "", Kind: "NodeProxyOptions"}:                             "options",
	{Group: "", Kind: "PodAttachOptions"}:                             "options",
	{Group: "", Kind: "PodExecOptions"}:                               "options",
	{Group: "", Kind: "PodLogOptions"}:                                "options",
	{Group: "", Kind: "PodPortForwardOptions"}:                        "options",
	{Group: "", Kind: "PodProxyOptions"}:                              "options",
	{Group: "", Kind: "ServiceProxyOptions"}:                          "options",
	{Group: "apps", Kind: "Scale"}:                                    "subresource",
	{Group: "autoscaling", Kind: "Scale"}:                             "subresource",
	{Group: "policy", Kind: "Eviction"}:                               "pods/eviction",
	{Group: "authentication.k8s.io", Kind: "TokenRequest"}:            "subresource",
	{Group: "authentication.k8s.io", Kind: "TokenReview"}:             "review",
	{Group: "authentication.k8s.io", Kind: "SelfSubjectReview"}:       "review",
	{Group: "authorization.k8s.io", Kind: "LocalSubjectAccessReview"}: "review",
	{Group: "authorization.k8s.io", Kind: "SelfSubjectAccessReview"}:  "review",
	{Group: "authorization.k8s.io", Kind: "SelfSubjectRulesReview"}:   "review",
	{Group: "authorization.k8s.io", Kind: "SubjectAccessReview"}:      "review",
}

// TestEveryServedKindHasAStrategy compares the table of strategies with the scheme: no kind that a cluster serves may
// pass unjudged.
func TestEveryServedKindHasAStrategy(t *testing.T) {
	found := make(map[schema.GroupKind]bool)
	metaObject := reflect.TypeFor[metav1.Object]()
	for gvk, typ := range legacyscheme.Scheme.AllKnownTypes() {
		if !stable.MatchString(gvk.Version) || !reflect.PointerTo(typ).Implements(metaObject) {
			continue
		}
		kind := gvk.GroupKind()
		_, has := strategies[kind]
		found[kind] = true
		if reason, ok := notCreated[kind]; ok == has {
			t.Errorf("%s: strategy %v, not created: %q", gvk, has, reason)
		}
	}
	for kind := range strategies {
		if !found[kind] {
			t.Errorf("%s has a strategy, and no version that is served", kind)
		}
	}
}

// TestStrategiesRun creates an empty object of every kind: the strategies that take a client must do without.
func TestStrategiesRun(t *testing.T) {
	for kind := range strategies {
		for _, gv := range legacyscheme.Scheme.VersionsForGroupKind(kind) {
			if !stable.MatchString(gv.Version) {
				continue
			}
			object, err := legacyscheme.Scheme.New(gv.WithKind(kind.Kind))
			if err != nil {
				t.Fatal(err)
			}
			object.GetObjectKind().SetGroupVersionKind(gv.WithKind(kind.Kind))
			object.(metav1.Object).SetName("a")
			data, err := runtime.Encode(legacyscheme.Codecs.LegacyCodec(gv), object)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range Check(data) {
				if f.Check != Invalid {
					t.Errorf("%s: %s %s: %s", kind, f.Check.ID, f.Field, f.Message)
				}
			}
		}
	}
}

const aPod = `
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default}
spec:
  containers:
    - name: a
      image: a
`

// TestMistakes has one mistake in each case, and wants the one finding about it.
func TestMistakes(t *testing.T) {
	with := func(old, new string) string {
		if !strings.Contains(aPod, old) {
			t.Fatalf("no %q in the pod", old)
		}
		return strings.Replace(aPod, old, new, 1)
	}
	for name, test := range map[string]struct{ manifest, want string }{
		"none":              {aPod, ""},
		"unknown field":     {with("image: a", "image: a\n      imagePullPolicies: Always"), `API-001 spec.containers[0].imagePullPolicies: unknown field "spec.containers[0].imagePullPolicies"`},
		"unknown metadata":  {with("name: a, ", "name: a, lables: {}, "), `API-001 metadata.lables: unknown field "metadata.lables"`},
		"string for number": {with("image: a", "image: a\n      ports: [{containerPort: '80'}]"), "API-002 spec.containers.ports.containerPort: a string where the type is int32"},
		"number for string": {with("image: a", "image: 7"), "API-002 spec.containers.image: a number where the type is string"},
		"map for list":      {with("image: a", "image: a\n      args: {a: b}"), "API-002 spec.containers.args: a object where the type is []string"},
		"quantity":          {with("image: a", "image: a\n      resources: {limits: {cpu: 1x}}"), "API-002 : quantities must match the regular expression"},
		"value":             {with("image: a", "image: a\n      imagePullPolicy: Sometimes"), `API-003 spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes"`},
		"name":              {with("name: a, ", "name: A_b, "), `API-003 metadata.name: Invalid value: "A_b"`},
		"label value":       {with("name: a, ", "name: a, labels: {a: b c}, "), `API-003 metadata.labels: Invalid value: "b c"`},
		"required":          {with("image: a", "command: [a]"), "API-003 spec.containers[0].image: Required value"},
		"probe":             {with("image: a", "image: a\n      livenessProbe: {periodSeconds: 5}"), "API-003 spec.containers[0].livenessProbe: Required value: must specify a handler type"},
		"warning":           {with("image: a", "image: a\n      resources: {requests: {memory: 100m}}"), `API-004 spec.containers[0].resources.requests[memory]: fractional byte value "100m" is invalid`},
		"duplicate":         {with("image: a", "image: a\n      env: [{name: A, value: b}, {name: A, value: c}]"), `API-005 spec.containers[name="a"].env[name="A"]: more than one element`},
		"removed":           {"apiVersion: policy/v1beta1\nkind: PodDisruptionBudget\nmetadata: {name: a, namespace: b}\n", "API-006 apiVersion: policy/v1beta1 is removed since Kubernetes 1.25"},
		"no such version":   {"apiVersion: apps/v2\nkind: Deployment\nmetadata: {name: a, namespace: b}\n", "API-006 apiVersion: Kubernetes 1.36 has no apps/v2 Deployment; it knows apps/v1"},
		"preview":           {"apiVersion: certificates.k8s.io/v1beta1\nkind: ClusterTrustBundle\nmetadata: {name: a}\n", "API-006 apiVersion: certificates.k8s.io/v1beta1 is a preview"},
		"review":            {"apiVersion: authentication.k8s.io/v1\nkind: TokenReview\nmetadata: {name: a}\n", "API-007 kind: TokenReview is not a kind that can be applied"},
		"policy expression": {"apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\nmetadata: {name: a}\nspec: {matchConstraints: {resourceRules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}]}, validations: [{expression: 'object.spec.'}]}\n", "API-003 spec.validations[0].expression: Invalid value"},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := yaml.YAMLToJSON([]byte(test.manifest))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range Check(data) {
				got = append(got, f.Check.ID+" "+f.Field+": "+f.Message)
			}
			if test.want == "" && len(got) > 0 || test.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], test.want)) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestKinds(t *testing.T) {
	if !Known(schema.GroupKind{Group: "apps", Kind: "Deployment"}) || Known(schema.GroupKind{Group: "apps", Kind: "Deploymnet"}) {
		t.Error("Known is wrong")
	}
	if !Namespaced(schema.GroupKind{Kind: "ConfigMap"}) || Namespaced(schema.GroupKind{Kind: "Namespace"}) {
		t.Error("Namespaced is wrong")
	}
}
