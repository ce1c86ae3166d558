package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/jessevdk/go-flags"

	"github.com/kraken-hpc/imageapi/internal/audit"
	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// The schemes that the daemon can listen on.
const (
	schemeUnix  = "unix"
	schemeHTTP  = "http"
	schemeHTTPS = "https"

	schemeMetrics = "metrics" // not one of --scheme: plain http with the pages for monitoring alone
)

// Config is everything that can be set on the command line. Parse fills in the defaults.
type Config struct {
	Listen Listen `group:"Where to listen"`
	TLS    TLS    `group:"https"`
	Node   Node   `group:"On the node"`
	Limits Limits `group:"Limits"`
	Log    Log    `group:"Log"`

	File    string `long:"config" value-name:"FILE" description:"a YAML file with options, by their names here; the command line and the environment override it (default: none)"`
	Clean   bool   `long:"clean-strays" description:"kill and delete the containers, mounts and files of an earlier server in --run-dir and --cgroup-parent that the journal does not contain, and exit"`
	Version bool   `long:"version" description:"show the version and exit"`
}

// Listen says where to listen.
type Listen struct {
	Schemes     []string `long:"scheme" default:"unix" choice:"unix" choice:"http" choice:"https" description:"type of listener; repeat it for several listeners"`
	SocketPath  string   `long:"socket-path" value-name:"PATH" default:"/run/imageapi.sock" description:"the unix socket, of mode 0600: anyone who can write to it has root on this node"`
	Group       string   `long:"socket-group" value-name:"GROUP" description:"a group, by name or number, whose members can also use the unix socket, of mode 0660 then: they have root on this node"`
	Host        string   `long:"host" value-name:"HOST" default:"127.0.0.1" description:"the address for http"`
	Port        uint16   `long:"port" value-name:"PORT" default:"8080" description:"the port for http"`
	Users       []string `long:"allow-user" value-name:"USER" description:"a user of this node, by name or number, who can use http, and https without --tls-ca, in addition to root: this grants root on this node; for monitoring see --metrics-port; repeat it for several"`
	Containers  bool     `long:"allow-containers" description:"allow these also for processes in containers of this server: they have root on this node then"`
	Hosts       []string `long:"allow-host" value-name:"NAME" description:"a name or address of the server that clients can use over http and https, in addition to those of loopback, of the certificate and of the connection; repeat it for several"`
	Anyone      bool     `long:"allow-unauthenticated" description:"allow http, and https without --tls-ca, on addresses that are not loopback, and do not identify clients on loopback: anyone who can reach them has root on this node"`
	MetricsHost string   `long:"metrics-host" value-name:"HOST" description:"the address for --metrics-port (default: 127.0.0.1)"`
	MetricsPort uint16   `long:"metrics-port" value-name:"PORT" description:"a port for monitoring, over plain http and for every client: only /metrics, /healthz and /readyz (default: none)"`
}

// TLS says where and how to listen for https.
type TLS struct {
	Host        string        `long:"tls-host" value-name:"HOST" description:"the address for https (default: that of --host)"`
	Port        uint16        `long:"tls-port" value-name:"PORT" default:"8443" description:"the port for https"`
	Certificate string        `long:"tls-certificate" value-name:"FILE" description:"the server's certificate, followed by the chain that proves it (PEM)"`
	Key         string        `long:"tls-key" value-name:"FILE" description:"its private key (PEM)"`
	CA          string        `long:"tls-ca" value-name:"FILE" description:"require a client certificate signed by one of these CAs (PEM)"`
	Clients     []string      `long:"tls-client" value-name:"NAME" description:"allow https only for clients whose certificate has this common name or DNS name; repeat it for several (default: all clients of --tls-ca)"`
	ReadOnly    []string      `long:"read-only-client" value-name:"NAME" description:"allow only reading for clients whose certificate has this common name or DNS name; repeat it for several"`
	ListenLimit int           `long:"tls-listen-limit" value-name:"N" description:"as --listen-limit (default: the same)"`
	KeepAlive   time.Duration `long:"tls-keep-alive" value-name:"TIME" description:"as --keep-alive (default: the same)"`
	Read        time.Duration `long:"tls-read-timeout" value-name:"TIME" description:"as --read-timeout (default: the same)"`
	Write       time.Duration `long:"tls-write-timeout" value-name:"TIME" description:"as --write-timeout (default: the same)"`
}

