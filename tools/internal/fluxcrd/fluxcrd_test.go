package fluxcrd

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"golang.org/x/mod/modfile"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// served is what Flux 2.7 serves, in the order in which the definitions list it.
var served = map[string][]string{
	"helm.toolkit.fluxcd.io_helmreleases.yaml":        {"v2", "v2beta2"},
	"kustomize.toolkit.fluxcd.io_kustomizations.yaml": {"v1", "v1beta2"},
	"notification.toolkit.fluxcd.io_alerts.yaml":      {"v1beta2", "v1beta3"},
	"notification.toolkit.fluxcd.io_providers.yaml":   {"v1beta2", "v1beta3"},
	"notification.toolkit.fluxcd.io_receivers.yaml":   {"v1", "v1beta2"},
	"source.toolkit.fluxcd.io_buckets.yaml":           {"v1", "v1beta2"},
	"source.toolkit.fluxcd.io_externalartifacts.yaml": {"v1"},
	"source.toolkit.fluxcd.io_gitrepositories.yaml":   {"v1", "v1beta2"},
	"source.toolkit.fluxcd.io_helmcharts.yaml":        {"v1", "v1beta2"},
	"source.toolkit.fluxcd.io_helmrepositories.yaml":  {"v1", "v1beta2"},
	"source.toolkit.fluxcd.io_ocirepositories.yaml":   {"v1", "v1beta2"},
}

func TestFilesAreComplete(t *testing.T) {
	names, err := fs.Glob(FS, "*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name := range served {
		if !slices.Contains(names, name) {
			t.Errorf("%s is missing", name)
		}
	}
	for _, name := range names {
		if served[name] == nil {
			t.Errorf("%s is not expected", name)
		}
	}
}

// TestDefinitionsAreValid asks the API server's own validation, and compiles each schema.
func TestDefinitionsAreValid(t *testing.T) {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	for name, versions := range served {
		t.Run(name, func(t *testing.T) {
			var external apiextensionsv1.CustomResourceDefinition
			if err := yaml.UnmarshalStrict(read(t, name), &external); err != nil {
				t.Fatal(err)
			}
			if want := external.Spec.Group + "_" + external.Spec.Names.Plural + ".yaml"; name != want {
				t.Errorf("the file should be called %s", want)
			}
			var got []string
			for _, v := range external.Spec.Versions {
				if v.Served {
					got = append(got, v.Name)
				}
			}
			if !slices.Equal(got, versions) {
				t.Errorf("serves %v, want %v", got, versions)
			}

			scheme.Default(&external)
			var internal apiextensions.CustomResourceDefinition
			if err := scheme.Convert(&external, &internal, nil); err != nil {
				t.Fatal(err)
			}
			for _, v := range internal.Spec.Versions {
				if v.Storage {
					// The server fills this in before it validates.
					internal.Status.StoredVersions = []string{v.Name}
				}
			}
			for _, err := range validation.ValidateCustomResourceDefinition(context.Background(), &internal) {
				t.Error(err)
			}
			for _, v := range internal.Spec.Versions {
				schema := v.Schema
				if schema == nil {
					schema = internal.Spec.Validation
				}
				if _, err := structuralschema.NewStructural(schema.OpenAPIV3Schema); err != nil {
					t.Errorf("%s: %v", v.Name, err)
				}
			}
		})
	}
}

var header = regexp.MustCompile(`^# Generated from (\S+) (\S+) by`)

// TestVersionsAgree compares the versions that the definitions come from with those that the generator and, where they
// use the same module, the product are built with.
func TestVersionsAgree(t *testing.T) {
	generator, product := requirements(t, "gen/go.mod"), requirements(t, "../../../go.mod")
	for name := range served {
		m := header.FindSubmatch(read(t, name))
		if m == nil {
			t.Errorf("%s does not say where it comes from", name)
			continue
		}
		module, version := string(m[1]), string(m[2])
		if want := generator[module]; version != want {
			t.Errorf("%s comes from %s %s, and gen/go.mod has %s: run go generate", name, module, version, want)
		}
		if other := product[module]; other != "" && other != version {
			t.Errorf("%s comes from %s %s, and go.mod has %s", name, module, version, other)
		}
	}
}

func requirements(t *testing.T, file string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(filepath.FromSlash(file))
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse(file, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	versions := make(map[string]string)
	for _, r := range mod.Require {
		versions[r.Mod.Path] = r.Mod.Version
	}
	return versions
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := FS.ReadFile(name)
	if err != nil {
		t.Fatal(fmt.Errorf("read definition: %w", err))
	}
	return data
}
