package profile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"aks-platform/src/internal/job"
)

// profileOf returns the profile of a table.
func profileOf(t *testing.T, in io.Reader, options map[string]string) Table {
	t.Helper()
	out, err := CSV(t.Context(), job.Input{Reader: in, Options: options})
	if err != nil {
		t.Fatal(err)
	}
	var table Table
	dec := json.NewDecoder(bytes.NewReader(out))
	dec.UseNumber() // integers are exact
	dec.DisallowUnknownFields()
	if err := dec.Decode(&table); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return table
}

// columnOf returns the profile of a column with these values.
func columnOf(t *testing.T, values ...string) Column {
	t.Helper()
	return profileOf(t, strings.NewReader("c,x\n"+strings.Join(values, ",x\n")+",x\n"), nil).Columns[0]
}

func TestCSVGolden(t *testing.T) {
	const input = "id,price,active,day,seen,note,empty\r\n" +
		"1,1.5,true,2026-01-02,2026-01-02T10:00:00Z,\"a, \"\"quoted\"\"\nnote\",\r\n" +
		"\r\n" +
		"2,NULL,FALSE,2025-12-31,2026-01-02 09:30:00.5,caf\u00e9 <&>,\r\n" +
		"3,9,true,na,2026-01-02T12:00:00+02:00,,N/A\r\n"
	out, err := CSV(t.Context(), job.Input{Reader: strings.NewReader(input)})
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{
 "rows": 3,
 "columns": [
  {"name": "id", "type": "integer", "nulls": 0, "distinct": 3, "min": 1, "max": 3, "mean": 2, "stddev": 0.816496580927726,
   "quantiles": {"p10": 1, "p25": 1, "p50": 2, "p75": 3, "p90": 3, "p99": 3}},
  {"name": "price", "type": "number", "nulls": 1, "distinct": 2, "min": 1.5, "max": 9, "mean": 5.25, "stddev": 3.75,
   "quantiles": {"p10": 1.5, "p25": 1.5, "p50": 1.5, "p75": 9, "p90": 9, "p99": 9}},
  {"name": "active", "type": "boolean", "nulls": 0, "distinct": 2},
  {"name": "day", "type": "date", "nulls": 1, "distinct": 2, "min": "2025-12-31", "max": "2026-01-02"},
  {"name": "seen", "type": "timestamp", "nulls": 0, "distinct": 3, "min": "2026-01-02T09:30:00.5Z", "max": "2026-01-02T10:00:00Z"},
  {"name": "note", "type": "string", "nulls": 1, "distinct": 2, "min_length": 8, "max_length": 16},
  {"name": "empty", "type": "null", "nulls": 3, "distinct": 0}
 ],
 "input": {"bytes": %d, "sha256": "%x"}
}`, len(input), sha256.Sum256([]byte(input)))
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(want)); err != nil {
		t.Fatal(err)
	}
	got := strings.TrimSpace(string(out))
	if got != compact.String() {
		t.Errorf("got  %s\nwant %s", got, &compact)
	}
}

// A byte order mark is part of the input, and not of the first name.
func TestByteOrderMark(t *testing.T) {
	const in = "\xEF\xBB\xBFa\n1\n"
	table := profileOf(t, strings.NewReader(in), nil)
	if want := (Source{int64(len(in)), fmt.Sprintf("%x", sha256.Sum256([]byte(in)))}); table.Input != want || table.Columns[0].Name != "a" {
		t.Errorf("got %+v, want input %+v and column a", table, want)
	}
}

func TestTypes(t *testing.T) {
	for _, c := range []struct {
		want   string
		values []string
	}{
		{"null", []string{"", "NULL", "null", "NA", "na", "N/A", "n/a"}},
		{"boolean", []string{"true", "FALSE", "True", ""}},
		{"integer", []string{"0", "-0", "-12", "9223372036854775807", "-9223372036854775808", "NA"}},
		{"number", []string{"1", "9223372036854775808"}},
		{"number", []string{"0.5", ".5", "5.", "-1e-3", "1E+9", "0e0", "0.0"}},
		{"date", []string{"2026-02-28", "1999-12-31", ""}},
		{"timestamp", []string{"2026-01-02T03:04:05Z", "2026-01-02 03:04:05", "2026-01-02T03:04:05.123456789+05:30", "2026-01-02 03:04:05-08:00"}},
		{"string", []string{"true", "1"}},
		{"string", []string{"1", "2026-01-01"}},
		{"string", []string{"2026-01-01", "2026-01-02T03:04:05Z"}},
		{"string", []string{"007"}},
		{"string", []string{"-01"}},
		{"string", []string{"+49"}},
		{"string", []string{" 1"}},
		{"string", []string{"1 "}},
		{"string", []string{"0x10"}},
		{"string", []string{"1_000"}},
		{"string", []string{"Inf"}},
		{"string", []string{"-inf"}},
		{"string", []string{"NaN"}},
		{"string", []string{"1e999"}},
		{"string", []string{"1e"}},
		{"string", []string{"-"}},
		{"string", []string{"."}},
		{"string", []string{"-."}},
		{"string", []string{"1.2.3"}},
		{"string", []string{"truest"}},
		{"string", []string{"2026-02-30"}},
		{"string", []string{"2026-1-2"}},
		{"string", []string{"2026-01-02T25:00:00Z"}},
		{"string", []string{"2026-01-02x03:04:05Z"}},
		{"string", []string{"2026-01-02T03:04:05ZZ"}},
	} {
		if got := columnOf(t, c.values...); got.Type != c.want {
			t.Errorf("%q have type %s, want %s", c.values, got.Type, c.want)
		}
	}
}

// What a type says of its values, it says whatever their order.
func TestOrderDoesNotMatter(t *testing.T) {
	values := []string{"-5", "3", "1.25", "", "1e3", "3", "-5"}
	want := columnOf(t, values...)
	for range 20 {
		rand.Shuffle(len(values), func(i, j int) { values[i], values[j] = values[j], values[i] })
		got := columnOf(t, values...)
		got.Mean, got.StdDev = want.Mean, want.StdDev // depend on it in the last digit
		if fmt.Sprint(got.Min, got.Max, *got.Quantiles, got.Distinct, got.Nulls) != fmt.Sprint(want.Min, want.Max, *want.Quantiles, want.Distinct, want.Nulls) {
			t.Fatalf("%q: %+v, want %+v", values, got, want)
		}
	}
}

func TestIntegersAreExact(t *testing.T) {
	c := columnOf(t, "9223372036854775807", "-9223372036854775808")
	if fmt.Sprint(c.Min) != "-9223372036854775808" || fmt.Sprint(c.Max) != "9223372036854775807" {
		t.Errorf("from %v to %v", c.Min, c.Max)
	}
}

// Numbers near the end of the range overflow sums; the result is still JSON, and says what it can.
func TestOverflow(t *testing.T) {
	values := []string{"1.7976931348623157e308", "-1.7976931348623157e308", "5e-324", "0"}
	for range 2 * maxExact { // into the sketch
		values = append(values, fmt.Sprint(rand.Float64()*1e308))
	}
	c := columnOf(t, values...)
	if c.Type != "number" || c.Mean != nil || c.StdDev != nil {
		t.Errorf("got %+v, want a number without a mean", c)
	}
	if fmt.Sprint(c.Min) != "-1.7976931348623157e+308" || fmt.Sprint(c.Max) != "1.7976931348623157e+308" || c.Quantiles == nil {
		t.Errorf("from %v to %v, quantiles %v", c.Min, c.Max, c.Quantiles)
	}
}

func TestDelimiters(t *testing.T) {
	for option, c := range map[string]string{"": ",", "comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"} {
		options := map[string]string{}
		if option != "" {
			options["delimiter"] = option
		}
		table := profileOf(t, strings.NewReader(strings.ReplaceAll("a~b\n1~2\n", "~", c)), options)
		if len(table.Columns) != 2 {
			t.Errorf("delimiter %q: %d columns", option, len(table.Columns))
		}
	}
	for _, allowed := range CSVOptions()["delimiter"] {
		if delimiters[allowed] == 0 {
			t.Errorf("the API allows delimiter %q, and CSV does not know it", allowed)
		}
	}
}

func TestRejects(t *testing.T) {
	record := strings.Repeat("x", MaxRecord)
	for name, c := range map[string]struct {
		in   string
		want string
	}{
		"nothing":            {"", "the input is empty"},
		"only empty lines":   {"\n\n\n", "the input is empty"},
		"only a BOM":         {"\xEF\xBB\xBF", "the input is empty"},
		"UTF-16 LE":          {"\xFF\xFEa\x00\n\x00", "line 1: the input is UTF-16"},
		"UTF-16 BE":          {"\xFE\xFF\x00a\x00\n", "line 1: the input is UTF-16"},
		"not UTF-8":          {"a,b\n1,2\n3,\xff\n", "line 3: field 2 is not UTF-8"},
		"name not UTF-8":     {"a,\xff\n", "line 1: field 2 is not UTF-8"},
		"too few fields":     {"a,b\n1,2\n\n\"x\ny\",2\n3\n", "line 6: the record has 1 fields, and the first line has 2"},
		"too many fields":    {"a,b\n1,2,3\n", "line 2: the record has 3 fields, and the first line has 2"},
		"bare quote":         {"a,b\n1,2\n3,4\"5\n", `line 3: bare " in non-quoted-field`},
		"text after a quote": {"a,b\n\"1\"x,2\n", "line 2: extraneous"},
		"open quote":         {"a,b\n1,\"2\n3,4\n5,6\n", "in a record that starts at line 2"},
		"open quote at end":  {"a,b\n1,\"2", "line 2: extraneous"},
		"long record":        {"a\n1\n2\n" + record + "\n", "line 4: the record that starts here is longer than 1048576 bytes"},
		"long in quotes":     {"a\n1\n\"" + strings.Repeat(record[:100]+"\n", MaxRecord/50), "line 3: the record that starts here is longer"},
		"long header":        {record + "y\n1\n", "line 1: the record that starts here is longer"},
		"many columns":       {strings.Repeat("c,", MaxColumns) + "c\n", "line 1: 513 columns; at most 512"},
		"long name":          {"a," + record[:MaxName+1] + "\n", "line 1: the name of column 2 is longer than 256 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := CSV(t.Context(), job.Input{Reader: strings.NewReader(c.in)})
			var rejected job.Rejected
			if !errors.As(err, &rejected) || !strings.Contains(rejected.Reason, c.want) {
				t.Errorf("got %.200v, want a rejection with %q", err, c.want)
			}
		})
	}
	// And what is just within the limits.
	for name, in := range map[string]string{
		"long record":  "a\n" + record[:MaxRecord-1] + "\n",
		"many columns": strings.Repeat("c,", MaxColumns-1) + "c\n",
		"long name":    record[:MaxName] + "\n",
		"no rows":      "a,b",
		"no last line": "a\n1",
	} {
		if _, err := CSV(t.Context(), job.Input{Reader: strings.NewReader(in)}); err != nil {
			t.Errorf("%s within the limit: %v", name, err)
		}
	}
}

