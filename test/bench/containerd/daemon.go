package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// Config says which containerd is started, and with what. Dir must exist.
type Config struct {
	Path     string // of the program
	Dir      string
	State    string           // its state folder, /run/containerd in its defaults
	Registry *images.Registry // whose mirrors it uses
	// Tables gives those of its configuration, whose version it is told, beyond the registry; the rest are its defaults.
	Tables func(version string) string
}

// Daemon is a running containerd.
type Daemon struct {
	Name    string // with the version
	Root    string // where its images are
	PID     int
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient

	path string
	args []string
	log  string
	cmd  *exec.Cmd
	conn *grpc.ClientConn
}

// Start starts a containerd and waits until it answers.
func Start(ctx context.Context, cfg Config) (*Daemon, error) {
	config, err := cfg.write(ctx)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(cfg.Dir, "sock")
	d := &Daemon{Name: "containerd", Root: filepath.Join(cfg.Dir, "root"), path: cfg.Path, log: filepath.Join(cfg.Dir, "log")}
	if out, err := exec.CommandContext(ctx, cfg.Path, "--version").Output(); err == nil && len(strings.Fields(string(out))) > 2 {
		d.Name += " " + regexp.MustCompile(`^v?([0-9.]*[0-9]).*`).ReplaceAllString(strings.Fields(string(out))[2], "$1")
	}
	d.conn, err = grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond}}))
	if err != nil {
		return nil, err
	}
	d.Runtime, d.Images = runtimeapi.NewRuntimeServiceClient(d.conn), runtimeapi.NewImageServiceClient(d.conn)
	d.args = []string{"--config", config, "--root", d.Root, "--state", cfg.State, "--address", socket, "--log-level", "error"}
	if err := d.Start(ctx, func(time.Time) {}); err != nil {
		return nil, errors.Join(err, d.conn.Close())
	}
	return d, nil
}

// Start starts it after End, calls started when the process is there, with the time of before, and waits until it answers.
func (d *Daemon) Start(ctx context.Context, started func(began time.Time)) error {
	logs, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer logs.Close()
	d.cmd = exec.Command(d.path, d.args...)
	d.cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(d.path)+":"+os.Getenv("PATH")) // of its shim
	d.cmd.Stdout, d.cmd.Stderr = logs, logs
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // harness.Reap knows its shims by not being in this session
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.PID = d.cmd.Process.Pid
	started(began)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := d.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			said, _ := os.ReadFile(logs.Name())
			return errors.Join(fmt.Errorf("it does not answer: %w\n%s", err, said), d.End(syscall.SIGTERM))
		}
	}
}

// write writes the configuration.
func (cfg *Config) write(ctx context.Context) (path string, err error) {
	certs := filepath.Join(cfg.Dir, "certs.d")
	if err := cfg.Registry.WriteMirrors(certs); err != nil {
		return "", err
	}
	defaults, err := exec.CommandContext(ctx, cfg.Path, "config", "default").Output()
	if err != nil {
		return "", fmt.Errorf("asking for its configuration: %w", err)
	}
	version := regexp.MustCompile(`(?m)^version = (\d+)$`).FindSubmatch(defaults)
	if version == nil {
		return "", fmt.Errorf("no version in its configuration")
	}
	plugin := "io.containerd.cri.v1.images"
	if string(version[1]) == "2" {
		plugin = "io.containerd.grpc.v1.cri"
	}
	text := fmt.Sprintf("version = %s\n[plugins.%q.registry]\nconfig_path = %q\n", version[1], plugin, certs)
	if cfg.Tables != nil {
		text += cfg.Tables(string(version[1]))
	}
	path = filepath.Join(cfg.Dir, "config.toml")
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// End ends the daemon; its pods run on.
func (d *Daemon) End(sig syscall.Signal) error {
	if err := d.cmd.Process.Signal(sig); err != nil {
		return err
	}
	err := d.cmd.Wait()
	var exit *exec.ExitError
	if sig == syscall.SIGKILL && errors.As(err, &exit) {
		return nil
	}
	return err
}

// Close ends the daemon and the clients.
func (d *Daemon) Close() error { return errors.Join(d.conn.Close(), d.End(syscall.SIGTERM)) }
