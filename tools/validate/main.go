// Command validate is the gate before a merge: it renders the repository as Flux will, and judges every object as the API
// server will, on one machine, without a cluster and without the network.
//
//	go run ./tools/validate            check the repository that the working directory is in
//	go run ./tools/validate rules      list the checks
//	go run ./tools/validate explain ID say what a check means, and what to do
//
// The exit code is 0 if there is nothing to correct, 1 if there is, and 2 if the repository could not be checked.
// Findings go to the standard output, diagnostics to the standard error.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"aks-platform/tools/validate/internal/check"
	"aks-platform/tools/validate/internal/gate"
	"aks-platform/tools/validate/internal/report"
)

// The exit codes.
const (
	exitClean    = 0
	exitFindings = 1
	exitFailed   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// errFindings ends a run that has done its work and found something.
var errFindings = errors.New("there are findings")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitClean
	case errors.Is(err, errFindings):
		return exitFindings
	default:
		fmt.Fprintf(stderr, "validate: %v\n", err)
		return exitFailed
	}
}

// options are the flags of the command that checks.
type options struct {
	root     string
	format   string
	failOn   string
	logLevel string
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:           "validate",
		Short:         "Check what Flux would apply to each cluster, before it is merged",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	formats := strings.Join(slices.Sorted(maps.Keys(report.Formats)), " or ")
	cmd.Flags().StringVar(&o.root, "root", "", "root of the repository (default: the nearest folder above with a folder clusters)")
	cmd.Flags().StringVar(&o.format, "format", "text", "output format: "+formats)
	cmd.Flags().StringVar(&o.failOn, "fail-on", check.Warning.String(), "least severity that counts: error, warning or note")
	cmd.Flags().StringVar(&o.logLevel, "log-level", zerolog.WarnLevel.String(), "diagnostics to show: trace, debug, info, warn, error or disabled")
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.AddCommand(rulesCommand(), explainCommand())
	return cmd
}

func (o *options) run(cmd *cobra.Command) error {
	write, ok := report.Formats[o.format]
	if !ok {
		return fmt.Errorf("--format: unknown format %q: want %s", o.format, strings.Join(slices.Sorted(maps.Keys(report.Formats)), " or "))
	}
	failOn, err := check.ParseSeverity(o.failOn)
	if err != nil {
		return fmt.Errorf("--fail-on: %w", err)
	}
	level, err := zerolog.ParseLevel(o.logLevel)
	if err != nil || o.logLevel == "" {
		return fmt.Errorf("--log-level: unknown level %q: want trace, debug, info, warn, error or disabled", o.logLevel)
	}
	root, err := findRoot(o.root)
	if err != nil {
		return err
	}
	log := zerolog.New(zerolog.ConsoleWriter{Out: cmd.ErrOrStderr(), NoColor: true}).Level(level).With().Timestamp().Logger()
	confine(log)

	findings, summary, err := gate.Run(log.WithContext(cmd.Context()), root)
	if err != nil {
		return err
	}
	if err := write(cmd.OutOrStdout(), findings, summary); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if slices.ContainsFunc(findings, func(f check.Finding) bool { return f.Check.Severity >= failOn }) {
		return errFindings
	}
	return nil
}

// findRoot returns the root of the repository: what the user says, or the nearest folder upwards that has clusters.
func findRoot(given string) (string, error) {
	if given != "" {
		info, err := os.Stat(given)
		if err != nil {
			return "", fmt.Errorf("--root: %w", err)
		}
		if !info.IsDir() {
			return "", fmt.Errorf("--root: %s is not a folder", given)
		}
		return given, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for {
		if info, err := os.Stat(filepath.Join(dir, "clusters")); err == nil && info.IsDir() {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no folder with a folder clusters here or above: name the repository with --root")
		}
		dir = parent
	}
}

// confine prepares the libraries for a short offline program.
func confine(log zerolog.Logger) {
	// The libraries of Kubernetes log for themselves.
	klog.SetSlogLogger(slog.New(zerolog.NewSlogHandler(log)))
	// Rendering allocates much and keeps little: fewer collections save a third of the time for some memory.
	debug.SetGCPercent(400)
	// Builds that would fetch something are refused before they start. This is the second lock on that door.
	http.DefaultTransport = refuseTransport{}
}

type refuseTransport struct{}

func (refuseTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("%s: the validator does not use the network", r.URL.Host)
}

func rulesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rules",
		Short: "List the checks",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, c := range gate.Checks() {
				fmt.Fprintf(w, "%s\t%s\t%s\n", c.ID, c.Severity, c.Title)
			}
			return w.Flush()
		},
	}
}

func explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain ID",
		Short: "Say what a check means, and what to do",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, c := range gate.Checks() {
				if strings.EqualFold(c.ID, args[0]) {
					_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %s (%s)\n\nWhy\n%s\n\nWhat to do\n%s\n\nExample\n%s\n",
						c.ID, c.Title, c.Severity, indent(c.Why), indent(c.Fix), indent(c.Example))
					return err
				}
			}
			return fmt.Errorf("there is no check %q; `go run ./tools/validate rules` lists them", args[0])
		},
	}
}

func indent(text string) string { return "    " + strings.ReplaceAll(text, "\n", "\n    ") }