// Node says what the daemon uses of the node.
type Node struct {
	RunDir        string        `long:"run-dir" value-name:"DIR" default:"/run/imageapi" description:"directory of mounts, logs and state; each server needs its own"`
	CgroupParent  string        `long:"cgroup-parent" value-name:"PATH" default:"/imageapi" description:"the group in the cgroup2 tree for the groups of containers"`
	FSTypes       []string      `long:"fs-types" value-name:"TYPE,..." description:"additional file systems to allow, next to ext2, ext3, ext4, xfs, btrfs, squashfs and erofs"`
	RequireVerity bool          `long:"require-verity" description:"mount and run only verified data: attachments with verity, and objects that depend only on them"`
	Capabilities  []string      `long:"default-capability" value-name:"NAME" description:"give all containers this capability, such as net_admin, or all; without it only the field capabilities.add of a definition does; repeat it for several"`
	StopTimeout   time.Duration `long:"stop-timeout" value-name:"TIME" default:"10s" description:"how long a container can take to stop before the server kills it"`
	CreateTimeout time.Duration `long:"create-timeout" value-name:"TIME" default:"25s" description:"how long a create can take, with all its levels, before the server rolls it back"`
	DeleteTimeout time.Duration `long:"delete-timeout" value-name:"TIME" default:"20s" description:"how long a delete waits for the teardown; the remaining teardown continues in the background"`
	Teardown      bool          `long:"teardown" description:"on SIGTERM and SIGINT stop all containers and delete all objects; without it all objects stay, and the next server recovers them"`
	CacheDir      string        `long:"cache-dir" value-name:"DIR" description:"directory for images from web servers and registries, kept over restarts and boots (default: in memory)"`
	CacheSize     Size          `long:"cache-size" value-name:"SIZE" default:"4GiB" description:"size of that cache"`
	LogSize       Size          `long:"log-size" value-name:"SIZE" default:"16MiB" description:"how much output of each container to keep, at least 64KiB; the server drops the older half when it is full"`
}

// Limits bounds what clients can ask for.
type Limits struct {
	MaxHeader Size          `long:"max-header-size" value-name:"SIZE" default:"1MiB" description:"maximum size of a request's line and headers"`
	MaxBody   Size          `long:"max-body" value-name:"SIZE" default:"1MiB" description:"maximum size of a request body"`
	Nesting   int           `long:"max-nesting" value-name:"N" default:"128" description:"maximum nesting depth of braces and brackets in a body"`
	Objects   int           `long:"max-objects" value-name:"N" default:"10000" description:"maximum number of objects; 0 for no limit"`
	Requests  int           `long:"client-requests" value-name:"N" default:"256" description:"maximum number of running requests of a client, including waiting ones; a client is a user of this node, or an address; 0 for no limit"`
	Conns     int           `long:"client-connections" value-name:"N" default:"512" description:"maximum number of open connections of a client; 0 for no limit"`
	Listen    int           `long:"listen-limit" value-name:"N" description:"maximum number of open connections over each of unix and http, of clients that may send requests (default: no limit)"`
	KeepAlive time.Duration `long:"keep-alive" value-name:"TIME" default:"3m" description:"interval between checks of idle TCP connections; 0 for never"`
	Header    time.Duration `long:"header-timeout" value-name:"TIME" default:"10s" description:"timeout for reading a request's line and headers, 0 for that of --read-timeout; also for the handshake of https, 10s at most"`
	Read      time.Duration `long:"read-timeout" value-name:"TIME" default:"30s" description:"timeout for reading a request; 0 for none"`
	Write     time.Duration `long:"write-timeout" value-name:"TIME" default:"30s" description:"timeout from the end of a request's headers to the end of its response, longer than those of creates and deletes; 0 for none"`
	Cleanup   time.Duration `long:"cleanup-timeout" value-name:"TIME" default:"10s" description:"how long a connection can be idle before the server closes it"`
	Graceful  time.Duration `long:"graceful-timeout" value-name:"TIME" default:"15s" description:"on shutdown: how long to wait for running requests before cancelling them"`
}

