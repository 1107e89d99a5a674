package profile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"

	"aks-platform/src/internal/job"
)

// Summary is the result of Digest.
type Summary struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	// Lines counts line feeds, and a last line without one.
	Lines int64 `json:"lines"`
	// MediaType is what the first 512 bytes look like.
	MediaType string `json:"media_type"`
}

// Digest is the handler of jobs of kind digest. Any input will do.
func Digest(_ context.Context, in job.Input) ([]byte, error) {
	var s Summary
	sum := sha256.New()
	buf := make([]byte, 64<<10)
	n, err := io.ReadFull(in, buf)
	s.MediaType = http.DetectContentType(buf[:n])
	last := byte('\n')
	for {
		if n > 0 {
			sum.Write(buf[:n])
			s.Bytes += int64(n)
			s.Lines += int64(bytes.Count(buf[:n], []byte{'\n'}))
			last = buf[n-1]
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		} else if err != nil {
			return nil, err
		}
		n, err = in.Read(buf)
	}
	if last != '\n' {
		s.Lines++
	}
	s.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return json.Marshal(s)
}
