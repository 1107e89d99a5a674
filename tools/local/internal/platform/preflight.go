package platform

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"aks-platform/tools/local/internal/delivery"
	"aks-platform/tools/local/internal/machine"
)

// Disk space in bytes, from measurements with some room: compiling everything leaves 8 GiB in Go's build cache; the
// programs are 0.6 GiB; a running platform writes 0.4 GiB.
const (
	spaceToCompile = 10 << 30
	spaceForSets   = 1 << 30
	spaceToRun     = 1 << 30
)

// nodePrograms are what a real node needs from the host, with the Debian package of each.
var nodePrograms = map[string]string{"runc": "runc", "nft": "nftables"}

// checkCheckout looks for what makes a deployment of this checkout impossible and returns its commit.
func checkCheckout(ctx context.Context, c delivery.Checkout) (head string, err error) {
	if _, err := exec.LookPath("git"); err != nil {
		return "", errors.New("git is missing: Flux deploys from a git repository; install the package git")
	}
	if _, err := machine.GitBackend(); err != nil {
		return "", err
	}
	head, err = c.Head(ctx)
	if errors.Is(err, delivery.ErrUnborn) {
		return "", err
	} else if err != nil {
		return "", fmt.Errorf("%s is not a usable git checkout, and Flux deploys commits: %w", c.Dir, err)
	}
	top, err := c.Top(ctx)
	if err != nil {
		return "", err
	}
	if dir, err := filepath.EvalSymlinks(c.Dir); err != nil {
		return "", err
	} else if dir != top {
		return "", fmt.Errorf("%s is a folder of the git checkout %s, and Flux looks for clusters/ at the top of it: "+
			"give the platform a repository of its own", dir, top)
	}
	return head, nil
}

// checkVisible fails if a folder that the machine needs lies where it does not see the host's files.
func checkVisible(dirs ...string) error {
	for _, dir := range dirs {
		for _, hidden := range machine.Hidden {
			if dir == hidden || strings.HasPrefix(dir, hidden+"/") {
				return fmt.Errorf("a real node has its own %s and does not see %s: move it, or simulate pods: --simulate", hidden, dir)
			}
		}
	}
	return nil
}

// whySimulate returns why pods can't be real on this system, or nothing.
func whySimulate() string {
	switch {
	case runtime.GOOS != "linux":
		return "a real node needs Linux"
	case os.Geteuid() != 0:
		return "a real node needs root"
	}
	return ""
}

// checkNode looks for what a real node needs. Every error says the way out.
func checkNode(cgroups machine.Cgroups) (runc string, err error) {
	var missing []string
	for _, program := range slices.Sorted(maps.Keys(nodePrograms)) {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) > 0 {
		install := "apt-get install --yes --no-install-recommends"
		for _, program := range missing {
			install += " " + nodePrograms[program]
		}
		return "", fmt.Errorf("a real node needs %v: install it (Debian, Ubuntu: %s), or simulate pods: --simulate", missing, install)
	}
	if err := cgroups.Make(); err != nil {
		return "", fmt.Errorf("a real node needs to make cgroups, and this system does not let us (%w): in a container, "+
			"run it privileged; or simulate pods: --simulate", err)
	}
	if err := cgroups.Remove(); err != nil {
		return "", fmt.Errorf("a real node needs to remove its cgroups again (%w); simulate pods: --simulate", err)
	}
	return exec.LookPath("runc")
}

// checkSpace fails if the file system of dir has less than need bytes free. dir need not exist yet.
func checkSpace(dir string, need uint64, what string) error {
	probe := dir
	for {
		var fs unix.Statfs_t
		err := unix.Statfs(probe, &fs)
		if errors.Is(err, unix.ENOENT) && probe != filepath.Dir(probe) {
			probe = filepath.Dir(probe)
			continue
		} else if err != nil {
			return fmt.Errorf("asking for the free space of %s: %w", dir, err)
		}
		free := fs.Bavail * uint64(fs.Bsize)
		if free < need {
			return fmt.Errorf("%s needs %.1f GiB free at %s, and there are %.1f: make room", what, gib(need), dir, gib(free))
		}
		return nil
	}
}

func gib(bytes uint64) float64 { return float64(bytes) / (1 << 30) }

// listen opens a listener on the host's loopback. Port 0 is any.
func listen(port int, what, flag string) (*net.TCPListener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %d for %s is in use by another program: end it (ss -ltnp 'sport = :%d' names it), "+
			"or choose another port: %s 0 takes any that is free", port, what, port, flag)
	} else if err != nil {
		return nil, fmt.Errorf("listening for %s: %w", what, err)
	}
	return l.(*net.TCPListener), nil
}