// Log configures the log on standard error, and the audit log.
type Log struct {
	Level  string `long:"log-level" default:"info" choice:"debug" choice:"info" choice:"warn" choice:"error" description:"the least important level to log: changes are info, reads are debug"`
	Format string `long:"log-format" default:"text" choice:"text" choice:"json" description:"format of the log lines"`

	Audit      string `long:"audit-log" value-name:"FILE" description:"record each change in this file, or in journald: the word journald (default: no record)"`
	AuditSize  Size   `long:"audit-size" value-name:"SIZE" default:"16MiB" description:"size at which the audit log rotates"`
	AuditFiles int    `long:"audit-files" value-name:"N" default:"8" description:"number of files of the audit log, the current one included"`
	AuditFull  string `long:"audit-full" default:"refuse" choice:"refuse" choice:"count" description:"refuse changes that the audit log cannot record, or only count them in a metric"`
}

// Size is a number of bytes.
type Size int64

// UnmarshalFlag reads a size such as 512KiB or 1MiB; units are powers of 1024.
func (s *Size) UnmarshalFlag(value string) error {
	n, err := units.RAMInBytes(value)
	if err == nil && n <= 0 {
		err = fmt.Errorf("must be more than 0")
	}
	*s = Size(n)
	return err
}

// ErrHelp is what Parse returns if the user asked for help; its text is the help.
type ErrHelp struct{ error }

// Parse reads a command line without the program's name, the file that it names, and the environment. The warnings are for the log.
func Parse(args []string) (cfg Config, warnings []string, err error) {
	if _, err := parse(&cfg, args, nil); err != nil || cfg.Version {
		return cfg, nil, err
	}
	file := cmp.Or(cfg.File, os.Getenv("IMAGEAPI_CONFIG"))
	cfg = Config{}
	var failed error
	parser, err := parse(&cfg, args, func(parser *flags.Parser) error {
		warnings, failed = setDefaults(parser, file)
		return failed
	})
	switch {
	case failed != nil:
		return cfg, nil, failed
	case err != nil:
		return cfg, nil, fmt.Errorf("options of the file and of the environment: %w", err)
	}
	warnings = append(warnings, fromEnv(parser, "host", "HOST", &cfg.Listen.Host)...)
	warnings = append(warnings, fromEnv(parser, "tls-host", "TLS_HOST", &cfg.TLS.Host)...)
	warnings = append(warnings, levelFromEnv(parser, &cfg.Log.Level)...)
	cfg.complete()
	return cfg, warnings, cfg.check()
}

// parse reads a command line into cfg; prepare may set defaults.
func parse(cfg *Config, args []string, prepare func(*flags.Parser) error) (*flags.Parser, error) {
	parser, err := newParser(cfg)
	if err == nil && prepare != nil {
		err = prepare(parser)
	}
	if err != nil {
		return nil, err
	}
	rest, err := parser.ParseArgs(args)
	switch {
	case isHelp(err):
		return nil, ErrHelp{err}
	case err == nil && len(rest) > 0:
		return nil, fmt.Errorf("unexpected argument %q", rest[0])
	}
	return parser, err
}

// newParser returns the parser of command lines, which fills in cfg.
func newParser(cfg *Config) (*flags.Parser, error) {
	parser := flags.NewNamedParser("imageapi-server", flags.HelpFlag|flags.PassDoubleDash|flags.AllowBoolValues)
	parser.ShortDescription = "system images as mounts, devices and containers"
	parser.LongDescription = "Turns system images into mounts, devices and containers on this node, over HTTP. Each option can also be in a file (--config) and in the environment, for example as IMAGEAPI_LOG_LEVEL."
	_, err := parser.AddGroup("Options", "", cfg)
	return parser, err
}

// Manual writes what a manual page says about the command line, for man(7).
func Manual(out io.Writer) error {
	parser, err := newParser(new(Config))
	if err != nil {
		return err
	}
	parser.WriteManPage(out)
	return nil
}

