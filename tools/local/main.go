// Command local runs the whole platform on one machine: a genuine Kubernetes and a genuine Flux, which deploy the
// commits of this checkout, with neither Azure nor Docker.
//
//	go run ./tools/local up
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"aks-platform/tools/local/internal/machine"
	"aks-platform/tools/local/internal/platform"
	"aks-platform/tools/local/internal/state"
)

func main() {
	// The second Ctrl-C is not caught: it ends the program at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx))
}

// run returns the exit code: 0, 1 for a failure, 2 for a command line that makes no sense, or that of the program that
// a command handed over to.
func run(ctx context.Context) int {
	err := command().ExecuteContext(ctx)
	var handed exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &handed):
		return int(handed)
	case errors.As(err, new(usageError)):
		fmt.Fprintf(os.Stderr, "local: %v\nlocal: see: go run ./tools/local help\n", err)
		return 2
	}
	fmt.Fprintln(os.Stderr, "local:", err)
	return 1
}

type usageError struct{ error }

// exitCode is the exit code of a program that a command handed over to, which has said everything itself.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprint("exit status ", int(e)) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "local",
		Short: "Run the whole platform on this machine, without Azure and Docker",
		Long: `Runs the whole platform on this machine: a genuine Kubernetes API server, genuine Flux, an image registry, a
git server and, on Linux as root, a genuine node with genuine pods. Elsewhere KWOK simulates the pods.

It plays CI as well: it builds the images of the commit that is checked out and publishes both to Flux, and does
so again for every new commit. The checkout is never written; state lies in .local, built programs in the user's
cache directory. A real node runs in namespaces of its own: nothing of the host is changed, and nothing stays.`,
		Example: `  go run ./tools/local up                       deploy this checkout, and every commit from now on
  go run ./tools/local flux get kustomizations  what Flux says about it
  go run ./tools/local logs worker -f           what a workload says`,
		// So that --root works in front of the commands that hand all their flags over.
		TraverseChildren: true,
		SilenceErrors:    true,
		SilenceUsage:     true,
		Args:             cobra.NoArgs,
		RunE:             func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	rootDir := root.PersistentFlags().String("root", "", "the checkout to deploy (default: the one around the current folder)")
	checkout := func() (string, error) { return findRoot(*rootDir) }
	root.AddCommand(up(checkout), down(checkout), build(checkout), status(checkout), kubeconfig(checkout), logs(checkout),
		handOver(checkout, "kubectl", "Run kubectl, of the cluster's version, against the cluster",
			func(r state.Run) string { return r.Kubectl }),
		handOver(checkout, "flux", "Run the Flux command line, of the cluster's version, against the cluster",
			func(r state.Run) string { return r.Flux }),
		&cobra.Command{
			Use:    platform.MachineCommand,
			Hidden: true,
			Args:   cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				listeners, err := strconv.Atoi(args[0])
				if err != nil {
					return usageError{err}
				}
				return machine.Main(cmd.Context(), listeners)
			},
		})
	for _, c := range append(root.Commands(), root) {
		if args := c.Args; args != nil {
			c.Args = func(cmd *cobra.Command, given []string) error {
				if err := args(cmd, given); err != nil {
					return usageError{err}
				}
				return nil
			}
		}
	}
	return root
}

// findRoot returns the nearest folder, from dir or the current one upwards, that has the clusters of a platform.
func findRoot(dir string) (string, error) {
	start, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for at := start; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "clusters", "local", "kustomization.yaml")); err == nil {
			return at, nil
		}
		if dir != "" || at == filepath.Dir(at) {
			return "", fmt.Errorf("%s is not a checkout of this platform: it has no clusters/local/kustomization.yaml", start)
		}
	}
}
