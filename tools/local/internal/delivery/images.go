package delivery

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Services are the programs of src that have an image of the same name.
var Services = []string{"backend-api", "worker"}

// ImageInputs are the paths of a commit that its images are made of.
var ImageInputs = []string{".ko.yaml", "go.mod", "go.sum", "src"}

// RegistryName is the name of the registry in references to images. Whatever name a reference has, the node asks the
// registry of the machine; but ko writes the name into what it builds, so it must not change from start to start.
const RegistryName = "registry.localhost"

// Registry is where images go: host:port of a registry without TLS.
type Registry string

// Builder builds the platform's own images with ko.
type Builder struct {
	Ko       string // path of the program
	Registry Registry
	base     string // reference of the pushed base image
}

// Build builds the services from the sources in dir (see ImageInputs), pushes them, and returns their digests by name.
func (b *Builder) Build(ctx context.Context, dir string) (map[string]string, error) {
	if b.base == "" {
		base, err := baseImage()
		if err != nil {
			return nil, fmt.Errorf("making the base image: %w", err)
		}
		digest, err := b.Registry.push(ctx, "base:static", base)
		if err != nil {
			return nil, err
		}
		b.base = RegistryName + "/base@" + digest
	}
	if err := b.download(ctx, dir); err != nil {
		return nil, err
	}
	refs := filepath.Join(dir, ".image-refs")
	args := []string{
		"build", "--base-import-paths", "--sbom=none", "--tags=local", "--image-refs=" + refs,
		"--platform=linux/" + runtime.GOARCH,
	}
	for _, s := range Services {
		args = append(args, "./src/"+s)
	}
	cmd := exec.CommandContext(ctx, b.Ko, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"KO_DOCKER_REPO="+RegistryName, "KO_DEFAULTBASEIMAGE="+b.base,
		// Nobody resolves that name: the registry takes requests for it as an HTTP proxy would. There are no others:
		// see download.
		"HTTP_PROXY=http://"+string(b.Registry), "http_proxy=http://"+string(b.Registry), "NO_PROXY=", "no_proxy=",
		// The digest is a function of the sources alone.
		"SOURCE_DATE_EPOCH=0", "GOFLAGS=", "GOWORK=off",
	)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second // a compiler may still hold the pipe
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("ko build: %w\n%s", err, bytes.TrimSpace(out))
	}
	out, err := os.ReadFile(refs)
	if err != nil {
		return nil, err
	}
	digests := map[string]string{}
	for _, line := range strings.Fields(string(out)) {
		ref, err := name.NewDigest(line)
		if err != nil {
			return nil, fmt.Errorf("ko printed %q: %w", line, err)
		}
		digests[path.Base(ref.RepositoryStr())] = ref.DigestStr()
	}
	for _, s := range Services {
		if digests[s] == "" {
			return nil, fmt.Errorf("ko built no image for %s: %s", s, out)
		}
	}
	return digests, nil
}

// download makes sure that the modules of the services are in Go's module cache, because ko's own environment does not
// lead to where they come from.
func (b *Builder) download(ctx context.Context, dir string) error {
	args := []string{"list", "-deps", "-f", "{{.ImportPath}}"}
	for _, s := range Services {
		args = append(args, "./src/"+s)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("looking for what the services import: %w\n%s", err, bytes.TrimSpace(complaints.Bytes()))
	}
	return nil
}

// PushProgram pushes an image that has one program and nothing else, under a name that says which registry it is
// usually from: registry.k8s.io/pause:3.10 goes to pause:3.10.
func (r Registry) PushProgram(ctx context.Context, image, program string) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	_, rest, ok := strings.Cut(image, "/")
	if !ok {
		return fmt.Errorf("image %s has no registry", image)
	}
	file := "/" + path.Base(filepath.ToSlash(program))
	img, err := imageOf(map[string][]byte{file: data}, v1.Config{Entrypoint: []string{file}, User: "65532:65532"})
	if err != nil {
		return fmt.Errorf("making %s: %w", image, err)
	}
	_, err = r.push(ctx, rest, img)
	return err
}

func (r Registry) push(ctx context.Context, image string, img v1.Image) (digest string, err error) {
	ref, err := name.ParseReference(string(r)+"/"+image, name.Insecure)
	if err != nil {
		return "", err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("pushing %s: %w", ref, err)
	}
	hash, err := img.Digest()
	return hash.String(), err
}

// baseImage is what the services' images start from: a user that is not root, a /tmp, and nothing that could have a
// vulnerability. It is made here, not pulled, so its digest is the same on every machine of one architecture.
func baseImage() (v1.Image, error) {
	return imageOf(map[string][]byte{
		"/etc/group":  []byte("root:x:0:\nnonroot:x:65532:\n"),
		"/etc/passwd": []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"),
	}, v1.Config{User: "65532:65532"})
}

// imageOf makes an image of one layer that has these files and /tmp.
func imageOf(files map[string][]byte, config v1.Config) (v1.Image, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	errs := []error{w.WriteHeader(&tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777})}
	dirs := map[string]bool{}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if dir := path.Dir(file); dir != "/" && !dirs[dir] {
			dirs[dir] = true
			errs = append(errs, w.WriteHeader(&tar.Header{Name: dir[1:] + "/", Typeflag: tar.TypeDir, Mode: 0o755}))
		}
		mode := int64(0o644)
		if len(config.Entrypoint) > 0 && config.Entrypoint[0] == file {
			mode = 0o755
		}
		errs = append(errs, w.WriteHeader(&tar.Header{Name: file[1:], Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(files[file]))}))
		_, err := w.Write(files[file])
		errs = append(errs, err)
	}
	if err := errors.Join(append(errs, w.Close())...); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(layer.Bytes())), nil
	}, tarball.WithCompressionLevel(1)) // it only travels over loopback
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	config.Env = []string{"PATH=/"}
	cf.Config = config
	return mutate.ConfigFile(img, cf)
}
