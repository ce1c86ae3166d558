package cli

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// startSSH starts an sshd on loopback for root alone, and has the shell's clients use it: with a key of the test and nothing of the user's.
func startSSH(t *testing.T, s *shell) (address string) {
	t.Helper()
	testkit.Need(t, "sshd", "ssh-keygen")
	if _, err := os.Stat("/run/sshd"); err != nil { // the sshd of Debian wants it
		if err := os.Mkdir("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove("/run/sshd") })
	}
	dir := t.TempDir()
	for _, key := range []string{"host", "user"} {
		testkit.Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = listener.Addr().String()
	_ = listener.Close()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	host, port, _ := net.SplitHostPort(address)
	config := write("sshd_config", fmt.Sprintf(`ListenAddress %[1]s:%[2]s
HostKey %[3]s/host
AuthorizedKeysFile %[3]s/user.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
SetEnv PATH=%[4]s:/usr/bin:/bin
`, host, port, dir, filepath.Dir(s.program)))
	public, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	client := write("ssh_config", fmt.Sprintf("IdentityFile %[1]s/user\nIdentitiesOnly yes\nUserKnownHostsFile %[1]s/known\nGlobalKnownHostsFile none\nBatchMode yes\n", dir))
	write("known", fmt.Sprintf("[%s]:%s %s", host, port, public))
	write("ssh", fmt.Sprintf("#!/bin/sh\nexec /usr/bin/ssh -F %s \"$@\"\n", client))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	sshd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", config)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	sshd.Stdout, sshd.Stderr = log, log
	if err := sshd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sshd.Process.Kill()
		_ = sshd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("sshd: %s", text)
		}
	})
	testkit.Eventually(t, "sshd listens", func() bool {
		text, _ := os.ReadFile(filepath.Join(dir, "log"))
		return strings.Contains(string(text), "Server listening")
	})
	return address
}

// Over ssh the client reaches the socket of another machine: requests, streams both ways, and errors of each end. Not parallel: it sets PATH.
func TestSSH(t *testing.T) {
	s := newShell(t)
	address := startSSH(t, s)
	local := s.host
	s.host = "ssh://root@" + address + strings.TrimPrefix(local, "unix://")
	s.okFrom(t, s.definition("app", forever), "run", "-")
	matches(t, s.ok(t, "ps", "-o", "name"), "app\n")
	if out := s.okFrom(t, "a\x00b", "exec", "app", "cat"); out != "a\x00b" {
		t.Errorf("it passes %q", out)
	}
	status, _, errs := s.run(t, "", "exec", "app", "sh", "-c", "echo away >&2; exit 7")
	if status != 7 || errs != "away\n" {
		t.Errorf("status %d, %q", status, errs)
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	s.ok(t, "context", "add", "far", "--host", s.host)
	s.host = ""
	matches(t, s.ok(t, "-c", "far", "ps", "-o", "name"), "app\n")
	s.ok(t, "-c", "far", "rm", "-f", "app")
	s.fails(t, 4, "no such file or directory; is imageapi-server running?", "list", "--host", "ssh://root@"+address+"/nowhere")
	s.fails(t, 4, "Permission denied", "list", "--host", "ssh://nobody@"+address)
	s.fails(t, 2, "use unix:///PATH", "list", "--host", "ssh://-oProxyCommand=false/")
	s.fails(t, 2, "use unix:///PATH", "list", "--host", "ssh://-oProxyCommand=false@"+address)
}

// Variables for proxies and https concern neither a socket nor an empty variable.
func TestVariablesAndSocket(t *testing.T) {
	s := newShell(t)
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	for _, name := range []string{"IMAGEAPI_CERT", "IMAGEAPI_KEY", "IMAGEAPI_CA"} {
		t.Setenv(name, "/nowhere")
	}
	s.ok(t, "list")
	t.Setenv("IMAGEAPI_CONTEXT", "")
	s.ok(t, "list")
}