// A storage that fails is not the input's fault.
func TestReadErrorIsNoRejection(t *testing.T) {
	broken := errors.New("storage is down")
	for _, before := range []string{"", "a,b\n", "a,b\n1,2\n", "a,b\n\"open"} {
		_, err := CSV(t.Context(), job.Input{Reader: io.MultiReader(strings.NewReader(before), iotest.ErrReader(broken))})
		var rejected job.Rejected
		if !errors.Is(err, broken) || errors.As(err, &rejected) {
			t.Errorf("after %q: %v, want the reader's error", before, err)
		}
	}
}

// endless returns an infinite text, and how much of it was read.
type endless struct {
	head string
	body byte
	n    int64
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.head)
	e.head = e.head[n:]
	if n == 0 {
		n = len(p)
		for i := range p {
			p[i] = e.body
		}
	}
	e.n += int64(n)
	return n, nil
}

// An input that is one record for ever is given up soon: neither memory nor time go into it.
func TestRecordBudget(t *testing.T) {
	for name, in := range map[string]*endless{
		"quote that is never closed":  {head: "a,b\n1,\"", body: 'x'},
		"quote full of lines":         {head: "a,b\n1,\"", body: '\n'},
		"quote full of quotes":        {head: "a,b\n1,\"", body: '"'},
		"line that never ends":        {head: "a\n", body: 'x'},
		"header that never ends":      {body: 'x'},
		"fields for ever":             {head: "a\n", body: ','},
		"columns for ever":            {body: ','},
		"carriage returns for ever":   {head: "a\n", body: '\r'},
		"null characters for ever":    {head: "a\n", body: 0},
		"quote after quote at header": {body: '"'},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := CSV(t.Context(), job.Input{Reader: in})
			var rejected job.Rejected
			if !errors.As(err, &rejected) {
				t.Errorf("got %v, want a rejection", err)
			}
			if most := int64(MaxRecord + 4*readAhead); in.n > most {
				t.Errorf("%d bytes were read, want no more than %d", in.n, most)
			}
		})
	}
}

