// Package profile has the handlers of the platform's jobs.
//
// # csv-profile
//
// CSV says what is in a table: how many rows, and for each column its type, how many values are missing and how many
// are different, the least and the greatest, the mean, the standard deviation and some quantiles.
//
// The input is UTF-8, with or without a byte order mark. The first record holds the names of the columns, and all
// others have as many fields. Quotes are as in RFC 4180; empty lines are skipped. An input that breaks these rules, or
// a limit below, is rejected with the number of the line.
//
// A value is missing if it is empty, or NULL, NA or N/A in any case. A column has the narrowest type that all its other
// values have:
//
//	boolean    true or false, in any case
//	integer    -12, in 64 bits; a leading zero or plus makes it a string, as in a postal code or phone number
//	number     an integer, -1.5, .5 or 1e-3, finite
//	date       2006-01-02
//	timestamp  2006-01-02T15:04:05Z, with or without a fraction; a space will do for the T, and without a zone it is UTC
//	string     anything
//	null       there is no value
//
// One pass over the input in bounded memory has to do for any size, so two figures are estimates in a column with more
// than 1024 different values, and exact otherwise: the number of different values is off by 0.8 % (standard error), and
// quantiles are within 1 % of the value. If the magnitudes in such a column span more than 17 powers of ten, those closest
// to zero are taken together.
//
// The result depends on nothing but the input and the program: no clock, no random seed.
//
// # digest
//
// Digest says of any input how long it is, its SHA-256, how many lines it has, and what type it looks like.
package profile

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"strings"
	"unicode/utf8"

	"aks-platform/src/internal/job"
)

// Limits of an input of CSV. Together with the size of the sketches they bound the memory of a job: at most 70 KiB per
// column, and a few times MaxRecord.
const (
	MaxRecord  = 1 << 20 // bytes of a record, its quotes and line end included
	MaxColumns = 512
	MaxName    = 256 // bytes of the name of a column
)

// CSVOptions returns the options of CSV and their values.
func CSVOptions() map[string][]string {
	return map[string][]string{"delimiter": {"comma", "semicolon", "tab", "pipe"}}
}

var delimiters = map[string]rune{"": ',', "comma": ',', "semicolon": ';', "tab": '\t', "pipe": '|'}

// Table is the result of CSV.
type Table struct {
	Rows    int64    `json:"rows"`
	Columns []Column `json:"columns"`
	Input   Source   `json:"input"`
}

// Source says which input a result is of.
type Source struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Column describes the values of a column. What does not apply to its type is absent.
type Column struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Nulls int64  `json:"nulls"`
	// Distinct is the number of different values, missing ones excluded.
	Distinct uint64 `json:"distinct"`

	Min any `json:"min,omitempty"` // of integers, numbers, dates and timestamps
	Max any `json:"max,omitempty"`

	Mean      *float64   `json:"mean,omitempty"`   // absent if it overflows
	StdDev    *float64   `json:"stddev,omitempty"` // of the population; absent if it overflows
	Quantiles *Quantiles `json:"quantiles,omitempty"`

	MinLength *int `json:"min_length,omitempty"` // of strings, in characters
	MaxLength *int `json:"max_length,omitempty"`
}

