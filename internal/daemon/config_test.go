package daemon

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/restapi"
)

// clearEnv takes away what the test's own environment would set.
func clearEnv(t *testing.T) {
	t.Helper()
	for _, name := range []string{"HOST", "PORT", "TLS_HOST", "TLS_PORT", "TLS_CERTIFICATE", "TLS_PRIVATE_KEY", "TLS_CA_CERTIFICATE", "IMAGEAPI_LOGLEVEL",
		"IMAGEAPI_HOST", "IMAGEAPI_PORT", "IMAGEAPI_TLS_KEY", "IMAGEAPI_LOG_LEVEL", "IMAGEAPI_TEARDOWN", "IMAGEAPI_CONFIG"} {
		t.Setenv(name, "") // so that it is put back
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDefaults(t *testing.T) {
	clearEnv(t)
	cfg, warnings, err := Parse(nil)
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if got := cfg.Listen; !reflect.DeepEqual(got, Listen{Schemes: []string{"unix"}, SocketPath: "/run/imageapi.sock", Host: "127.0.0.1", Port: 8080}) {
		t.Errorf("listens on %+v", got)
	}
	if got := cfg.Limits; got.MaxBody != 1<<20 || got.MaxHeader != 1<<20 || got.Write <= cfg.Node.CreateTimeout {
		t.Errorf("limits are %+v", got)
	}
	if got := cfg.Node; !reflect.DeepEqual(got, Node{
		RunDir: "/run/imageapi", CgroupParent: "/imageapi",
		StopTimeout: 10 * time.Second, CreateTimeout: 25 * time.Second, DeleteTimeout: 20 * time.Second, LogSize: 16 << 20, CacheSize: 4 << 30,
	}) {
		t.Errorf("does %+v", got)
	}
}

// The command line that nodes use for Kraken.
func TestKrakensCommandLine(t *testing.T) {
	clearEnv(t)
	cfg, _, err := Parse([]string{"--host", "127.0.0.1", "--scheme", "http"})
	if err != nil || !reflect.DeepEqual(cfg.Listen.Schemes, []string{"http"}) || cfg.Listen.Host != "127.0.0.1" || cfg.Listen.Port != 8080 {
		t.Errorf("listens on %+v, %v", cfg.Listen, err)
	}
}

func TestOptionsOfTheGeneratedServerExist(t *testing.T) {
	clearEnv(t)
	ours := options(reflect.TypeFor[Config]())
	for name := range options(reflect.TypeFor[restapi.Server]()) {
		if !ours[name] {
			t.Errorf("--%s is missing", name)
		}
	}
}

func options(t reflect.Type) map[string]bool {
	names := map[string]bool{}
	for field := range t.Fields() {
		if name := field.Tag.Get("long"); name != "" {
			names[name] = true
		}
		if field.Tag.Get("group") != "" {
			for name := range options(field.Type) {
				names[name] = true
			}
		}
	}
	return names
}

func TestParse(t *testing.T) {
	tests := []struct {
		name  string
		env   map[string]string
		args  string
		check func(c Config) bool
		warn  string
		err   string
	}{
		{name: "schemes are the whole list", args: "--scheme http --scheme unix --scheme http",
			check: func(c Config) bool { return reflect.DeepEqual(c.Listen.Schemes, []string{"http", "unix"}) }},
		{name: "unknown scheme", args: "--scheme gopher", err: "gopher"},
		{name: "TLS falls back", args: "--host 127.0.0.2 --listen-limit 7 --keep-alive 1s --read-timeout 2s --write-timeout 40s",
			check: func(c Config) bool {
				return c.TLS.Host == "127.0.0.2" && c.TLS.ListenLimit == 7 && c.TLS.KeepAlive == time.Second && c.TLS.Read == 2*time.Second && c.TLS.Write == 40*time.Second
			}},
		{name: "file systems", args: "--fs-types vfat,f2fs --fs-types exfat",
			check: func(c Config) bool { return reflect.DeepEqual(c.Node.FSTypes, []string{"vfat", "f2fs", "exfat"}) }},
		{name: "sizes", args: "--max-body 2KiB", check: func(c Config) bool { return c.Limits.MaxBody == 2048 }},
		{name: "log size", args: "--log-size 64KiB", check: func(c Config) bool { return c.Node.LogSize == 64<<10 }},
		{name: "log size that is too small", args: "--log-size 63KiB", err: "--log-size 64512: must be at least 64KiB"},
		{name: "no size", args: "--max-body 0", err: "more than 0"},
		{name: "environment", env: map[string]string{"HOST": "localhost", "PORT": "81", "TLS_HOST": "::1", "TLS_PORT": "82"},
			check: func(c Config) bool {
				return c.Listen.Host == "localhost" && c.Listen.Port == 81 && c.TLS.Host == "::1" && c.TLS.Port == 82
			}, warn: "$PORT is deprecated; use $IMAGEAPI_PORT\n$TLS_PORT is deprecated; use $IMAGEAPI_TLS_PORT\n$HOST is deprecated; use $IMAGEAPI_HOST\n$TLS_HOST is deprecated"},
		{name: "environment with the prefix", env: map[string]string{"IMAGEAPI_HOST": "localhost", "IMAGEAPI_PORT": "81", "PORT": "82", "HOST": "127.0.0.9", "IMAGEAPI_TLS_KEY": "k", "IMAGEAPI_LOG_LEVEL": "warn", "IMAGEAPI_TEARDOWN": "true", "IMAGEAPI_LOGLEVEL": "debug"},
			check: func(c Config) bool {
				return c.Listen.Host == "localhost" && c.Listen.Port == 81 && c.TLS.Key == "k" && c.Log.Level == "warn" && c.Node.Teardown
			}},
		{name: "empty variables", env: map[string]string{"IMAGEAPI_PORT": "", "PORT": "", "IMAGEAPI_LOG_LEVEL": "", "HOST": "", "TLS_PORT": ""},
			check: func(c Config) bool { return c.Listen.Port == 8080 && c.Log.Level == "info" && c.TLS.Port == 8443 }},
		{name: "the variable of the client", env: map[string]string{"IMAGEAPI_HOST": "unix:///run/other.sock"},
			check: func(c Config) bool { return c.Listen.Host == "127.0.0.1" }},
		{name: "a wrong variable", env: map[string]string{"IMAGEAPI_PORT": "http"}, err: "options of the file and of the environment: "},
		{name: "flags override variables", env: map[string]string{"IMAGEAPI_PORT": "81", "IMAGEAPI_TEARDOWN": "true"}, args: "--port 82 --teardown=false",
			check: func(c Config) bool { return c.Listen.Port == 82 && !c.Node.Teardown }},
		{name: "environment that would open the node", env: map[string]string{"HOST": "node17", "TLS_HOST": "0.0.0.0"}, args: "--scheme http",
			check: func(c Config) bool { return c.Listen.Host == "127.0.0.1" && c.TLS.Host == "127.0.0.1" }, warn: `$HOST: "node17"`},
		{name: "the command line wins", env: map[string]string{"HOST": "0.0.0.0"}, args: "--host 127.0.0.3",
			check: func(c Config) bool { return c.Listen.Host == "127.0.0.3" }},
		{name: "a level of 0.2", env: map[string]string{"IMAGEAPI_LOGLEVEL": "trace"}, check: func(c Config) bool { return c.Log.Level == "debug" }, warn: "$IMAGEAPI_LOGLEVEL is deprecated; use $IMAGEAPI_LOG_LEVEL"},
		{name: "another", env: map[string]string{"IMAGEAPI_LOGLEVEL": "WARNING"}, check: func(c Config) bool { return c.Log.Level == "warn" }, warn: "deprecated"},
		{name: "and another", env: map[string]string{"IMAGEAPI_LOGLEVEL": "fatal"}, check: func(c Config) bool { return c.Log.Level == "error" }, warn: "deprecated"},
		{name: "the level of the command line", env: map[string]string{"IMAGEAPI_LOGLEVEL": "loud"}, args: "--log-level info",
			check: func(c Config) bool { return c.Log.Level == "info" }},
		{name: "no level", env: map[string]string{"IMAGEAPI_LOGLEVEL": "loud"},
			check: func(c Config) bool { return c.Log.Level == "info" }, warn: `$IMAGEAPI_LOGLEVEL: "loud"`},
		{name: "http for everybody", args: "--scheme http --host 0.0.0.0", err: "--allow-unauthenticated"},
		{name: "http for everybody by name", args: "--scheme http --host node17", err: "--allow-unauthenticated"},
		{name: "http for everybody by an empty name", args: "--scheme http --host=", err: "--allow-unauthenticated"},
		{name: "http for everybody, wanted", args: "--scheme http --host 0.0.0.0 --allow-unauthenticated",
			check: func(c Config) bool { return c.Listen.Host == "0.0.0.0" }},
		{name: "an address that is not used", args: "--host 0.0.0.0", check: func(c Config) bool { return true }},
		{name: "https without authority", args: "--scheme https --tls-host 0.0.0.0 --tls-certificate c --tls-key k", err: "--tls-ca"},
		{name: "https with authority", args: "--scheme https --tls-host 0.0.0.0 --tls-certificate c --tls-key k --tls-ca a",
			check: func(c Config) bool { return true }},
		{name: "https without certificate", args: "--scheme https", err: "--tls-certificate"},
		{name: "write timeout", args: "--write-timeout 20s", err: "--write-timeout 20s: must be longer"},
		{name: "write timeout of https", args: "--tls-write-timeout 20s", err: "--tls-write-timeout 20s: must be longer"},
		{name: "no write timeout", args: "--write-timeout 0", check: func(c Config) bool { return c.Limits.Write == 0 }},
		{name: "names without authority", args: "--scheme https --tls-certificate c --tls-key k --tls-client a", err: "--tls-client and --read-only-client need --tls-ca"},
		{name: "no nesting", args: "--max-nesting 0", err: "--max-nesting 0: must be at least 1"},
		{name: "negative numbers", args: "--client-requests=-1", err: "--client-requests -1: must be at least 0"},
		{name: "metrics", args: "--metrics-port 9100", check: func(c Config) bool { return c.Listen.MetricsHost == "127.0.0.1" && c.Listen.MetricsPort == 9100 }},
		{name: "metrics elsewhere", args: "--metrics-port 9100 --metrics-host 192.0.2.1", check: func(c Config) bool { return c.Listen.MetricsHost == "192.0.2.1" }},
		{name: "metrics nowhere", args: "--metrics-host 192.0.2.1", err: "--metrics-host needs --metrics-port"},
		{name: "users", args: "--allow-user nobody --allow-user 7", check: func(c Config) bool { return reflect.DeepEqual(c.Listen.Users, []string{"nobody", "7"}) }},
		{name: "no stop timeout", args: "--stop-timeout 0", err: "--stop-timeout 0s: must be more than 0"},
		{name: "relative run directory", args: "--run-dir run", err: "absolute"},
		{name: "root as run directory", args: "--run-dir /", err: "absolute"},
		{name: "stray argument", args: "serve", err: `unexpected argument "serve"`},
		{name: "unknown option", args: "--frobnicate", err: "frobnicate"},
		{name: "port out of range", args: "--port 65536", err: "--port"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			clearEnv(t)
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			cfg, warnings, err := Parse(strings.Fields(tt.args))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error is %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil || !tt.check(cfg) {
				t.Errorf("error %v, config %+v", err, cfg)
			}
			if got := strings.Join(warnings, "\n"); !strings.Contains(got, tt.warn) || (tt.warn == "") != (got == "") {
				t.Errorf("warns %q, want %q", got, tt.warn)
			}
		})
	}
}

// A file has the options by their names. Flags and variables override it, and it is refused if others can write it.
func TestConfigurationFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server.yaml")
	const text = "scheme: [unix, http]\nport: 81\nlog-level: warn\nmax-body: 2KiB\nteardown: true\nstop-timeout: 3s\nallow-user: [nobody]\n"
	for _, tt := range []struct {
		name, text string
		mode       os.FileMode
		owner      int
		env        map[string]string
		args       string
		check      func(Config) bool
		err        string
	}{
		{name: "all", text: text, check: func(c Config) bool {
			return reflect.DeepEqual(c.Listen.Schemes, []string{"http", "unix"}) && c.Listen.Port == 81 && c.Log.Level == "warn" && c.Limits.MaxBody == 2048 &&
				c.Node.Teardown && c.Node.StopTimeout == 3*time.Second && reflect.DeepEqual(c.Listen.Users, []string{"nobody"})
		}},
		{name: "flags", text: text, args: "--scheme http --port 82 --log-level info --teardown=false --allow-user 7", check: func(c Config) bool {
			return reflect.DeepEqual(c.Listen.Schemes, []string{"http"}) && c.Listen.Port == 82 && c.Log.Level == "info" && !c.Node.Teardown &&
				reflect.DeepEqual(c.Listen.Users, []string{"7"}) && c.Limits.MaxBody == 2048
		}},
		{name: "variables", text: text, env: map[string]string{"IMAGEAPI_PORT": "83"}, check: func(c Config) bool { return c.Listen.Port == 83 && c.Log.Level == "warn" }},
		{name: "empty", text: "# nothing\n", check: func(c Config) bool { return c.Listen.Port == 8080 }},
		{name: "unknown", text: "prot: 81\n", err: "prot: no option of the server has this name"},
		{name: "not for a file", text: "clean-strays: true\n", err: "clean-strays: no option"},
		{name: "deep", text: "port: {a: b}\n", err: "line 1: port: use a value"},
		{name: "wrong", text: "port: http\n", err: "options of the file and of the environment: "},
		{name: "twice", text: "port: 1\nport: 2\n", err: "already defined"},
		{name: "a check of all", text: "scheme: http\nhost: 0.0.0.0\n", err: "--allow-unauthenticated"},
		{name: "group", text: text, mode: 0o660, err: "other users can write the file (mode 0660)"},
		{name: "world", text: text, mode: 0o606, err: "other users can write the file"},
		{name: "read by all", text: text, mode: 0o644, check: func(c Config) bool { return c.Listen.Port == 81 }},
		{name: "owner", text: text, owner: 65534, err: "user 65534 owns the file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clearEnv(t)
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			if tt.owner != 0 && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			err := errors.Join(os.WriteFile(path, []byte(tt.text), 0o600), os.Chmod(path, cmp.Or(tt.mode, 0o600)), os.Chown(path, cmp.Or(tt.owner, os.Geteuid()), -1))
			if err != nil {
				t.Fatal(err)
			}
			cfg, _, err := Parse(append([]string{"--config", path}, strings.Fields(tt.args)...))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v, want %s", err, tt.err)
				}
				return
			}
			if err != nil || !tt.check(cfg) {
				t.Errorf("%+v, %v", cfg, err)
			}
		})
	}
	t.Setenv("IMAGEAPI_CONFIG", path)
	if err := os.Chown(path, os.Geteuid(), -1); err != nil {
		t.Fatal(err)
	}
	if cfg, _, err := Parse(nil); err != nil || cfg.Listen.Port != 81 {
		t.Errorf("by a variable: %+v, %v", cfg.Listen, err)
	}
	if _, _, err := Parse([]string{"--config", "/nowhere"}); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("without the file: %v", err)
	}
}

func TestHelpAndVersion(t *testing.T) {
	clearEnv(t)
	_, _, err := Parse([]string{"--help"})
	help, ok := errors.AsType[ErrHelp](err)
	if !ok || !strings.Contains(help.Error(), "--socket-path") {
		t.Errorf("help is %v", err)
	}
	if cfg, _, err := Parse([]string{"--version"}); err != nil || !cfg.Version {
		t.Error(err)
	}
}
