// Package kinds lists the kinds of job that the platform runs. To add one, write its handler and add a line here: the
// API accepts it, and the worker runs it.
package kinds

import (
	"aks-platform/src/internal/job"
	"aks-platform/src/internal/profile"
)

// All returns the kinds of job by name.
func All() map[string]job.Kind {
	return map[string]job.Kind{
		"csv-profile": {Run: profile.CSV, Options: profile.CSVOptions()},
		"digest":      {Run: profile.Digest},
	}
}
