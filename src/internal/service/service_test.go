package service

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

type testConfig struct {
	Config
	Count int           `env:"COUNT" default:"4" validate:"min=1,max=10" want:"a number from 1 to 10" doc:"how many"`
	Size  int64         `env:"SIZE" default:"1024" validate:"min=1" want:"a positive number" doc:"how large"`
	Wait  time.Duration `env:"WAIT" default:"1m" validate:"min=1s,max=1h" want:"a duration from 1s to 1h" doc:"how long"`
	Loud  bool          `env:"LOUD" default:"false" want:"true or false" doc:"whether"`
	File  string        `env:"FILE" want:"a path" doc:"which"`
}

func load(t *testing.T, env map[string]string) (testConfig, error) {
	t.Helper()
	var c testConfig
	err := LoadConfig(&c, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
	return c, err
}

func TestLoadConfig(t *testing.T) {
	c, err := load(t, map[string]string{"STORAGE_URL": "file:///data"})
	want := testConfig{Config: Config{StorageURL: "file:///data", AdminAddr: "127.0.0.1:9090", LogLevel: "info"}, Count: 4, Size: 1024, Wait: time.Minute}
	if err != nil || c != want {
		t.Errorf("defaults are %+v, %v; want %+v", c, err, want)
	}
	c, err = load(t, map[string]string{"STORAGE_URL": "file:///data", "ADMIN_ADDR": "[::1]:0", "LOG_LEVEL": "debug", "COUNT": "10", "SIZE": "5000000000", "WAIT": "90s", "LOUD": "true", "FILE": "/x"})
	want = testConfig{Config: Config{StorageURL: "file:///data", AdminAddr: "[::1]:0", LogLevel: "debug"}, Count: 10, Size: 5_000_000_000, Wait: 90 * time.Second, Loud: true, File: "/x"}
	if err != nil || c != want {
		t.Errorf("got %+v, %v; want %+v", c, err, want)
	}
}

// Each error names the variable, the value and what was expected, and all that is wrong is reported at once.
func TestLoadConfigErrors(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want []string
	}{
		{map[string]string{}, []string{"STORAGE_URL is not set; want file:///absolute/path"}},
		{map[string]string{"STORAGE_URL": ""}, []string{`STORAGE_URL="": set but empty`}},
		{map[string]string{"COUNT": "0"}, []string{`COUNT="0": want a number from 1 to 10`}},
		{map[string]string{"COUNT": "11"}, []string{`COUNT="11": want a number from 1 to 10`}},
		{map[string]string{"COUNT": "four"}, []string{`COUNT="four": want a number from 1 to 10`}},
		{map[string]string{"COUNT": "99999999999999999999"}, []string{"COUNT="}},
		{map[string]string{"COUNT": ""}, []string{`COUNT="": set but empty`}},
		{map[string]string{"SIZE": "64MiB"}, []string{`SIZE="64MiB": want a positive number`}},
		{map[string]string{"WAIT": "60"}, []string{`WAIT="60": want a duration from 1s to 1h`}},
		{map[string]string{"WAIT": "999ms"}, []string{`WAIT="999ms": want a duration from 1s to 1h`}},
		{map[string]string{"WAIT": "2h"}, []string{`WAIT="2h0m0s": want a duration from 1s to 1h`}},
		{map[string]string{"LOUD": "yes"}, []string{`LOUD="yes": want true or false`}},
		{map[string]string{"FILE": ""}, []string{`FILE="": set but empty`}},
		{map[string]string{"LOG_LEVEL": "INFO"}, []string{`LOG_LEVEL="INFO": want one of debug, info, warn, error`}},
		{map[string]string{"ADMIN_ADDR": "9090"}, []string{`ADMIN_ADDR="9090": want host:port`}},
		{map[string]string{"ADMIN_ADDR": "x:70000"}, []string{`ADMIN_ADDR="x:70000": want host:port`}},
		{map[string]string{"ADMIN_ADDR": "x:http"}, []string{`ADMIN_ADDR="x:http": want host:port`}},
		{map[string]string{"COUNT": "x", "WAIT": "x", "LOUD": "x"}, []string{"COUNT=", "WAIT=", "LOUD="}},
		{map[string]string{"COUNT": "11", "WAIT": "2h", "LOG_LEVEL": "x"}, []string{"COUNT=", "WAIT=", "LOG_LEVEL="}},
		{map[string]string{"STORAGE_URL": "https://account.blob.core.windows.net"}, []string{"STORAGE_URL=", "file:///absolute/path"}},
		{map[string]string{"STORAGE_URL": "/data"}, []string{`STORAGE_URL="/data": `, "file:///absolute/path"}},
		{map[string]string{"STORAGE_URL": "file://data/jobs"}, []string{"three slashes"}},
		{map[string]string{"STORAGE_URL": "https://user:hunter2@host/c?sig=hunter2"}, []string{`"https://host/c"`}},
		{map[string]string{"STORAGE_URL": "https://user:hunter2@[host"}, []string{"(not shown"}},
	} {
		if _, ok := c.env["STORAGE_URL"]; !ok && len(c.env) > 0 {
			c.env["STORAGE_URL"] = "file:///data"
		}
		_, err := load(t, c.env)
		if err == nil {
			t.Errorf("%v is accepted", c.env)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: error is %q, want %q in it", c.env, err, want)
			}
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v: the error gives a secret away: %v", c.env, err)
		}
	}
}

