package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	maxReason = 16 << 10 // bytes of standard output; more is a refusal
	maxLog    = 2 << 10  // bytes of standard error that are logged
	// drain is how long output may be held open after a program was killed.
	drain = 2 * time.Second
)

// ErrRefused is in every error of Check but those of its context.
var ErrRefused = fmt.Errorf("image is not trusted: %w", errdefs.ErrPermissionDenied)

// Programs are what must agree to an image.
type Programs struct {
	Dir     string        // "" for none
	Max     int           // more than this refuse every image
	Timeout time.Duration // of one program
}

// Check asks all programs about the image that name leads to now.
func (p Programs) Check(ctx context.Context, name string, desc ocispec.Descriptor) error {
	programs, err := p.list()
	if err != nil {
		return fmt.Errorf("%w: %w", err, ErrRefused)
	}
	for _, program := range programs {
		reason, err := p.ask(ctx, program, name, desc)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("image verifier %s on %s: %w: %w", filepath.Base(program), desc.Digest, err, ErrRefused)
		}
		klog.FromContext(ctx).V(2).Info("Image is trusted", "image", name, "digest", desc.Digest, "verifier", filepath.Base(program), "reason", reason)
	}
	return nil
}

// Any says whether there is somebody to ask.
func (p Programs) Any() bool {
	programs, err := p.list()
	return len(programs) > 0 || err != nil
}

// list finds the programs anew each time, so that one may be added or removed
// without a restart.
func (p Programs) list() ([]string, error) {
	if p.Dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(p.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image verifiers: %w", err)
	}
	if len(entries) > p.Max {
		return nil, fmt.Errorf("%d image verifiers in %s, more than %d", len(entries), p.Dir, p.Max)
	}
	var programs []string
	for _, e := range entries {
		path := filepath.Join(p.Dir, e.Name())
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("image verifier: %w", err)
		}
		if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return nil, fmt.Errorf("image verifier %s is no executable file but %v", path, info.Mode())
		}
		programs = append(programs, path)
	}
	return programs, nil
}

// ask runs one program to its end. The error is why it does not agree.
func (p Programs) ask(ctx context.Context, program, name string, desc ocispec.Descriptor) (reason string, err error) {
	body, err := json.Marshal(desc)
	if err != nil {
		return "", err
	}
	stdout, stderr := &limited{max: maxReason}, &limited{max: maxLog}
	cmd := exec.Command(program, "-name", name, "-digest", desc.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(body), stdout, discardRest{stderr}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = drain
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	if err := cmd.Start(); err != nil {
		return "", err
	}
	err = wait(ctx, cmd)
	if stderr.kept.Len() > 0 {
		klog.FromContext(ctx).Info("Image verifier says", "verifier", filepath.Base(program), "image", name, "stderr", stderr.kept.String())
	}
	reason = strings.TrimSpace(stdout.kept.String())
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		return reason, fmt.Errorf("took longer than %s", p.Timeout)
	case stdout.over:
		return reason, fmt.Errorf("says more than %d bytes", maxReason)
	case errors.Is(err, exec.ErrWaitDelay):
		return reason, errors.New("left a process behind that holds its output")
	case err != nil && reason != "":
		return reason, fmt.Errorf("%w: %.1024q", err, reason)
	}
	return reason, err
}

// wait waits for the program and kills what it has left in its process group.
func wait(ctx context.Context, cmd *exec.Cmd) error {
	group := func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	killed := make(chan struct{})
	unkill := context.AfterFunc(ctx, func() {
		defer close(killed)
		group()
	})
	// It stays a zombie until Wait, so that its group's number is no other's.
	for {
		if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if !unkill() {
		<-killed
	}
	group()
	return cmd.Wait()
}

// limited keeps what fits and fails with the byte that does not, which ends
// the program by SIGPIPE.
type limited struct {
	kept bytes.Buffer // not embedded: its ReadFrom knows no limit
	max  int
	over bool
}

func (l *limited) Write(b []byte) (int, error) {
	room := l.max - l.kept.Len()
	if len(b) > room {
		l.over = true
		l.kept.Write(b[:room])
		return room, io.ErrShortWrite
	}
	return l.kept.Write(b)
}

// discardRest takes everything and keeps what fits.
type discardRest struct{ l *limited }

func (d discardRest) Write(b []byte) (int, error) {
	_, _ = d.l.Write(b)
	return len(b), nil
}