func isHelp(err error) bool {
	e, ok := errors.AsType[*flags.Error](err)
	return ok && e.Type == flags.ErrHelp
}

// fromEnv takes a host from the environment if the option was not given. Many shells and images set HOST to the
// name of the machine, so that it never opens an address to others.
func fromEnv(parser *flags.Parser, option, variable string, host *string) (warnings []string) {
	value := os.Getenv(variable)
	if value == "" || onCommandLine(parser, option) {
		return nil
	}
	if given, _ := fromEnvironment(option); given != nil {
		return nil
	}
	if !loopback(value) {
		return []string{fmt.Sprintf("$%s: %q is not a loopback address; use --%s to listen there", variable, value, option)}
	}
	*host = value
	return []string{deprecated(variable, option)}
}

// levelFromEnv takes the log level from the environment as 0.2 did, whose names were those of logrus, if the option was not given.
func levelFromEnv(parser *flags.Parser, level *string) (warnings []string) {
	const variable = "IMAGEAPI_LOGLEVEL"
	value := os.Getenv(variable)
	if given, _ := fromEnvironment("log-level"); value == "" || given != nil || onCommandLine(parser, "log-level") {
		return nil
	}
	switch strings.ToLower(value) {
	case "panic", "fatal", "error":
		*level = "error"
	case "warning", "warn":
		*level = "warn"
	case "info":
		*level = "info"
	case "debug", "trace":
		*level = "debug"
	default:
		return []string{fmt.Sprintf("$%s: %q is not a log level; use debug, info, warn or error", variable, value)}
	}
	return []string{deprecated(variable, "log-level")}
}

func onCommandLine(parser *flags.Parser, option string) bool {
	o := parser.FindOptionByLongName(option)
	return o.IsSet() && !o.IsSetDefault()
}

// complete fills in what defaults to something else that was given.
func (c *Config) complete() {
	fallback(&c.TLS.Host, c.Listen.Host)
	if c.Listen.MetricsPort != 0 {
		fallback(&c.Listen.MetricsHost, "127.0.0.1")
	}
	fallback(&c.TLS.ListenLimit, c.Limits.Listen)
	fallback(&c.TLS.KeepAlive, c.Limits.KeepAlive)
	fallback(&c.TLS.Read, c.Limits.Read)
	fallback(&c.TLS.Write, c.Limits.Write)
	slices.Sort(c.Listen.Schemes)
	c.Listen.Schemes = slices.Compact(c.Listen.Schemes)
	var types []string
	for _, list := range c.Node.FSTypes {
		types = append(types, strings.FieldsFunc(list, func(r rune) bool { return r == ',' })...)
	}
	c.Node.FSTypes = types
}

func fallback[T comparable](value *T, otherwise T) {
	var zero T
	if *value == zero {
		*value = otherwise
	}
}

// listeners returns the schemes of all listeners.
func (c *Config) listeners() []string {
	if c.Listen.MetricsPort == 0 {
		return c.Listen.Schemes
	}
	return append(slices.Clone(c.Listen.Schemes), schemeMetrics)
}

func (c *Config) uses(scheme string) bool { return slices.Contains(c.Listen.Schemes, scheme) }

// check finds everything that is wrong with c.
func (c *Config) check() error {
	return errors.Join(c.checkPaths(), c.checkTimes(), c.checkSizes(), c.checkAudit(), c.checkCapabilities(), c.checkWhoMayConnect(), c.checkTLS())
}

func (c *Config) checkPaths() (err error) {
	for _, o := range []struct{ option, path string }{
		{"--run-dir", c.Node.RunDir}, {"--socket-path", c.Listen.SocketPath}, {"--cgroup-parent", c.Node.CgroupParent},
	} {
		if !filepath.IsAbs(o.path) || filepath.Clean(o.path) != o.path || o.path == "/" {
			err = errors.Join(err, fmt.Errorf("%s %q: give an absolute path without . and .., and not the root", o.option, o.path))
		}
	}
	return err
}