func TestPrintConfig(t *testing.T) {
	c := testConfig{Config: Config{StorageURL: "https://user:hunter2@host/c?sig=hunter2#hunter2", AdminAddr: ":1", LogLevel: "warn"}, Wait: 90 * time.Second}
	var b bytes.Buffer
	if err := PrintConfig(&b, &c); err != nil {
		t.Fatal(err)
	}
	if want := "STORAGE_URL=https://host/c\nADMIN_ADDR=:1\nLOG_LEVEL=warn\nCOUNT=0\nSIZE=0\nWAIT=1m30s\nLOUD=false\nFILE=\n"; b.String() != want {
		t.Errorf("got\n%swant\n%s", &b, want)
	}
	help := configHelp(&c)
	for _, want := range []string{"STORAGE_URL", "required", "default 1m", "default none", "how many: a number from 1 to 10"} {
		if !strings.Contains(help, want) {
			t.Errorf("help lacks %q:\n%s", want, help)
		}
	}
}

// health returns a Health whose probe returns what the test sets.
func testHealth() (*Health, *atomic.Pointer[error]) {
	var fails atomic.Pointer[error]
	return newHealth(prometheus.NewRegistry(), func(context.Context) (int, error) {
		if err := fails.Load(); err != nil {
			return 0, *err
		}
		return 7, nil
	}), &fails
}

func TestHealth(t *testing.T) {
	h, fails := testHealth()
	h.Started()
	if h.Ready() == nil {
		t.Error("ready before the storage was asked")
	}
	h.started.Store(false)
	if err := h.Alive(); err != nil {
		t.Errorf("not alive at the start: %v", err)
	}
	h.probeOnce(t.Context(), zerolog.Nop())
	if h.Ready() == nil {
		t.Error("ready before it started")
	}
	h.Started()
	if err := h.Ready(); err != nil || h.Backlog() != 7 {
		t.Errorf("the storage answers: %v, backlog %d", err, h.Backlog())
	}
	down := errors.New("storage is down")
	fails.Store(&down)
	h.probeOnce(t.Context(), zerolog.Nop())
	if err := h.Ready(); err != nil {
		t.Errorf("unready after one bad answer: %v", err)
	}
	h.mu.Lock()
	h.lastOK = time.Now().Add(-2 * probeLasts)
	h.mu.Unlock()
	if err := h.Ready(); !errors.Is(err, down) {
		t.Errorf("long after the last good answer: %v, want %v", err, down)
	}
	if err := h.Alive(); err != nil {
		t.Errorf("a restart would not help the storage, but: %v", err)
	}
	fails.Store(nil)
	h.probeOnce(t.Context(), zerolog.Nop())
	if err := h.Ready(); err != nil {
		t.Errorf("the storage is back: %v", err)
	}
	idle, stuck := errors.New("idle"), errors.New("stuck")
	h.Checks(func() error { return stuck }, func() error { return idle })
	if a, r := h.Alive(), h.Ready(); a != stuck || r != idle {
		t.Errorf("the service's own checks: %v, %v", a, r)
	}
	h.Checks(func() error { return nil }, func() error { return nil })
	h.Drain()
	if a, r := h.Alive(), h.Ready(); a != nil || r == nil {
		t.Errorf("draining: alive %v, ready %v; want alive and not ready", a, r)
	}
}

