package machine

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
)

// GitBackend returns the path of git's own HTTP server.
func GitBackend() (string, error) {
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return "", fmt.Errorf("asking git for its programs: %w", err)
	}
	path := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("git is installed without its HTTP server: install it (Alpine, for one, has it in git-daemon): %w", err)
	}
	return path, nil
}

// gitHandler serves the bare repositories below dir for reading.
func gitHandler(dir string) (http.Handler, error) {
	path, err := GitBackend()
	if err != nil {
		return nil, err
	}
	backend := &cgi.Handler{
		Path: path,
		Env: []string{
			"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1",
			// Whoever owns the folder, these repositories are the platform's own.
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/git-receive-pack") || r.URL.Query().Get("service") == "git-receive-pack" {
			http.Error(w, "this server is read-only: tools/local is the only writer", http.StatusForbidden)
			return
		}
		backend.ServeHTTP(w, r)
	}), nil
}

// registryHandler is an OCI registry with its layers on disk and its manifests in memory, as long as the machine runs.
func registryHandler(dir string) http.Handler {
	return registry.New(
		registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)),
		registry.Logger(log.New(io.Discard, "", 0)),
	)
}