// rows generates a table of n rows.
func rows(n int) io.Reader {
	r := rand.New(rand.NewPCG(1, 2))
	i := -1
	var buf bytes.Buffer
	return readerFunc(func(p []byte) (int, error) {
		for ; buf.Len() < len(p) && i < n; i++ {
			if i < 0 {
				buf.WriteString("id,name,price,active,created,note\n")
				continue
			}
			fmt.Fprintf(&buf, "%d,customer-%d,%.2f,%t,2026-01-%02dT10:00:00Z,\"some, quoted text %d\"\n", i, i%5000, math.Exp(r.NormFloat64()*2), i%3 == 0, 1+i%28, i%17)
		}
		return buf.Read(p)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// The same input gives the same bytes, however it arrives: a second attempt at a job, on another machine, must not come
// to another result.
func TestDeterministic(t *testing.T) {
	var want []byte
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole":         func(r io.Reader) io.Reader { return r },
		"byte by byte":  iotest.OneByteReader,
		"data with EOF": iotest.DataErrReader,
		"halves":        iotest.HalfReader,
		"another time":  func(r io.Reader) io.Reader { return r },
		"random portion": func(r io.Reader) io.Reader {
			return readerFunc(func(p []byte) (int, error) { return r.Read(p[:1+rand.IntN(len(p))]) })
		},
	} {
		out, err := CSV(t.Context(), job.Input{Reader: wrap(rows(5000))})
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = out
		}
		if !bytes.Equal(out, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, out, want)
		}
	}
}

