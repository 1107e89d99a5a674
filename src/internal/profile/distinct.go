package profile

import (
	"github.com/axiomhq/hyperloglog"
	"github.com/cespare/xxhash/v2"
)

// distinct counts different values: one by one while there are up to maxExact, then with a HyperLogLog of 16 KiB. (That
// has a representation for few values itself, but growing out of it takes a tenth of a second for each column.)
type distinct struct {
	exact  map[uint64]struct{} // hashes of the values
	sketch *hyperloglog.Sketch
}

func (d *distinct) add(s string) {
	// Not the hash of hash/maphash: that differs from process to process, and a second attempt at a job would come to
	// another result.
	h := xxhash.Sum64String(s)
	if d.sketch != nil {
		d.sketch.InsertHash(h)
		return
	}
	if d.exact == nil {
		d.exact = map[uint64]struct{}{}
	}
	d.exact[h] = struct{}{}
	if len(d.exact) <= maxExact {
		return
	}
	d.sketch = hyperloglog.NewNoSparse()
	for h := range d.exact {
		d.sketch.InsertHash(h)
	}
	d.exact = nil
}

func (d *distinct) count() uint64 {
	if d.sketch != nil {
		return d.sketch.Estimate()
	}
	return uint64(len(d.exact))
}
