package crd

import (
	"context"
	"errors"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"aks-platform/tools/validate/internal/check"
)

// definitionScheme knows the versions of CustomResourceDefinition itself.
var definitionScheme = sync.OnceValue(func() *runtime.Scheme {
	s := runtime.NewScheme()
	install.Install(s)
	return s
})

// CheckDefinition judges a CustomResourceDefinition, given as JSON, by the create path of the API server.
func CheckDefinition(data []byte) []check.Finding {
	report := func(fieldPath, message string) check.Finding {
		return check.Finding{Check: Definition, Field: fieldPath, Message: message}
	}
	scheme := definitionScheme()
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Strict: true})
	var findings []check.Finding
	object, gvk, err := decoder.Decode(data, nil, nil)
	if strict, ok := runtime.AsStrictDecodingError(err); ok {
		for _, e := range strict.Errors() {
			findings = append(findings, report("", e.Error()))
		}
	} else if err != nil {
		return []check.Finding{report("", err.Error())}
	}
	if object == nil {
		return findings
	}
	scheme.Default(object)
	internal, err := scheme.UnsafeConvertToVersion(object, runtime.InternalGroupVersioner)
	if err != nil {
		return append(findings, report("", err.Error()))
	}
	definition, ok := internal.(*apiextensions.CustomResourceDefinition)
	if !ok {
		return append(findings, report("kind", "only CustomResourceDefinition can be applied"))
	}
	rest.FillObjectMetaSystemFields(definition)
	ctx := request.WithNamespace(context.Background(), "")
	ctx = request.WithRequestInfo(ctx, &request.RequestInfo{APIGroup: gvk.Group, APIVersion: gvk.Version})
	strategy := customresourcedefinition.NewStrategy(scheme)
	err = rest.BeforeCreate(strategy, ctx, definition)
	if status := (*apierrors.StatusError)(nil); errors.As(err, &status) && status.ErrStatus.Details != nil {
		for _, c := range status.ErrStatus.Details.Causes {
			findings = append(findings, report(c.Field, c.Message))
		}
	} else if err != nil {
		findings = append(findings, report("", err.Error()))
	}
	return findings
}