// Nor does it come from a random seed of this process: these estimates are what they are everywhere. A new version of a
// sketch may change them, and then a note to users is due.
func TestPinned(t *testing.T) {
	table := profileOf(t, rows(5000), nil)
	if id, price := table.Columns[0], table.Columns[2]; id.Distinct != 4983 || price.Distinct != 1347 || price.Quantiles.P50 != 1.072 {
		t.Errorf("%d and %d different values, median %v; want 4983, 1347, 1.072", id.Distinct, price.Distinct, price.Quantiles.P50)
	}
}

// liveHeap returns the memory in use after a collection.
func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Memory depends on the number of columns, not on the number of rows, nor on how many values differ.
func TestBoundedMemory(t *testing.T) {
	for _, c := range []struct{ columns, rows, most int }{{1, 60_000, 3 << 20}, {MaxColumns, maxExact + 200, 48 << 20}} {
		base := liveHeap()
		r := rand.New(rand.NewPCG(3, 4))
		var most uint64
		line := 0
		var buf bytes.Buffer
		_, err := CSV(t.Context(), job.Input{Reader: readerFunc(func(p []byte) (int, error) {
			for ; buf.Len() < len(p) && line <= c.rows; line++ {
				for i := range c.columns {
					if i > 0 {
						buf.WriteByte(',')
					}
					// Numbers of all magnitudes and both signs: the widest range for the sketches.
					fmt.Fprintf(&buf, "%.3ge%d", r.Float64()-.5, r.IntN(600)-300)
				}
				buf.WriteByte('\n')
				if line == maxExact || line == c.rows {
					most = max(most, liveHeap())
				}
			}
			return buf.Read(p)
		})})
		if err != nil {
			t.Fatal(err)
		}
		if used := int64(most) - int64(base); used > int64(c.most) {
			t.Errorf("%d columns took %d KiB, want no more than %d", c.columns, used>>10, c.most>>10)
		} else {
			t.Logf("%d columns took %d KiB", c.columns, used>>10)
		}
	}
}

