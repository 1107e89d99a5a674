package profile

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/DataDog/sketches-go/ddsketch"
	"github.com/DataDog/sketches-go/ddsketch/mapping"
	"github.com/DataDog/sketches-go/ddsketch/store"
)

// The types of values, as a set.
const (
	isBoolean = 1 << iota
	isInteger
	isNumber
	isDate
	isTimestamp
	isString
)

// column gathers what there is to say about a column, in bounded memory.
type column struct {
	name     string
	nulls    int64
	types    int // of the values so far
	distinct distinct
	numbers  numbers

	minLength, maxLength int
	minTime, maxTime     time.Time // of timestamps
	minDate, maxDate     string    // dates sort as strings
}

func (c *column) init(name string) {
	c.name = name
	c.minLength = math.MaxInt
}

// add takes in a value. It does not keep the value's memory.
func (c *column) add(s string) {
	if isNull(s) {
		c.nulls++
		return
	}
	c.distinct.add(s)
	length := utf8.RuneCountInString(s)
	c.minLength, c.maxLength = min(c.minLength, length), max(c.maxLength, length)
	if !c.isString() {
		c.types |= c.classify(s)
	}
}

// isString reports whether the column's type is string, whatever may come.
func (c *column) isString() bool {
	switch c.types {
	case 0, isBoolean, isInteger, isNumber, isInteger | isNumber, isDate, isTimestamp:
		return false
	}
	return true
}

// classify returns the type of s, and takes s in as a value of that type.
func (c *column) classify(s string) int {
	switch first := s[0]; {
	case first == 't' || first == 'T' || first == 'f' || first == 'F':
		if strings.EqualFold(s, "true") || strings.EqualFold(s, "false") {
			return isBoolean
		}
	case first >= '0' && first <= '9' || first == '-' || first == '.':
		integer, number := numeric(s)
		if integer {
			if i, err := strconv.ParseInt(s, 10, 64); err == nil {
				c.numbers.addInteger(i)
				return isInteger
			}
		}
		if number {
			if f, err := strconv.ParseFloat(s, 64); err == nil { // an error is an overflow
				c.numbers.add(f)
				return isNumber
			}
		}
		if len(s) < len("2006-01-02") || s[4] != '-' {
			break
		}
		if len(s) == len("2006-01-02") {
			if _, err := time.Parse(time.DateOnly, s); err == nil {
				if c.minDate == "" || s < c.minDate {
					c.minDate = strings.Clone(s)
				}
				if s > c.maxDate {
					c.maxDate = strings.Clone(s)
				}
				return isDate
			}
			break
		}
		if t, ok := timestamp(s); ok {
			if c.types&isTimestamp == 0 || t.Before(c.minTime) {
				c.minTime = t
			}
			if c.types&isTimestamp == 0 || t.After(c.maxTime) {
				c.maxTime = t
			}
			return isTimestamp
		}
	}
	return isString
}

func isNull(s string) bool {
	switch len(s) {
	case 0:
		return true
	case 2:
		return strings.EqualFold(s, "NA")
	case 3:
		return strings.EqualFold(s, "N/A")
	case 4:
		return strings.EqualFold(s, "NULL")
	}
	return false
}

// numeric reports whether s is written like an integer, and whether it is written like a number. strconv alone would
// take more: plus signs, hexadecimal digits, underscores, infinities.
func numeric(s string) (integer, number bool) {
	i := 0
	digits := func() (n int) {
		for start := i; ; i++ {
			if i == len(s) || s[i] < '0' || s[i] > '9' {
				return i - start
			}
		}
	}
	at := func(c byte) bool { return i < len(s) && s[i] == c }
	if at('-') {
		i++
	}
	zero := at('0')
	whole := digits()
	if zero && whole > 1 {
		return false, false
	}
	if i == len(s) {
		return whole > 0, whole > 0
	}
	fraction := 0
	if at('.') {
		i++
		fraction = digits()
	}
	if whole+fraction == 0 {
		return false, false
	}
	if at('e') || at('E') {
		i++
		if at('-') || at('+') {
			i++
		}
		if digits() == 0 {
			return false, false
		}
	}
	return false, i == len(s)
}

// timestamp reads a date and a time of day, as the package comment says.
func timestamp(s string) (time.Time, bool) {
	const shortest, longest = len("2006-01-02T15:04:05"), len("2006-01-02T15:04:05.000000000+00:00")
	if len(s) < shortest || len(s) > longest || s[10] != 'T' && s[10] != ' ' {
		return time.Time{}, false
	}
	if zoned := strings.ContainsAny(s[shortest:], "Z+-"); !zoned {
		s += "Z"
	}
	if s[10] == ' ' {
		s = s[:10] + "T" + s[11:]
	}
	t, err := time.Parse(time.RFC3339, s)
	return t.UTC(), err == nil
}

