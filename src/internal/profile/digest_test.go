package profile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"aks-platform/src/internal/job"
)

func TestDigest(t *testing.T) {
	long := strings.Repeat("line\n", 40_000) + "end"
	for name, c := range map[string]struct {
		in    string
		lines int
		media string
	}{
		"nothing":               {"", 0, "text/plain; charset=utf-8"},
		"a line":                {"hello\n", 1, "text/plain; charset=utf-8"},
		"a line without an end": {"hello", 1, "text/plain; charset=utf-8"},
		"two lines":             {"a\nb", 2, "text/plain; charset=utf-8"},
		"longer than a buffer":  {long, 40_001, "text/plain; charset=utf-8"},
		"PNG":                   {"\x89PNG\x0D\x0A\x1A\x0A....", 3, "image/png"},
	} {
		t.Run(name, func(t *testing.T) {
			want := fmt.Sprintf(`{"bytes":%d,"sha256":"%x","lines":%d,"media_type":"%s"}`, len(c.in), sha256.Sum256([]byte(c.in)), c.lines, c.media)
			for _, r := range []io.Reader{strings.NewReader(c.in), iotest.HalfReader(strings.NewReader(c.in)), iotest.DataErrReader(strings.NewReader(c.in))} {
				if out, err := Digest(t.Context(), job.Input{Reader: r}); err != nil || string(out) != want {
					t.Errorf("got %s, %v\nwant %s", out, err, want)
				}
			}
		})
	}
	broken := errors.New("storage is down")
	for _, before := range []string{"", long} {
		if _, err := Digest(t.Context(), job.Input{Reader: io.MultiReader(strings.NewReader(before), iotest.ErrReader(broken))}); !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v, want the reader's error", len(before), err)
		}
	}
}