func TestAdmin(t *testing.T) {
	h, _ := testHealth()
	registry := prometheus.NewRegistry()
	registry.MustRegister(ReadBuild().metric())
	srv := httptest.NewServer(adminHandler(h, registry))
	defer srv.Close()
	for _, c := range []struct {
		path   string
		status int
		want   string
	}{
		{"/healthz", 200, "ok"},
		{"/readyz", 503, "starting"},
		{"/metrics", 200, "build_info{"},
		{"/debug/pprof/", 200, "goroutine"},
		{"/debug/pprof/cmdline", 200, ""},
		{"/debug/pprof/heap?debug=1", 200, "heap profile"},
		{"/", 404, ""},
	} {
		res, err := http.Get(srv.URL + c.path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != c.status || !strings.Contains(string(body), c.want) {
			t.Errorf("%s: %d %.80q, want %d with %q", c.path, res.StatusCode, body, c.status, c.want)
		}
	}
}

// freeAddr returns an address that nobody listens at.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func poll(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// The order in which a server ends: unready, still serving new connections for the delay, then closed to new ones while
// those in progress finish.
func TestServeDrains(t *testing.T) {
	h, _ := testHealth()
	h.probeOnce(t.Context(), zerolog.Nop())
	p := &Process{Log: zerolog.Nop(), Health: h}
	addr := freeAddr(t)
	begun, finish := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-finish
		io.WriteString(w, "finished")
	})
	mux.HandleFunc("/fast", func(http.ResponseWriter, *http.Request) {})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, addr, mux, 300*time.Millisecond, 20*time.Second) }()
	fast := func() (closes bool, err error) {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: false}}
		defer client.CloseIdleConnections()
		res, err := client.Get("http://" + addr + "/fast")
		if err != nil {
			return false, err
		}
		return res.Close, res.Body.Close()
	}
	poll(t, "it serves", func() bool { _, err := fast(); return err == nil })
	slow := make(chan string, 1)
	go func() {
		res, err := http.Get("http://" + addr + "/slow")
		if err != nil {
			slow <- err.Error()
			return
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			slow <- err.Error()
			return
		}
		slow <- string(b)
	}()
	<-begun
	if err := h.Ready(); err != nil {
		t.Fatalf("not ready while serving: %v", err)
	}
	stop()
	poll(t, "it is unready", func() bool { return h.Ready() != nil })
	if closes, err := fast(); err != nil || !closes {
		t.Errorf("during the delay: %v, asks to connect anew: %v; want service, and to connect anew", err, closes)
	}
	poll(t, "it is closed", func() bool { _, err := fast(); return err != nil })
	select {
	case err := <-served:
		t.Fatalf("Serve returned %v with a request in progress", err)
	default:
	}
	close(finish)
	if got := <-slow; got != "finished" {
		t.Errorf("the request in progress got %q", got)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A request that takes longer than the grace period is cut off, and Serve says so.
func TestServeGrace(t *testing.T) {
	h, _ := testHealth()
	p := &Process{Log: zerolog.Nop(), Health: h}
	addr := freeAddr(t)
	begun := make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- p.Serve(ctx, addr, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			begun <- struct{}{}
			<-r.Context().Done()
		}), 0, 50*time.Millisecond)
	}()
	poll(t, "it listens", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	cut := make(chan error, 1)
	go func() {
		res, err := http.Get("http://" + addr)
		if err == nil {
			err = res.Body.Close()
		}
		cut <- err
	}()
	<-begun
	stop()
	if err := <-served; !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "50ms") {
		t.Errorf("Serve: %v, want that the grace period was not enough", err)
	}
	if err := <-cut; err == nil {
		t.Error("the request was not cut off")
	}
}

func TestServeAddressTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	h, _ := testHealth()
	p := &Process{Log: zerolog.Nop(), Health: h}
	if err := p.Serve(t.Context(), ln.Addr().String(), http.NotFoundHandler(), 0, 0); err == nil {
		t.Error("it serves at an address that is taken")
	}
}