// Estimates are as close as the package comment says.
func TestAccuracy(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for name, draw := range map[string]func() float64{
		"uniform":             r.Float64,
		"normal around zero":  r.NormFloat64,
		"lognormal, 12 tens":  func() float64 { return math.Exp(r.NormFloat64() * 3) },
		"negative":            func() float64 { return -math.Exp(r.NormFloat64()) },
		"large integers":      func() float64 { return float64(r.Int64N(1 << 50)) },
		"few different":       func() float64 { return float64(r.IntN(maxExact)) },
		"years":               func() float64 { return float64(1950 + r.IntN(80)) },
		"mostly zero":         func() float64 { return max(0, r.NormFloat64()-1) },
		"all magnitudes, abs": func() float64 { return math.Pow(10, r.Float64()*600-300) },
	} {
		t.Run(name, func(t *testing.T) {
			const n = 30_000
			values := make([]float64, n)
			text := make([]string, n)
			different := map[float64]bool{}
			sum := 0.0
			for i := range values {
				values[i] = draw()
				text[i] = fmt.Sprintf("%.17g", values[i])
				different[values[i]] = true
				sum += values[i]
			}
			c := columnOf(t, text...)
			slices.Sort(values)
			exact := len(different) <= maxExact
			for percent, got := range map[int]float64{10: c.Quantiles.P10, 25: c.Quantiles.P25, 50: c.Quantiles.P50, 75: c.Quantiles.P75, 90: c.Quantiles.P90, 99: c.Quantiles.P99} {
				rank := (percent*n + 99) / 100
				// The estimate is of this value or its neighbour.
				low, high := values[rank-2], values[rank]
				if exact {
					low, high = values[rank-1], values[rank-1]
				}
				slack := 0.0101
				if exact {
					slack = 0
				}
				if name == "all magnitudes, abs" && percent < 98 {
					continue // only the 17 powers of ten next to the greatest are kept apart
				}
				if got < low-slack*math.Abs(low) || got > high+slack*math.Abs(high) {
					t.Errorf("p%d is %v, want %v to %v within %v", percent, got, low, high, slack)
				}
			}
			if off := math.Abs(float64(c.Distinct)/float64(len(different)) - 1); exact && off != 0 || off > 0.04 {
				t.Errorf("%d different values, want %d", c.Distinct, len(different))
			}
			if mean := sum / n; math.Abs(*c.Mean-mean) > 1e-9*math.Max(math.Abs(mean), math.Abs(values[n-1])) {
				t.Errorf("mean is %v, want %v", *c.Mean, mean)
			}
		})
	}
}

// The standard error of the number of different values.
func TestDistinctError(t *testing.T) {
	squares, n := 0.0, 0
	for trial := range 30 {
		var d distinct
		size := 2000 << (trial % 6)
		for i := range size {
			d.add(fmt.Sprintf("%d/%d", trial, i))
		}
		off := float64(d.count())/float64(size) - 1
		squares += off * off
		n++
	}
	if rms := math.Sqrt(squares / float64(n)); rms > 0.0125 {
		t.Errorf("off by %.2f %% on average, want 0.8 %%", 100*rms)
	}
}

func TestWideTableTime(t *testing.T) {
	var b bytes.Buffer
	for line := range 400 {
		for i := range MaxColumns {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprint(&b, "v", line, "-", i)
		}
		b.WriteByte('\n')
	}
	begin := time.Now()
	table := profileOf(t, &b, nil)
	if table.Rows != 399 || len(table.Columns) != MaxColumns || table.Columns[511].Distinct != 399 {
		t.Errorf("%d rows, %d columns, %d different", table.Rows, len(table.Columns), table.Columns[511].Distinct)
	}
	t.Logf("%d fields in %v", 399*MaxColumns, time.Since(begin))
}

func FuzzCSV(f *testing.F) {
	for _, seed := range []string{"", "a,b\n1,2\n", "\xEF\xBB\xBFa\n\"x\ny\"\n", "a\r\n1e308\r\n-1e308\r\n", "a\n\"", "d\n2026-01-02\n2026-01-02 03:04:05\n", "\xff\xfe", ",\n,\n"} {
		f.Add([]byte(seed), uint8(0))
	}
	f.Fuzz(func(t *testing.T, in []byte, delimiter uint8) {
		names := CSVOptions()["delimiter"]
		options := map[string]string{"delimiter": names[int(delimiter)%len(names)]}
		out, err := CSV(context.Background(), job.Input{Reader: bytes.NewReader(in), Options: options})
		again, err2 := CSV(context.Background(), job.Input{Reader: iotest.HalfReader(bytes.NewReader(in)), Options: options})
		if !bytes.Equal(out, again) || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("two runs differ:\n%s %v\n%s %v", out, err, again, err2)
		}
		var rejected job.Rejected
		if err != nil && !errors.As(err, &rejected) {
			t.Fatalf("an error that is no rejection: %v", err)
		}
		if err == nil && !json.Valid(out) {
			t.Fatalf("not JSON: %s", out)
		}
	})
}

func BenchmarkCSV(b *testing.B) {
	in, err := io.ReadAll(rows(100_000))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CSV(b.Context(), job.Input{Reader: bytes.NewReader(in)}); err != nil {
			b.Fatal(err)
		}
	}
}
