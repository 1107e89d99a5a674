package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"aks-platform/tools/local/internal/flux"
	"aks-platform/tools/local/internal/platform"
	"aks-platform/tools/local/internal/state"
)

func up(checkout func() (string, error)) *cobra.Command {
	var port int
	var simulate, detach bool
	var cache string
	c := &cobra.Command{
		Use:   "up",
		Short: "Start the platform and deploy this checkout, until Ctrl-C",
		Long: `Starts the platform, deploys the commit that is checked out and then every new one, and shows what Flux does,
until Ctrl-C or "down". The first start builds Kubernetes, Flux and the rest from source, which takes minutes;
later ones take seconds.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := checkout()
			if err != nil {
				return err
			}
			if port < 0 || port > 65535 {
				return usageError{fmt.Errorf("--port %d: want 0 to 65535", port)}
			}
			if detach {
				return upDetached(cmd.Context(), root)
			}
			options := platform.Options{Root: root, Port: port, Simulate: simulate, Out: os.Stdout}
			if options.Cache, err = cacheDir(cache); err != nil {
				return err
			}
			return platform.Up(cmd.Context(), options)
		},
	}
	c.Flags().IntVar(&port, "port", 8080, "where the API of a real node answers on 127.0.0.1; 0 is any free port")
	c.Flags().BoolVar(&simulate, "simulate", false, "let KWOK simulate the pods, also where a real node could run")
	c.Flags().BoolVar(&detach, "detach", false, "return when the checkout is deployed, and go on in the background")
	cacheFlag(c, &cache)
	return c
}

func build(checkout func() (string, error)) *cobra.Command {
	var simulate bool
	var cache string
	c := &cobra.Command{
		Use:   "build",
		Short: "Build Kubernetes, Flux and the rest now, so that the next up starts in seconds",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := checkout()
			if err != nil {
				return err
			}
			options := platform.Options{Root: root, Simulate: simulate, Out: os.Stdout}
			if options.Cache, err = cacheDir(cache); err != nil {
				return err
			}
			return platform.Build(cmd.Context(), options)
		},
	}
	c.Flags().BoolVar(&simulate, "simulate", false, "build what simulated pods need, not what a real node needs")
	cacheFlag(c, &cache)
	return c
}

func cacheFlag(c *cobra.Command, cache *string) {
	c.Flags().StringVar(cache, "cache", "", "where built programs are kept (default: aks-platform in the user's cache directory)")
}

func cacheDir(flag string) (string, error) {
	if flag != "" {
		return filepath.Abs(flag)
	}
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w: say where built programs go: --cache", err)
	}
	return filepath.Join(user, "aks-platform"), nil
}

// upDetached starts this same command line without --detach in a session of its own, and shows what it prints until the
// platform is up or has failed.
func upDetached(ctx context.Context, root string) error {
	dir := platform.StateDir(root)
	if _, err := dir.Running(); err == nil {
		return state.ErrLocked
	} else if !errors.Is(err, state.ErrNotRunning) {
		return err
	}
	if err := os.MkdirAll(string(dir), 0o755); err != nil {
		return err
	}
	log, err := os.Create(dir.Path("up.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	var args []string
	for _, a := range os.Args[1:] {
		if a != "--detach" && !strings.HasPrefix(a, "--detach=") {
			args = append(args, a)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	shown, err := os.Open(log.Name())
	if err != nil {
		return err
	}
	defer shown.Close()
	for {
		if _, err := io.Copy(os.Stdout, shown); err != nil {
			return errors.Join(err, cmd.Process.Signal(os.Interrupt), <-exited)
		}
		// What is written there may be of an earlier platform.
		if r, err := dir.Read(); err == nil && r.PID == cmd.Process.Pid && r.Up {
			_, err := io.Copy(os.Stdout, shown)
			return err
		}
		select {
		case err := <-exited:
			if _, copyErr := io.Copy(os.Stdout, shown); copyErr != nil {
				return copyErr
			}
			if err == nil {
				return errors.New("the platform was stopped before it was up")
			}
			return exitCode(1)
		case <-ctx.Done():
			// Whoever interrupts the start wants no platform.
			err := errors.Join(cmd.Process.Signal(os.Interrupt), <-exited)
			_, copyErr := io.Copy(os.Stdout, shown)
			return errors.Join(errors.New("interrupted before the platform was up"), err, copyErr)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func down(checkout func() (string, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the platform of this checkout and clean up after it, also after a crash",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := checkout()
			if err != nil {
				return err
			}
			stopped, err := platform.Down(cmd.Context(), root)
			if err != nil {
				return err
			}
			if stopped {
				fmt.Println("stopped")
			} else {
				fmt.Println("nothing runs")
			}
			return nil
		},
	}
}

func status(checkout func() (string, error)) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show which commit is deployed and what Flux says; exit code 1 if it is not rolled out",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return usageError{fmt.Errorf("--format %q: want text or json", format)}
			}
			r, err := running(checkout)
			if err != nil {
				return err
			}
			client, err := flux.New(r.Kubeconfig)
			if err != nil {
				return err
			}
			objects, err := client.Objects(cmd.Context())
			if err != nil {
				return fmt.Errorf("%w (the platform may still be starting)", err)
			}
			if format == "json" {
				out := json.NewEncoder(os.Stdout)
				out.SetIndent("", "  ")
				err = out.Encode(struct {
					state.Run
					Objects []flux.Object `json:"objects"`
				}{r, objects})
			} else {
				err = printStatus(r, objects)
			}
			if err == nil && !r.Up {
				return exitCode(1)
			}
			return err
		},
	}
	c.Flags().StringVar(&format, "format", "text", "text or json")
	return c
}

func printStatus(r state.Run, objects []flux.Object) error {
	w := bufio.NewWriter(os.Stdout)
	fmt.Fprintf(w, "running since   %s, process %d\n", r.Started.Format(time.DateTime), r.PID)
	rolled := "being rolled out"
	if r.Up {
		rolled = "rolled out"
	}
	fmt.Fprintf(w, "commit          %.9s, %s\n", r.Commit, rolled)
	if r.Simulated {
		fmt.Fprintf(w, "pods            simulated by KWOK\n")
	} else {
		fmt.Fprintf(w, "API             %s\n", r.API)
	}
	fmt.Fprintf(w, "KUBECONFIG      %s\n\n", r.Kubeconfig)
	for _, o := range objects {
		fmt.Fprintf(w, "%-14s %-20s Ready=%-8s %s\n", o.Kind, o.Name, o.Ready, o.Message)
	}
	return w.Flush()
}

func kubeconfig(checkout func() (string, error)) *cobra.Command {
	return &cobra.Command{
		Use:     "kubeconfig",
		Short:   "Print the path of an administrator's kubeconfig",
		Example: `  export KUBECONFIG=$(go run ./tools/local kubeconfig)`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r, err := running(checkout)
			if err != nil {
				return err
			}
			fmt.Println(r.Kubeconfig)
			return nil
		},
	}
}

func logs(checkout func() (string, error)) *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "logs WORKLOAD | COMPONENT",
		Short: "Print the logs of a workload's pods, or of a component of the cluster",
		Long: `Prints the logs of all pods of a workload (backend-api, worker), or the log of a component of the cluster, which
is also there when the platform no longer runs (kubelet, kube-apiserver, source-controller, machine, ...).`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, err := checkout()
			if err != nil {
				return err
			}
			file := filepath.Join(platform.StateDir(root).Path("log"), filepath.Base(args[0])+".log")
			if _, err := os.Stat(file); err == nil {
				tail := []string{"-n", "+1", file}
				if follow {
					tail = append([]string{"-f"}, tail...)
				}
				return execute(cmd.Context(), "tail", tail, nil)
			}
			r, err := running(checkout)
			if err != nil {
				return fmt.Errorf("no component %s has a log in %s, and for the pods: %w", args[0], filepath.Dir(file), err)
			}
			kubectl := []string{"logs", "--namespace=apps", "--selector=app.kubernetes.io/name=" + args[0], "--prefix", "--tail=-1", "--max-log-requests=20"}
			if follow {
				kubectl = append(kubectl, "--follow")
			}
			return execute(cmd.Context(), r.Kubectl, kubectl, r.Env())
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as more is logged")
	return c
}

// handOver makes a command that runs a program of the cluster with everything that follows its name.
func handOver(checkout func() (string, error), name, short string, program func(state.Run) string) *cobra.Command {
	return &cobra.Command{
		Use:                name,
		Short:              short,
		DisableFlagParsing: true, // they are the program's
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := running(checkout)
			if err != nil {
				return err
			}
			return execute(cmd.Context(), program(r), args, r.Env())
		},
	}
}

func running(checkout func() (string, error)) (state.Run, error) {
	root, err := checkout()
	if err != nil {
		return state.Run{}, err
	}
	r, err := platform.StateDir(root).Running()
	if err == nil && r.Kubeconfig == "" {
		err = fmt.Errorf("the platform is still being built or prepared (process %d)", r.PID)
	}
	return r, err
}

// execute runs a program in place of this one, as far as anybody can tell.
func execute(ctx context.Context, program string, args, env []string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitCode(max(1, exit.ExitCode())) // -1 if a signal ended it
	}
	return err
}