// Quantiles are numbers of a column: P10 is the least that at least a tenth of them are not greater than.
type Quantiles struct {
	P10 float64 `json:"p10"`
	P25 float64 `json:"p25"`
	P50 float64 `json:"p50"`
	P75 float64 `json:"p75"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
}

// CSV is the handler of jobs of kind csv-profile.
func CSV(_ context.Context, in job.Input) ([]byte, error) {
	src := &source{r: in, sum: sha256.New(), limit: MaxRecord + readAhead}
	r, err := newCSVReader(src, in.Options["delimiter"])
	if err != nil {
		return nil, err
	}
	head, err := r.read()
	if err == io.EOF {
		return nil, job.Reject("the input is empty; want a first line with the names of the columns")
	} else if err != nil {
		return nil, err
	}
	columns, err := newColumns(head, r.line)
	if err != nil {
		return nil, err
	}
	table := Table{Columns: make([]Column, len(columns))}
	for {
		record, err := r.read()
		if err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		table.Rows++
		for i, value := range record {
			columns[i].add(value)
		}
	}
	for i := range columns {
		if table.Columns[i], err = columns[i].result(); err != nil {
			return nil, err
		}
	}
	table.Input = Source{Bytes: src.n, SHA256: hex.EncodeToString(src.sum.Sum(nil))}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // names of columns are for people
	if err := enc.Encode(table); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func newColumns(head []string, line int) ([]column, error) {
	if len(head) > MaxColumns {
		return nil, job.Reject("line %d: %d columns; at most %d are allowed", line, len(head), MaxColumns)
	}
	columns := make([]column, len(head))
	for i, name := range head {
		if len(name) > MaxName {
			return nil, job.Reject("line %d: the name of column %d is longer than %d bytes", line, i+1, MaxName)
		}
		columns[i].init(strings.Clone(name)) // the record's memory is not kept
	}
	return columns, nil
}

// readAhead is how much is read at once.
const readAhead = 64 << 10

// csvReader reads the records of a source within the limits.
type csvReader struct {
	csv    *csv.Reader
	src    *source
	fields int   // of each record
	line   int   // of the start of the last record
	next   int   // line after the last record
	end    int64 // offset of the end of the last record
}

func newCSVReader(src *source, delimiter string) (*csvReader, error) {
	buf := bufio.NewReaderSize(src, readAhead)
	start, err := buf.Peek(3)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(start, []byte("\xEF\xBB\xBF")):
		if _, err := buf.Discard(3); err != nil {
			return nil, err
		}
	case bytes.HasPrefix(start, []byte("\xFF\xFE")), bytes.HasPrefix(start, []byte("\xFE\xFF")):
		return nil, job.Reject("line 1: the input is UTF-16; want UTF-8")
	}
	r := &csvReader{csv: csv.NewReader(buf), src: src, next: 1}
	r.csv.Comma = delimiters[delimiter]
	r.csv.ReuseRecord = true
	r.csv.FieldsPerRecord = -1 // read counts them itself, to say what it expected
	return r, nil
}

// read returns the next record; its memory is used again by the next call.
func (r *csvReader) read() ([]string, error) {
	// encoding/csv holds a whole record in memory, and a quote that is never closed makes one of all that follows. So the
	// source ends early when a record cannot be within the limit any more.
	r.src.limit = r.end + MaxRecord + 2*readAhead
	record, err := r.csv.Read()
	var syntax *csv.ParseError
	switch {
	case errors.As(err, &syntax) && syntax.StartLine != syntax.Line:
		return nil, job.Reject("line %d: %v, in a record that starts at line %d", syntax.Line, syntax.Err, syntax.StartLine)
	case errors.As(err, &syntax):
		return nil, job.Reject("line %d: %v", syntax.Line, syntax.Err)
	case errors.Is(err, errTooLong):
		return nil, r.tooLong()
	case err != nil:
		return nil, err
	}
	start := r.end
	r.end = r.csv.InputOffset()
	if r.end-start > MaxRecord {
		return nil, r.tooLong()
	}
	r.line, _ = r.csv.FieldPos(0)
	last, _ := r.csv.FieldPos(len(record) - 1)
	r.next = last + strings.Count(record[len(record)-1], "\n") + 1
	switch {
	case r.fields == 0:
		r.fields = len(record)
	case r.fields != len(record):
		return nil, job.Reject("line %d: the record has %d fields, and the first line has %d", r.line, len(record), r.fields)
	}
	for i, value := range record {
		if !utf8.ValidString(value) {
			return nil, job.Reject("line %d: field %d is not UTF-8", r.line, i+1)
		}
	}
	return record, nil
}

func (r *csvReader) tooLong() error {
	return job.Reject("line %d: the record that starts here is longer than %d bytes; perhaps a quote is not closed", r.next, MaxRecord)
}

var errTooLong = errors.New("record is too long")

// source passes on the bytes of an input up to a limit, and keeps account of them.
type source struct {
	r     io.Reader
	sum   hash.Hash
	n     int64 // bytes passed on
	limit int64
}

func (s *source) Read(p []byte) (int, error) {
	if s.n >= s.limit {
		return 0, errTooLong
	}
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	s.n += int64(n)
	return n, err
}
