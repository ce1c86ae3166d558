package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"

	"github.com/kballard/go-shellquote"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// relayGreeting is the line that the other end of a connection over ssh writes first. Lines before it are of the user's shell there.
const relayGreeting = "imageapi relay"

// relayName is the hidden command of the other end.
const relayName = "relay"

// sshArgs returns the arguments of ssh(1) for a server, and nothing if the address is wrong. A name that begins with a hyphen would be an option.
func sshArgs(u *url.URL) []string {
	user := u.User.Username()
	if _, secret := u.User.Password(); secret || u.RawQuery != "" || strings.HasPrefix(u.Hostname(), "-") || strings.HasPrefix(user, "-") {
		return nil
	}
	args := []string{"-T", "-o", "ConnectTimeout=10"}
	if u.Port() != "" {
		args = append(args, "-p", u.Port())
	}
	if user != "" {
		args = append(args, "-l", user)
	}
	socket := defaultHost
	if path := strings.TrimSuffix(u.Path, "/"); path != "" {
		socket = "unix://" + path
	}
	return append(args, "--", u.Hostname(), shellquote.Join("imageapi", "--host", socket, relayName))
}

// sshConn is a connection through a process of ssh(1).
type sshConn struct {
	net.Conn
	ssh  *exec.Cmd
	said bytes.Buffer // its standard error
}

// dialSSH returns a function that starts ssh, whose standard input and output are one end of a pair of sockets.
func dialSSH(args []string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		ours, theirs := os.NewFile(uintptr(pair[0]), "ssh"), os.NewFile(uintptr(pair[1]), "ssh")
		defer ours.Close()
		defer theirs.Close()
		conn, err := net.FileConn(ours)
		if err != nil {
			return nil, err
		}
		c := &sshConn{Conn: conn, ssh: exec.Command("ssh", args...)}
		c.ssh.Stdin, c.ssh.Stdout, c.ssh.Stderr = theirs, theirs, &c.said
		if err := c.ssh.Start(); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		_ = theirs.Close()
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		err = c.greeted()
		if !stop() {
			err = ctx.Err()
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}
}

// greeted reads up to the greeting.
func (c *sshConn) greeted() error {
	var line []byte
	for one := make([]byte, 1); string(line) != relayGreeting; {
		if _, err := c.Read(one); err != nil {
			_ = c.ssh.Wait()
			text := strings.TrimSpace(c.said.String())
			return fmt.Errorf("ssh ends with %s: %s", c.ssh.ProcessState, text[strings.LastIndexByte(text, '\n')+1:])
		}
		if line = append(line, one[0]); one[0] == '\n' && string(line) != relayGreeting+"\n" {
			line = nil
		}
	}
	_, err := c.Read(make([]byte, 1)) // the end of the line
	return err
}

// Close ends ssh, too.
func (c *sshConn) Close() error {
	err := c.Conn.Close()
	_ = c.ssh.Process.Kill()
	_ = c.ssh.Wait()
	return err
}

// relayCommand connects its standard input and output with a server: the other end of a connection over ssh.
func (a *app) relayCommand() *cobra.Command {
	return &cobra.Command{
		Use: relayName, Hidden: true, Args: between(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			path, local := strings.CutPrefix(a.server.Host, "unix://")
			if !local {
				return usage("--host %q: is not a socket", a.server.Host)
			}
			conn, err := dialUnix(path)(c.Context(), "", "")
			if err != nil {
				return courier{host: a.server.Host}.explain(c.Context(), err)
			}
			defer conn.Close()
			a.printf("%s\n", relayGreeting)
			go func() {
				_, _ = io.Copy(conn, a.in)
				_ = conn.(*net.UnixConn).CloseWrite()
			}()
			_, err = io.Copy(a.out, conn)
			return err
		},
	}
}
