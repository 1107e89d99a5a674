package delivery

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestSetDigests(t *testing.T) {
	t.Parallel()
	a, b := digest("a"), digest("b")
	for _, test := range []struct {
		name, file string
		digests    map[string]string
		want       string
	}{
		{"all of a file", images, map[string]string{"backend-api": a, "worker": b}, strings.NewReplacer(digest("1"), a, digest("2"), b).Replace(images)},
		{"one of two", images, map[string]string{"worker": b}, strings.ReplaceAll(images, digest("2"), b)},
		{"nothing", images, nil, images},
		{"the same", images, map[string]string{"worker": digest("2")}, images},
		{
			"a placeholder, other keys around it, no newline at the end",
			"x: 1\nimages:\n- digest: sha256:0   # soon\n  name: worker\n\n- name: other\n  newTag: v1\n# end",
			map[string]string{"worker": a},
			"x: 1\nimages:\n- digest: " + a + "   # soon\n  name: worker\n\n- name: other\n  newTag: v1\n# end",
		},
		{"lines that end as on Windows", "images:\r\n- name: worker\r\n  digest: sha256:0\r\n", map[string]string{"worker": a}, "images:\r\n- name: worker\r\n  digest: " + a + "\r\n"},
		{"a name that begins like another", "images:\n- {name: work, digest: sha256:0}\n- {name: worker, digest: sha256:1}\n", map[string]string{"worker": a}, "images:\n- {name: work, digest: sha256:0}\n- {name: worker, digest: " + a + "}\n"},
		{"two in a line", "images: [{name: api, digest: sha256:0}, {name: worker, digest: sha256:1}]\n", map[string]string{"api": a, "worker": b}, "images: [{name: api, digest: " + a + "}, {name: worker, digest: " + b + "}]\n"},
		{"more than ASCII before it", "images:\n- {newName: zürich, name: worker, digest: sha256:0}\n", map[string]string{"worker": a}, "images:\n- {newName: zürich, name: worker, digest: " + a + "}\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			before := []byte(test.file)
			got, err := SetDigests(before, test.digests)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
			if string(before) != test.file {
				t.Error("the input was changed")
			}
		})
	}
}

func TestSetDigestsErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, file string
		want       []string
	}{
		{"no entry", "images:\n- name: other\n  digest: sha256:0\n", []string{"images", "worker"}},
		{"no images", "kind: Component\n", []string{"images", "worker"}},
		{"empty", "", []string{"images", "worker"}},
		{"a tag", "images:\n- name: worker\n  newTag: v1\n", []string{"worker", "digest: sha256:"}},
		{"a quoted digest", "images:\n- name: worker\n  digest: 'sha256:0'\n", []string{"worker", "plain"}},
		{"a digest in a block", "images:\n- name: worker\n  digest: >-\n    sha256:0\n", []string{"worker", "plain"}},
		{"a list for a digest", "images:\n- name: worker\n  digest: [sha256:0]\n", []string{"worker", "plain"}},
		{"no YAML", "images: [", []string{"yaml"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := SetDigests([]byte(test.file), map[string]string{"worker": digest("a")})
			if err == nil {
				t.Fatalf("no error, and %q", got)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
		})
	}
}

// The component of each environment has what is needed for every image of the platform.
func TestSetDigestsOfThisRepository(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../../../apps/overlays/*/images/kustomization.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v; want a component for each environment", files, err)
	}
	digests := map[string]string{}
	for _, s := range Services {
		digests[s] = digest("a")
	}
	for _, file := range files {
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		after, err := SetDigests(before, digests)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		var c struct {
			Images []struct{ Name, Digest string }
		}
		if err := yaml.Unmarshal(after, &c); err != nil {
			t.Fatal(err)
		}
		for _, image := range c.Images {
			if digests[image.Name] != image.Digest {
				t.Errorf("%s: %s has %s", file, image.Name, image.Digest)
			}
		}
		if bytes.Count(before, []byte("\n")) != bytes.Count(after, []byte("\n")) {
			t.Errorf("%s has another number of lines", file)
		}
	}
}
