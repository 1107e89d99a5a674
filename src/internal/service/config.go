package service

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/go-playground/validator/v10"

	"aks-platform/src/internal/storage"
)

// Config is the part of the configuration that all services share. A service embeds it in a struct with its own fields.
//
// Each field that is configured has these tags:
//
//	env       the name of its environment variable
//	default   the value when the variable is not set
//	validate  what the value has to satisfy, in the language of validator/v10
//	want      the same in words, for error messages
//	doc       what it is for, for -help
//	redact    "url" if the value is a URL whose user and query are secret
//
// A variable that is set but empty is an error: where values are substituted into manifests, an empty value is what a
// misspelt name leaves behind.
type Config struct {
	StorageURL string `env:"STORAGE_URL" validate:"required" want:"file:///absolute/path" redact:"url" doc:"where jobs are kept"`
	AdminAddr  string `env:"ADMIN_ADDR" default:"127.0.0.1:9090" validate:"addr" want:"host:port" doc:"address of /healthz, /readyz, /metrics and /debug/pprof"`
	LogLevel   string `env:"LOG_LEVEL" default:"info" validate:"oneof=debug info warn error" want:"one of debug, info, warn, error" doc:"the least severe messages to log"`
}

func (c *Config) base() *Config { return c }

// Check reports what the tags cannot. A service with a Check of its own calls this one too.
func (c *Config) Check() error {
	if err := storage.Check(c.StorageURL); err != nil {
		return fmt.Errorf("STORAGE_URL=%q: %w", redactURL(c.StorageURL), err)
	}
	return nil
}

// Configuration is a pointer to a struct that embeds Config.
type Configuration interface {
	base() *Config
	// Check reports rules between variables that are broken. It is called when each variable by itself is in order.
	Check() error
}

// setting is a field of a configuration.
type setting struct {
	reflect.StructField
	value reflect.Value
}

func (s setting) env() string { return s.Tag.Get("env") }

// String returns the value as it may be shown.
func (s setting) String() string {
	v := fmt.Sprint(s.value.Interface())
	if s.Tag.Get("redact") == "url" {
		return redactURL(v)
	}
	return v
}

// settings returns the fields of a configuration in the order of their declaration.
func settings(c Configuration) []setting {
	var all []setting
	v := reflect.ValueOf(c).Elem()
	for _, f := range reflect.VisibleFields(v.Type()) {
		if f.Tag.Get("env") != "" {
			all = append(all, setting{f, v.FieldByIndex(f.Index)})
		}
	}
	return all
}

// LoadConfig fills c from the environment and checks it. The error names every variable that is wrong, its value, and
// what was expected.
func LoadConfig(c Configuration, lookup func(string) (string, bool)) error {
	var errs []error
	byEnv := map[string]setting{}
	for _, s := range settings(c) {
		byEnv[s.env()] = s
		text, set := lookup(s.env())
		if !set {
			text = s.Tag.Get("default")
		} else if text == "" {
			errs = append(errs, fmt.Errorf(`%s="": set but empty; want %s, or no such variable at all`, s.env(), s.Tag.Get("want")))
			continue
		}
		if err := s.parse(text); err != nil {
			errs = append(errs, fmt.Errorf("%s=%q: want %s", s.env(), text, s.Tag.Get("want")))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	var broken validator.ValidationErrors
	switch err := newValidator().Struct(c); {
	case errors.As(err, &broken):
		for _, e := range broken {
			s := byEnv[e.Field()]
			if e.Tag() == "required" {
				errs = append(errs, fmt.Errorf("%s is not set; want %s", s.env(), s.Tag.Get("want")))
			} else {
				errs = append(errs, fmt.Errorf("%s=%q: want %s", s.env(), s, s.Tag.Get("want")))
			}
		}
		return errors.Join(errs...)
	case err != nil:
		return err
	}
	return c.Check()
}

func (s setting) parse(text string) error {
	switch s.value.Interface().(type) {
	case string:
		s.value.SetString(text)
	case bool:
		b, err := strconv.ParseBool(cmp.Or(text, "false"))
		s.value.SetBool(b)
		return err
	case int, int64:
		n, err := strconv.ParseInt(text, 10, 64)
		s.value.SetInt(n)
		return err
	case time.Duration:
		d, err := time.ParseDuration(text)
		s.value.SetInt(int64(d))
		return err
	default:
		panic("service: no way to read " + s.Type.String() + " from the environment")
	}
	return nil
}

func newValidator() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string { return f.Tag.Get("env") })
	if err := v.RegisterValidation("addr", func(f validator.FieldLevel) bool {
		_, port, err := net.SplitHostPort(f.Field().String())
		_, bad := strconv.ParseUint(port, 10, 16)
		return err == nil && bad == nil
	}); err != nil {
		panic(err) // only for a bad tag
	}
	return v
}

// PrintConfig writes the effective configuration, without secrets.
func PrintConfig(w io.Writer, c Configuration) error {
	var b strings.Builder
	for _, s := range settings(c) {
		fmt.Fprintf(&b, "%s=%s\n", s.env(), s)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// configHelp describes the variables of c.
func configHelp(c Configuration) string {
	var b strings.Builder
	for _, s := range settings(c) {
		def := "required"
		if s.Tag.Get("validate") != "required" {
			def = "default " + cmp.Or(s.Tag.Get("default"), "none")
		}
		fmt.Fprintf(&b, "  %s\n    \t%s: %s (%s)\n", s.env(), s.Tag.Get("doc"), s.Tag.Get("want"), def)
	}
	return b.String()
}

// redactURL returns a URL without its user, query and fragment, which may hold secrets.
func redactURL(raw string) string {
	if raw == "" {
		return ""
	}
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" {
		return "(not shown: not a URL)"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
