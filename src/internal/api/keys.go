package api

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Keys are the keys of callers, from a file with one key per line:
//
//	name:<SHA-256 of the key, in hex>
//
// Empty lines and lines that start with # are skipped. A name may have several keys, so that one can be replaced while
// the other still works. The file holds hashes, so whoever reads it cannot call the API.
//
// The file is read again when it changes, at the latest a second later. A file that is gone or malformed changes
// nothing: the keys stay as they were, and the log says so.
type Keys struct {
	path string
	log  zerolog.Logger

	mu      sync.Mutex
	keys    []key
	content []byte    // of the file, as last read
	checked time.Time // when the file was last read
	failed  string    // what was wrong with it then
}

type key struct {
	name string
	hash [sha256.Size]byte
}

const (
	reloadEvery = time.Second
	maxKeysFile = 1 << 20
)

// LoadKeys reads the keys in the file at path.
func LoadKeys(path string, log zerolog.Logger) (*Keys, error) {
	content, err := readKeys(path)
	if err != nil {
		return nil, err
	}
	keys, err := parseKeys(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Keys{path: path, log: log, keys: keys, content: content, checked: time.Now()}, nil
}

// Caller returns the name of a key. Its time does not depend on how much of the key is right.
func (k *Keys) Caller(token string) (name string, ok bool) {
	hash := sha256.Sum256([]byte(token))
	for _, key := range k.current() {
		if subtle.ConstantTimeCompare(hash[:], key.hash[:]) == 1 {
			name, ok = key.name, true
		}
	}
	return name, ok
}

// current returns the keys in effect. It compares content and not times, because a secret may be swapped within the
// resolution of the file system's clock.
func (k *Keys) current() []key {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.checked) < reloadEvery {
		return k.keys
	}
	k.checked = time.Now()
	content, err := readKeys(k.path)
	if err == nil && !bytes.Equal(content, k.content) {
		var keys []key
		if keys, err = parseKeys(content); err == nil {
			k.keys, k.content = keys, content
			k.log.Info().Str("file", k.path).Int("keys", len(keys)).Msg("API keys changed")
		}
	}
	failed := ""
	if err != nil {
		failed = err.Error()
	}
	if failed != k.failed && err != nil {
		k.log.Error().Err(err).Str("file", k.path).Msg("API keys stay as they were")
	}
	k.failed = failed
	return k.keys
}

func readKeys(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxKeysFile+1))
	if err == nil && len(content) > maxKeysFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxKeysFile)
	}
	return content, err
}

// parseKeys reads the content of a file of keys. Errors name the line and not what is in it.
func parseKeys(content []byte) ([]key, error) {
	var keys []key
	n := 0
	for line := range strings.Lines(string(content)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, sum, _ := strings.Cut(line, ":")
		hash, err := hex.DecodeString(sum)
		if err != nil || len(hash) != sha256.Size || !validToken(name) {
			return nil, fmt.Errorf("line %d: want name:sha256, with a name of letters, digits, '-', '_' and '.', and 64 hex digits", n)
		}
		keys = append(keys, key{name, [sha256.Size]byte(hash)})
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return keys, nil
}
