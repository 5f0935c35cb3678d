package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cri/transfer"
)

// passwordEnv has the password for --creds USER.
const passwordEnv = "GANTRY_REGISTRY_PASSWORD"

func imagePull(f *flags) func(*imageCall) error {
	creds := f.String("creds", "", "`USER[:PASSWORD]` at the registry. Without password, which others would see\n"+
		strings.Repeat(" ", 31)+"in the list of processes, it is taken from $"+passwordEnv+",\n"+
		strings.Repeat(" ", 31)+"else asked for, or read as a line of standard input")
	f.defaults["creds"] = "what the daemon is configured with"
	return func(c *imageCall) error {
		auth, err := c.credentials(*creds)
		if err != nil {
			return err
		}
		line := newProgressLine(c.stderr)
		stop := func() {}
		if line.w != nil {
			stop = every(200*time.Millisecond, func() {
				if pulls, err := c.client.Pulls(c.ctx); err == nil {
					line.show(progressOf(c.args[0], pulls))
				}
			})
		}
		resp, err := c.client.PullImage(c.ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: c.args[0]}, Auth: auth})
		stop()
		line.clear()
		if err != nil {
			return err
		}
		fmt.Fprintln(c.stdout, resp.GetImageRef())
		return nil
	}
}

// progressOf is the line of the pull that was asked for. The daemon calls it by
// its full name.
func progressOf(ref string, pulls []transfer.Pull) string {
	for _, p := range pulls {
		if p.Image == ref || strings.HasSuffix(p.Image, "/"+ref) || strings.HasSuffix(p.Image, "/"+ref+":latest") || p.Image == ref+":latest" {
			return fmt.Sprintf("%s: %d of %d layers, %s of %s", plainText(ref), p.LayersDone, p.Layers, bytesText(uint64(p.BytesDone)), bytesText(uint64(p.Bytes)))
		}
	}
	return "waiting"
}

// credentials reads USER[:PASSWORD], nil for none.
func (c *imageCall) credentials(creds string) (*runtimeapi.AuthConfig, error) {
	if creds == "" {
		return nil, nil
	}
	user, password, ok := strings.Cut(creds, ":")
	if user == "" {
		return nil, errors.New("--creds has no user")
	}
	if !ok {
		if password, ok = os.LookupEnv(passwordEnv); !ok {
			var err error
			if password, err = c.askPassword(user); err != nil {
				return nil, fmt.Errorf("reading the password: %w", err)
			}
		}
	}
	return &runtimeapi.AuthConfig{Username: user, Password: password}, nil
}

// askPassword reads a line, from a terminal without showing it.
func (c *imageCall) askPassword(user string) (string, error) {
	if f, ok := c.stdin.(*os.File); ok && terminal(f) {
		fd := int(f.Fd())
		state, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return "", err
		}
		hidden := *state
		hidden.Lflag &^= unix.ECHO
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
			return "", err
		}
		defer func() {
			_ = unix.IoctlSetTermios(fd, unix.TCSETS, state)
			fmt.Fprintln(c.stderr)
		}()
		fmt.Fprintf(c.stderr, "Password of %s: ", plainText(user))
	}
	type answer struct {
		line string
		err  error
	}
	read := make(chan answer, 1)
	go func() { // ends with the line, or with the program
		line, err := bufio.NewReader(io.LimitReader(c.stdin, 64<<10)).ReadString('\n')
		read <- answer{line, err}
	}()
	select {
	case a := <-read:
		if a.err != nil && (a.err != io.EOF || a.line == "") {
			return "", a.err
		}
		return strings.TrimRight(a.line, "\r\n"), nil
	case <-c.ctx.Done():
		return "", context.Cause(c.ctx)
	}
}

func imagePulls(*flags) func(*imageCall) error {
	return func(c *imageCall) error {
		pulls, err := c.client.Pulls(c.ctx)
		if err != nil {
			return err
		}
		t := tabwriter.NewWriter(c.stdout, 0, 0, 3, ' ', 0)
		fmt.Fprintln(t, "IMAGE\tSINCE\tLAYERS\tSIZE")
		for _, p := range pulls {
			fmt.Fprintf(t, "%s\t%s\t%d of %d\t%s of %s\n", p.Image, time.Since(p.Started).Round(time.Second),
				p.LayersDone, p.Layers, bytesText(uint64(p.BytesDone)), bytesText(uint64(p.Bytes)))
		}
		return t.Flush()
	}
}
