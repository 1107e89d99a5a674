package delivery

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// SetDigests returns file, a Kustomize component with an `images` list, with the digest of each named image replaced.
// Every other byte stays as it is, so that a change of images is a diff of digests and nothing else. An image that the
// file does not have, or has without a digest, is an error.
func SetDigests(file []byte, digests map[string]string) ([]byte, error) {
	var doc struct {
		Images []struct {
			Name   string    `yaml:"name"`
			Digest yaml.Node `yaml:"digest"`
		} `yaml:"images"`
	}
	if err := yaml.Unmarshal(file, &doc); err != nil {
		return nil, err
	}
	missing := maps.Clone(digests)
	type edit struct {
		yaml.Node
		digest string
	}
	var edits []edit
	for _, image := range doc.Images {
		digest, ok := digests[image.Name]
		if !ok {
			continue
		}
		if image.Digest.Kind != yaml.ScalarNode || image.Digest.Style != 0 {
			return nil, fmt.Errorf("image %s: want a plain `digest: sha256:...`", image.Name)
		}
		edits = append(edits, edit{image.Digest, digest})
		delete(missing, image.Name)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("no entry in `images` for %v", slices.Sorted(maps.Keys(missing)))
	}
	// From the last to the first, so that an edit does not move the next.
	slices.SortFunc(edits, func(a, b edit) int { return -cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column)) })
	lines := bytes.SplitAfter(file, []byte("\n"))
	for _, e := range edits {
		line := lines[e.Line-1]
		at := 0
		for range e.Column - 1 { // columns count characters
			_, size := utf8.DecodeRune(line[at:])
			at += size
		}
		lines[e.Line-1] = slices.Concat(line[:at], []byte(e.digest), line[at+len(e.Value):])
	}
	return bytes.Join(lines, nil), nil
}
