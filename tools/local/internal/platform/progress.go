package platform

import (
	"context"
	"fmt"
	"strings"
	"time"

	"aks-platform/tools/local/internal/flux"
	"aks-platform/tools/local/internal/state"
)

// progress shows how one commit is rolled out.
type progress struct {
	platform  *platform
	since     time.Time // when the commit was seen
	commit    string    // of the checkout
	published string    // what Flux sees
	shown     map[string]string
	said      time.Time // when we last said what it waits for, or began to look
	done      bool
}

// look asks the cluster, prints what has changed since the last time, and says so when the commit is rolled out.
func (g *progress) look(ctx context.Context, client *flux.Client) error {
	objects, err := client.Objects(ctx)
	if err != nil {
		g.wait([]string{err.Error()}) // the API server may be starting again
		return nil
	}
	for _, o := range objects {
		line := fmt.Sprintf("%-20s %.17s  Ready=%s  %s", o.Name, revision(o), o.Ready, o.Message)
		if transient(o) || g.shown[o.Kind+o.Name] == line {
			continue
		}
		if g.shown == nil {
			g.shown = map[string]string{}
		}
		g.shown[o.Kind+o.Name] = line
		g.platform.say("flux", "%s", line)
	}
	if g.done {
		return nil
	}
	waiting, err := client.Rollout(ctx, g.published)
	if err != nil {
		waiting = []string{err.Error()}
	}
	if len(waiting) == 0 && !g.platform.Simulate && !g.platform.answers(ctx) {
		waiting = []string{"the API does not answer"}
	}
	if len(waiting) > 0 {
		g.wait(waiting)
		return nil
	}
	g.done = true
	g.platform.say("rolled out", "%.9s after %.1f s", g.commit, time.Since(g.since).Seconds())
	g.platform.welcome()
	return g.platform.update(func(r *state.Run) { r.Up = true })
}

// patience is how long a rollout may take before we say what it waits for, and how often we say so.
const patience = 10 * time.Second

func (g *progress) wait(waiting []string) {
	if time.Since(g.said) < patience {
		return
	}
	g.said = time.Now()
	for _, w := range waiting {
		g.platform.say("waits for", "%s", w)
	}
}

// transient reports whether an object is only on its way: it is at work, or waits for another one, which has a line of
// its own when it fails.
func transient(o flux.Object) bool {
	return o.Ready == "Unknown" || o.Reason == "DependencyNotReady" ||
		strings.HasPrefix(o.Message, "Source artifact not found")
}

// revision shortens branch@sha1:commit for a line of text.
func revision(o flux.Object) string {
	if o.Commit() == "" {
		return "-"
	}
	branch, _, _ := strings.Cut(o.Revision, "@")
	return fmt.Sprintf("%s@sha1:%.7s", branch, o.Commit())
}

// welcome says, after the first rollout, what one can do now.
func (p *platform) welcome() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.welcomed {
		return
	}
	p.welcomed = true
	if p.Simulate {
		fmt.Fprintf(p.Out, `
Flux has deployed this repository. Pods are simulated, so no API answers. Look around:

    go run ./tools/local flux get kustomizations
    go run ./tools/local kubectl get pods --namespace apps

Commit a change and watch. Ctrl-C stops everything.

`)
		return
	}
	fmt.Fprintf(p.Out, `
The API answers at http://%[1]s. Send it a table:

    printf 'city,population\nLyon,522250\nTurin,848885\n' |
        curl --data-binary @- 'http://%[1]s/v1/jobs?kind=csv-profile'

Commit a change and watch it being deployed. Ctrl-C stops everything.

`, p.app.Addr())
}
