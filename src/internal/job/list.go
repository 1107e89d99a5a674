package job

import (
	"context"
	"strings"

	"aks-platform/src/internal/store"
)

// Entry is a job in a listing.
type Entry struct {
	Spec
	Outcome *Outcome // nil if the job is pending
	// Err says that what is stored under the job's id is not a job. Only the id of Spec is then set.
	Err error
}

// List returns up to max jobs (1 to store.MaxList-1) whose ids are greater than after, in the order of their ids. If
// there are more, next is the id to go on after. It merges two listings, of inputs and of outcomes, which both go by id.
func List(ctx context.Context, s store.Store, after string, max int) (entries []Entry, next string, err error) {
	inputs, err := s.List(ctx, Inputs, Inputs+after, max+1)
	if err != nil || len(inputs) == 0 {
		return nil, "", err
	}
	id := func(i store.Info) string { return strings.TrimPrefix(i.Name, Inputs) }
	if len(inputs) > max {
		inputs = inputs[:max]
		next = id(inputs[max-1])
	}
	outcomes, err := listOutcomes(ctx, s, after, id(inputs[len(inputs)-1]))
	if err != nil {
		return nil, "", err
	}
	for _, in := range inputs {
		e := Entry{Spec: Spec{ID: id(in)}}
		spec, err := ParseSpec(e.ID, in.Meta)
		if err != nil {
			e.Err = err
		} else {
			e.Spec = spec
			if out, ok := outcomes[spec.ResultName()]; ok {
				if o, err := ParseOutcome(out.Meta); err != nil {
					e.Err = err
				} else {
					e.Outcome = &o
				}
			}
		}
		entries = append(entries, e)
	}
	return entries, next, nil
}

// listOutcomes returns the outcome objects of the ids from after to last, by name.
func listOutcomes(ctx context.Context, s store.Store, after, last string) (map[string]store.Info, error) {
	found := map[string]store.Info{}
	for at := Results + after; ; {
		page, err := s.List(ctx, Results, at, store.MaxList)
		if err != nil {
			return nil, err
		}
		for _, o := range page {
			id, _, _ := strings.Cut(strings.TrimPrefix(o.Name, Results), "-")
			if id > last {
				return found, nil
			}
			found[o.Name] = o
		}
		if len(page) < store.MaxList {
			return found, nil
		}
		at = page[len(page)-1].Name
	}
}
