// Command gen writes the Flux CustomResourceDefinitions of package fluxcrd.
//
// They come from the markers in the Go types of Flux's API modules, by the same generator that Flux itself uses. Not
// every controller publishes its manifests as a module, but each publishes its API module; go.mod here therefore is the
// one place that says which Flux release is meant. The folder is a module of its own to keep the generator out of the
// product's module graph.
//
// Descriptions are left out: they are three quarters of the text and change no decision.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"sigs.k8s.io/controller-tools/pkg/crd"
	"sigs.k8s.io/controller-tools/pkg/genall"
	"sigs.k8s.io/controller-tools/pkg/loader"

	// Imported so that go.mod keeps the modules that the packages below belong to.
	_ "github.com/fluxcd/helm-controller/api/v2"
	_ "github.com/fluxcd/kustomize-controller/api/v1"
	_ "github.com/fluxcd/notification-controller/api/v1"
	_ "github.com/fluxcd/source-controller/api/v1"
)

const generatorModule = "sigs.k8s.io/controller-tools"

// modules are the API modules whose types become definitions.
var modules = []string{
	"github.com/fluxcd/helm-controller/api",
	"github.com/fluxcd/kustomize-controller/api",
	"github.com/fluxcd/notification-controller/api",
	"github.com/fluxcd/source-controller/api",
}

func main() {
	log.SetFlags(0)
	out := flag.String("o", "", "folder to write the definitions to")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*out); err != nil {
		log.Fatal("gen: ", err)
	}
}

func run(out string) error {
	versions, err := moduleVersions()
	if err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(out, "*.toolkit.fluxcd.io_*.yaml"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	for _, m := range modules {
		if err := generate(out, m, versions[m], versions[generatorModule]); err != nil {
			return fmt.Errorf("%s: %w", m, err)
		}
	}
	return nil
}

// moduleVersions says which version of each module this program was built with.
func moduleVersions() (map[string]string, error) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil, fmt.Errorf("the program carries no build information")
	}
	versions := make(map[string]string)
	for _, d := range info.Deps {
		versions[d.Path] = d.Version
	}
	for _, m := range append([]string{generatorModule}, modules...) {
		if versions[m] == "" {
			return nil, fmt.Errorf("no package of %s is linked", m)
		}
	}
	return versions, nil
}

func generate(out, module, version, generator string) error {
	noDescriptions := 0
	var g genall.Generator = crd.Generator{MaxDescLen: &noDescriptions}
	rt, err := genall.Generators{&g}.ForRoots(module + "/...")
	if err != nil {
		return err
	}
	header := fmt.Sprintf("# Generated from %s %s by fluxcrd/gen, without descriptions. DO NOT EDIT.\n", module, version)
	rt.OutputRules = genall.OutputRules{Default: folder{dir: out, header: header, generator: generator}}
	if rt.Run() {
		return fmt.Errorf("the generator reported errors, see above")
	}
	return nil
}

// folder is an output rule: one file for each definition, headed by where it comes from.
type folder struct{ dir, header, generator string }

// Open implements genall.OutputRule.
func (f folder) Open(_ *loader.Package, name string) (io.WriteCloser, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		return nil, fmt.Errorf("unexpected file name %q", name)
	}
	return &file{path: filepath.Join(f.dir, name), header: f.header, generator: f.generator}, nil
}

// file collects a definition, and writes it when it is complete.
type file struct {
	bytes.Buffer
	path, header, generator string
}

// Close implements io.Closer.
func (f *file) Close() error {
	text := strings.TrimPrefix(f.String(), "---\n")
	// The generator names its own version, which it knows only as a program, not as a library.
	text = strings.Replace(text, "/version: (devel)\n", "/version: "+f.generator+"\n", 1)
	return os.WriteFile(f.path, []byte(f.header+text), 0o644)
}