// result returns what there is to say.
func (c *column) result() (Column, error) {
	r := Column{Name: c.name, Nulls: c.nulls, Distinct: c.distinct.count()}
	var err error
	switch c.types {
	case 0:
		r.Type = "null"
	case isBoolean:
		r.Type = "boolean"
	case isInteger:
		r.Type = "integer"
		r.Min, r.Max = c.numbers.minInteger, c.numbers.maxInteger
		err = c.numbers.describe(&r)
	case isNumber, isInteger | isNumber:
		r.Type = "number"
		r.Min, r.Max = c.numbers.min, c.numbers.max
		err = c.numbers.describe(&r)
	case isDate:
		r.Type = "date"
		r.Min, r.Max = c.minDate, c.maxDate
	case isTimestamp:
		r.Type = "timestamp"
		r.Min, r.Max = c.minTime.Format(time.RFC3339Nano), c.maxTime.Format(time.RFC3339Nano)
	default:
		r.Type = "string"
		r.MinLength, r.MaxLength = &c.minLength, &c.maxLength
	}
	return r, err
}

// maxExact is how many different values of a column are counted one by one. Beyond that, estimates have to do.
const maxExact = 1024

const (
	// accuracy is the relative error of estimated quantiles, and maxBins how many bins they may take for each sign. The
	// bins closest to zero are merged when there are more.
	accuracy = 0.01
	maxBins  = 2048
)

// numbers gathers the integers and numbers of a column.
type numbers struct {
	n                      int64
	min, max               float64
	minInteger, maxInteger int64
	mean, squares          float64 // Welford's algorithm: the sum of squares of the differences from the mean

	exact  map[float64]int64  // how often each number came, while there are few
	sketch *ddsketch.DDSketch // otherwise
}

func (n *numbers) addInteger(i int64) {
	if n.n == 0 {
		n.minInteger, n.maxInteger = i, i
	}
	n.minInteger, n.maxInteger = min(n.minInteger, i), max(n.maxInteger, i)
	n.add(float64(i))
}

func (n *numbers) add(f float64) {
	if n.n == 0 {
		n.min, n.max = f, f
		n.exact = map[float64]int64{}
	}
	n.n++
	n.min, n.max = min(n.min, f), max(n.max, f)
	// The conversions keep the compiler from fusing operations, which it does on some processors and not on others.
	delta := f - n.mean
	n.mean += float64(delta / float64(n.n))
	n.squares += float64(delta * float64(f-n.mean))

	if n.sketch != nil {
		n.estimate(f, 1)
		return
	}
	n.exact[f]++
	if len(n.exact) <= maxExact {
		return
	}
	m, err := mapping.NewLogarithmicMapping(accuracy)
	if err != nil {
		panic(err) // accuracy is a constant
	}
	n.sketch = ddsketch.NewDDSketch(m, store.NewCollapsingLowestDenseStore(maxBins), store.NewCollapsingLowestDenseStore(maxBins))
	for f, count := range n.exact {
		n.estimate(f, float64(count))
	}
	n.exact = nil
}

// estimate adds a number to the sketch. Those in the last percent before infinity count as the greatest it can take.
func (n *numbers) estimate(f, count float64) {
	limit := n.sketch.MaxIndexableValue()
	if err := n.sketch.AddWithCount(max(-limit, min(limit, f)), count); err != nil {
		panic(fmt.Sprintf("profile: sketch refuses %v: %v", f, err)) // f is finite and count positive
	}
}

// describe fills in what numbers have.
func (n *numbers) describe(r *Column) error {
	finite := func(f float64) *float64 {
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return nil
		}
		return &f
	}
	if r.Mean = finite(n.mean); r.Mean != nil {
		r.StdDev = finite(math.Sqrt(n.squares / float64(n.n)))
	}
	q, err := n.quantiles(10, 25, 50, 75, 90, 99)
	if err != nil {
		return err
	}
	r.Quantiles = &Quantiles{P10: q[0], P25: q[1], P50: q[2], P75: q[3], P90: q[4], P99: q[5]}
	return nil
}

// quantiles returns the least numbers that at least so many percent of all are not greater than.
func (n *numbers) quantiles(percents ...int64) ([]float64, error) {
	values := make([]float64, len(percents))
	if n.sketch != nil {
		for i, percent := range percents {
			v, err := n.sketch.GetValueAtQuantile(float64(percent) / 100)
			if err != nil {
				return nil, err
			}
			// Four digits are more than an estimate has. It may lie outside of what it estimates.
			if v, err = strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64); err != nil {
				return nil, err
			}
			values[i] = max(n.min, min(n.max, v))
		}
		return values, nil
	}
	sorted := slices.Sorted(maps.Keys(n.exact))
	for i, percent := range percents {
		rank := (percent*n.n + 99) / 100
		for _, f := range sorted {
			values[i] = f
			if rank -= n.exact[f]; rank <= 0 {
				break
			}
		}
	}
	return values, nil
}
