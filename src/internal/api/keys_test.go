package api

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"aks-platform/src/internal/job"
)

func line(name, key string) string { return fmt.Sprintf("%s:%x\n", name, sha256.Sum256([]byte(key))) }

func writeKeys(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// expire makes the next call read the file again.
func (k *Keys) expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.checked = time.Time{}
}

func TestAuthentication(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, "# callers\n\n"+line("alice", "a-key")+line("alice", "next-key")+line("bob", "b-key"))
	var keys *Keys
	f := serve(t, func(f *fixture) {
		var err error
		if keys, err = LoadKeys(path, f.Log); err != nil {
			t.Fatal(err)
		}
		f.Keys = keys
	})
	for _, header := range [][]string{
		nil, {"Authorization", ""}, {"Authorization", "Bearer"}, {"Authorization", "Bearer "}, {"Authorization", "Bearer wrong"},
		{"Authorization", "Basic a-key"}, {"Authorization", "a-key"}, {"Authorization", "Bearer a-key " + "x"},
		{"Authorization", fmt.Sprintf("Bearer %x", sha256.Sum256([]byte("a-key")))}, // the hash is no key
	} {
		for _, path := range []string{"/v1/jobs", "/v1/jobs/" + job.NewID(), "/nothing"} {
			r := f.do("GET", path, nil, header...)
			f.wantProblem(r, 401, "Bearer")
			if !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Bearer") {
				t.Error("no WWW-Authenticate")
			}
		}
	}
	if ids := f.inputs(); len(ids) != 0 {
		t.Errorf("jobs are %q", ids)
	}
	bearer := func(key string) []string { return []string{"Authorization", "Bearer " + key, "Idempotency-Key", "k"} }
	alice := f.accepted(f.post("x", bearer("a-key")...))
	if next := f.accepted(f.post("x", "Authorization", "bearer next-key", "Idempotency-Key", "k")); next.ID != alice.ID {
		t.Error("the second key of a caller is another caller")
	}
	if bob := f.accepted(f.post("another", bearer("b-key")...)); bob.ID == alice.ID {
		t.Error("two callers with one idempotency key share a job")
	}
	if !strings.Contains(f.log.String(), `"caller":"bob"`) {
		t.Error("the log does not say who called")
	}

	// Rotation: the old key goes, a new one comes.
	writeKeys(t, path, line("alice", "next-key")+line("carol", "c-key"))
	keys.expire()
	f.wantProblem(f.post("x", bearer("a-key")...), 401, "")
	f.accepted(f.post("x", bearer("next-key")...))
	f.accepted(f.post("x", bearer("c-key")...))

	// A damaged or missing file changes nothing, and the log says so once.
	writeKeys(t, path, "alice:nonsense\n")
	for range 3 {
		keys.expire()
		f.accepted(f.post("x", bearer("c-key")...))
	}
	if n := strings.Count(f.log.String(), "stay as they were"); n != 1 {
		t.Errorf("the log tells %d times of a damaged file", n)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	keys.expire()
	f.accepted(f.post("x", bearer("c-key")...))
	for _, secret := range []string{"a-key", "next-key", "c-key", "nonsense"} {
		if strings.Contains(f.log.String(), secret) {
			t.Errorf("the log contains %q", secret)
		}
	}
}

// A change is seen with no restart and no call to expire.
func TestKeysReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, line("alice", "old"))
	keys, err := LoadKeys(path, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	writeKeys(t, path, line("alice", "new"))
	poll(t, "the new key works", func() bool {
		name, ok := keys.Caller("new")
		return ok && name == "alice"
	})
	if _, ok := keys.Caller("old"); ok {
		t.Error("the old key still works")
	}
}

func TestLoadKeys(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	path := filepath.Join(t.TempDir(), "keys")
	for content, want := range map[string]string{
		"":                                 "no key",
		"# only a comment\n":               "no key",
		"alice\n":                          "line 1",
		"alice:" + hash[2:] + "\n":         "line 1",
		"alice:" + hash + "00\n":           "line 1",
		"\n# x\nalice:" + hash[1:] + "g":   "line 3",
		":" + hash:                         "line 1",
		"al ice:" + hash:                   "line 1",
		strings.Repeat("#", maxKeysFile+1): "larger",
	} {
		writeKeys(t, path, content)
		if _, err := LoadKeys(path, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want an error with %q", content, err, want)
		} else if strings.Contains(err.Error(), hash[:8]) {
			t.Errorf("the error repeats a hash: %v", err)
		}
	}
	writeKeys(t, path, "alice:"+strings.ToUpper(hash)+"\r\n")
	if _, err := LoadKeys(path, zerolog.Nop()); err != nil {
		t.Errorf("upper case and CRLF: %v", err)
	}
	if _, err := LoadKeys(path+"-missing", zerolog.Nop()); err == nil {
		t.Error("a missing file was loaded")
	}
}