func (c *Config) checkTimes() (err error) {
	type timeout struct {
		option string
		value  time.Duration
	}
	for _, t := range []timeout{
		{"--stop-timeout", c.Node.StopTimeout}, {"--create-timeout", c.Node.CreateTimeout}, {"--delete-timeout", c.Node.DeleteTimeout},
		{"--cleanup-timeout", c.Limits.Cleanup}, {"--graceful-timeout", c.Limits.Graceful},
	} {
		if t.value <= 0 {
			err = errors.Join(err, fmt.Errorf("%s %v: must be more than 0", t.option, t.value))
		}
	}
	longest := max(c.Node.CreateTimeout, c.Node.DeleteTimeout)
	for _, t := range []timeout{{"--write-timeout", c.Limits.Write}, {"--tls-write-timeout", c.TLS.Write}} {
		set := t.value != 0 && (t.option == "--write-timeout" || t.value != c.Limits.Write)
		if set && t.value <= longest {
			err = errors.Join(err, fmt.Errorf("%s %v: must be longer than --create-timeout and --delete-timeout (%v), or their answers are cut off", t.option, t.value, longest))
		}
	}
	return err
}

func (c *Config) checkSizes() error {
	var err error
	if c.Node.LogSize < wire.MinLogSize {
		err = fmt.Errorf("--log-size %d: must be at least %dKiB", c.Node.LogSize, wire.MinLogSize>>10)
	}
	for _, n := range []struct {
		option       string
		value, least int
	}{
		{"--max-nesting", c.Limits.Nesting, 1}, {"--max-objects", c.Limits.Objects, 0},
		{"--client-requests", c.Limits.Requests, 0}, {"--client-connections", c.Limits.Conns, 0}, {"--listen-limit", c.Limits.Listen, 0},
	} {
		if n.value < n.least {
			err = errors.Join(err, fmt.Errorf("%s %d: must be at least %d", n.option, n.value, n.least))
		}
	}
	return err
}

func (c *Config) checkAudit() (err error) {
	if path := c.Log.Audit; path != "" && path != audit.Journald && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
		err = fmt.Errorf("--audit-log %q: give an absolute path without . and .., or the word %s", path, audit.Journald)
	}
	if c.Log.AuditSize < 4<<10 {
		err = errors.Join(err, fmt.Errorf("--audit-size %d: must be at least 4KiB", c.Log.AuditSize))
	}
	if c.Log.AuditFiles < 1 {
		err = errors.Join(err, fmt.Errorf("--audit-files %d: must be at least 1", c.Log.AuditFiles))
	}
	return err
}

func (c *Config) checkCapabilities() (err error) {
	for _, name := range c.Node.Capabilities {
		if wrong := container.CheckCapability(name); wrong != nil {
			err = errors.Join(err, fmt.Errorf("--default-capability: %w", wrong))
		}
	}
	return err
}

func (c *Config) checkWhoMayConnect() (err error) {
	if c.Listen.MetricsHost != "" && c.Listen.MetricsPort == 0 {
		return errors.New("--metrics-host needs --metrics-port")
	}
	if c.Listen.Anyone {
		return nil
	}
	if c.uses(schemeHTTP) && !loopback(c.Listen.Host) {
		err = fmt.Errorf("--host %q is not a loopback address: anyone who can reach it would have root on this node; use https with --tls-ca, or --allow-unauthenticated", c.Listen.Host)
	}
	if c.uses(schemeHTTPS) && !loopback(c.TLS.Host) && c.TLS.CA == "" {
		err = errors.Join(err, fmt.Errorf("--tls-host %q is not a loopback address: anyone who can reach it would have root on this node; set --tls-ca, or --allow-unauthenticated", c.TLS.Host))
	}
	return err
}

func (c *Config) checkTLS() error {
	if c.uses(schemeHTTPS) && (c.TLS.Certificate == "" || c.TLS.Key == "") {
		return fmt.Errorf("--scheme https needs --tls-certificate and --tls-key")
	}
	if len(c.TLS.Clients)+len(c.TLS.ReadOnly) > 0 && c.TLS.CA == "" {
		return fmt.Errorf("--tls-client and --read-only-client need --tls-ca: without it clients have no names")
	}
	return nil
}

// loopback reports whether a host is certain to be this node only. Other names than localhost could lead anywhere.
func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
