// Package delivery plays the part of GitHub on one machine: it takes the commits of the user's checkout, builds their
// images, and publishes each commit with the images' digests on top in a repository of its own, for Flux to deploy.
// The user's checkout is only read.
package delivery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Checkout is the user's working copy.
type Checkout struct{ Dir string }

// ErrUnborn reports a checkout whose branch has no commit yet.
var ErrUnborn = errors.New("the branch has no commit yet, and Flux deploys commits: git add --all && git commit")

// Head returns the commit that is checked out, on a branch or detached.
func (c Checkout) Head(ctx context.Context) (string, error) {
	head, err := git(ctx, c.Dir, nil, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
	if err == nil {
		return head, nil
	}
	if _, unborn := git(ctx, c.Dir, nil, "symbolic-ref", "--quiet", "HEAD"); unborn == nil {
		if _, repo := git(ctx, c.Dir, nil, "rev-parse", "--git-dir"); repo == nil {
			return "", ErrUnborn
		}
	}
	_, err = git(ctx, c.Dir, nil, "rev-parse", "HEAD") // for its own words
	return "", err
}

// Top returns the top folder of the checkout that Dir is in, with symbolic links resolved.
func (c Checkout) Top(ctx context.Context) (string, error) {
	return git(ctx, c.Dir, nil, "rev-parse", "--show-toplevel")
}

// Uncommitted returns how many files differ from HEAD, new ones included: Flux does not see these changes.
func (c Checkout) Uncommitted(ctx context.Context) (int, error) {
	out, err := git(ctx, c.Dir, nil, "--no-optional-locks", "status", "--porcelain", "--untracked-files=all")
	if err != nil || out == "" {
		return 0, err
	}
	return strings.Count(out, "\n") + 1, nil
}

// Repository is the bare repository that Flux reads.
type Repository struct {
	Dir string
	// ImagesFile is the path, in each commit, of the Kustomize component that says which images run.
	ImagesFile string
}

// Branch is what Flux follows.
const Branch = "main"

// imported keeps the user's commits from git's garbage collection.
const imported = "refs/imported/head"

// Init makes the repository if there is none.
func (r Repository) Init(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(r.Dir, "HEAD")); err == nil {
		return nil
	}
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return err
	}
	if _, err := git(ctx, r.Dir, nil, "init", "--quiet", "--bare", "--initial-branch="+Branch); err != nil {
		return err
	}
	// Housekeeping in the background would outlive us.
	for _, setting := range []string{"gc.autoDetach", "maintenance.autoDetach"} {
		if _, err := git(ctx, r.Dir, nil, "config", setting, "false"); err != nil {
			return err
		}
	}
	return nil
}

// Import copies a commit of the checkout and all that it needs.
func (r Repository) Import(ctx context.Context, from Checkout, commit string) error {
	// By path, so that a detached HEAD and a shallow clone work as well; the plus lets history be rewritten.
	_, err := git(ctx, r.Dir, nil, "fetch", "--quiet", "--no-tags", "--update-shallow", from.Dir, "+"+commit+":"+imported)
	if err != nil {
		// A server gives out a commit by its name only if asked to; HEAD always works.
		_, err = git(ctx, r.Dir, nil, "fetch", "--quiet", "--no-tags", "--update-shallow", from.Dir, "+HEAD:"+imported)
	}
	return err
}

// Tree returns the names of the objects at these paths of a commit, one a line: equal names mean equal content. A path
// that the commit does not have is left out.
func (r Repository) Tree(ctx context.Context, commit string, paths ...string) (string, error) {
	return git(ctx, r.Dir, nil, append([]string{"ls-tree", commit, "--"}, paths...)...)
}

// Export writes these paths of a commit below dir.
func (r Repository) Export(ctx context.Context, commit, dir string, paths ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	index := []string{"GIT_INDEX_FILE=" + filepath.Join(dir, ".git-index"), "GIT_WORK_TREE=" + dir, "GIT_DIR=" + r.Dir}
	_, err := git(ctx, dir, index, append([]string{"checkout", "--quiet", commit, "--"}, paths...)...)
	return err
}

// Publish puts the branch on a commit that is commit plus the digests of images (name -> sha256:...) and returns it.
// Without images it is commit itself. The same input gives the same commit.
func (r Repository) Publish(ctx context.Context, commit string, images map[string]string) (string, error) {
	published := commit
	if len(images) > 0 {
		var err error
		if published, err = r.bump(ctx, commit, images); err != nil {
			return "", err
		}
	}
	_, err := git(ctx, r.Dir, nil, "update-ref", "refs/heads/"+Branch, published)
	return published, err
}

func (r Repository) bump(ctx context.Context, commit string, images map[string]string) (string, error) {
	old, err := gitBytes(ctx, r.Dir, nil, nil, "cat-file", "blob", commit+":"+r.ImagesFile)
	if err != nil {
		return "", err
	}
	updated, err := SetDigests(old, images)
	if err != nil {
		return "", fmt.Errorf("%s at %.12s: %w", r.ImagesFile, commit, err)
	}
	blob, err := gitBytes(ctx, r.Dir, nil, updated, "hash-object", "-w", "--stdin")
	if err != nil {
		return "", err
	}
	// read-tree replaces what is in it. There is only one writer.
	env := []string{"GIT_INDEX_FILE=" + filepath.Join(r.Dir, "index.publish")}
	date, err := git(ctx, r.Dir, nil, "show", "--no-patch", "--format=%cI", commit)
	if err != nil {
		return "", err
	}
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		env = append(env, "GIT_"+who+"_NAME=tools/local", "GIT_"+who+"_EMAIL=tools-local@localhost", "GIT_"+who+"_DATE="+date)
	}
	if _, err := git(ctx, r.Dir, env, "read-tree", commit); err != nil {
		return "", err
	}
	entry := "100644," + strings.TrimSpace(string(blob)) + "," + r.ImagesFile
	if _, err := git(ctx, r.Dir, env, "update-index", "--cacheinfo", entry); err != nil {
		return "", err
	}
	tree, err := git(ctx, r.Dir, env, "write-tree")
	if err != nil {
		return "", err
	}
	return git(ctx, r.Dir, env, "commit-tree", tree, "-p", commit, "-m", fmt.Sprintf("local: deploy the images of %.12s", commit))
}

// git runs git in dir and returns what it prints, without the last newline.
func git(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	out, err := gitBytes(ctx, dir, env, nil, args...)
	return strings.TrimRight(string(out), "\n"), err
}

func gitBytes(ctx context.Context, dir string, env []string, stdin []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	// Variables of a hook or an editor that point at another repository are not for these commands.
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "GIT_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("git %s: %w: %s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
