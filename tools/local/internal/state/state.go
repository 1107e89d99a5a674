// Package state is the folder .local of a checkout: what a running platform leaves for `status`, `down` and the next
// `up`, and who owns it.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Dir is the folder. Its parts:
//
//	lock      held by the `up` that runs; the kernel lets go of it however that ends
//	run.json  what runs
//	build/    the sources that the newest images were built from
//	cluster/  the cluster's files, new at each start
//	git/      the repository that Flux reads
//	log/      a log of each component, new at each start
//	storage/  jobs and results, kept until somebody deletes them
//	up.log    what an `up --detach` prints
type Dir string

// Path returns the path of a part.
func (d Dir) Path(part string) string { return filepath.Join(string(d), part) }

// Run describes a running platform.
type Run struct {
	PID        int       `json:"pid"`
	Started    time.Time `json:"started"`
	Up         bool      `json:"up"` // Commit is rolled out
	Simulated  bool      `json:"simulated"`
	API        string    `json:"api,omitempty"` // URL of backend-api; none when pods are simulated
	Kubeconfig string    `json:"kubeconfig"`
	Kubectl    string    `json:"kubectl"` // paths of the programs that fit
	Flux       string    `json:"flux"`
	Commit     string    `json:"commit"`    // of the checkout, deployed or being deployed
	Published  string    `json:"published"` // the commit made of it that Flux sees
}

// Env is the environment in which kubectl and flux talk to the cluster, NAME=value. They keep what they learn about it
// with its other files.
func (r Run) Env() []string {
	return []string{
		"KUBECONFIG=" + r.Kubeconfig, "KUBECACHEDIR=" + filepath.Join(filepath.Dir(r.Kubeconfig), "kube-cache"),
		"NO_PROXY=*", "no_proxy=*",
	}
}

// ErrNotRunning reports that no platform runs here.
var ErrNotRunning = errors.New("the local platform is not running; start it with: go run ./tools/local up")

// Write replaces the description, whole or not at all.
func (d Dir) Write(r Run) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := d.Path("run.json.new")
	if err := os.WriteFile(tmp, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, d.Path("run.json"))
}

// Read returns the description of the platform that was last started here, whether or not it still runs.
func (d Dir) Read() (Run, error) {
	var r Run
	data, err := os.ReadFile(d.Path("run.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return r, ErrNotRunning
	} else if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: %w", d.Path("run.json"), err)
	}
	return r, nil
}

// Clear removes the description.
func (d Dir) Clear() error {
	err := os.Remove(d.Path("run.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Running returns the description of the platform that runs here, or ErrNotRunning.
func (d Dir) Running() (Run, error) {
	pid, err := d.Holder()
	if err != nil {
		return Run{}, err
	}
	if pid == 0 {
		return Run{}, ErrNotRunning
	}
	r, err := d.Read()
	if errors.Is(err, ErrNotRunning) || err == nil && r.PID != pid {
		return Run{PID: pid}, nil // it is on its way, and what is written here is of an earlier one
	}
	return r, err
}
