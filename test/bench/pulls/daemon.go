package main

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
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// daemon is a running runtime.
type daemon struct {
	name   string
	root   string // where its images are
	pid    int
	images runtimeapi.ImageServiceClient
	stop   func() error
}

func startGantry(ctx context.Context, registry *images.Registry) (*daemon, error) {
	i, err := harness.Start(ctx, harness.Config{Registry: registry, Flags: []string{"--log-level", "0"}})
	if err != nil {
		return nil, err
	}
	return &daemon{name: "gantry", root: filepath.Join(i.Dir, "root"), pid: i.PID(), images: i.Image, stop: i.Close}, nil
}

// startContainerd starts a containerd with everything of it beneath dir, and its defaults but for the registry.
func startContainerd(ctx context.Context, path, dir string, registry *images.Registry) (*daemon, error) {
	certs, config, socket := filepath.Join(dir, "certs.d"), filepath.Join(dir, "config.toml"), filepath.Join(dir, "sock")
	if err := registry.WriteMirrors(certs); err != nil {
		return nil, err
	}
	defaults, err := exec.CommandContext(ctx, path, "config", "default").Output()
	if err != nil {
		return nil, fmt.Errorf("asking for its configuration: %w", err)
	}
	version := regexp.MustCompile(`(?m)^version = (\d+)$`).FindSubmatch(defaults)
	if version == nil {
		return nil, fmt.Errorf("no version in its configuration")
	}
	plugin := "io.containerd.cri.v1.images"
	if string(version[1]) == "2" {
		plugin = "io.containerd.grpc.v1.cri"
	}
	text := fmt.Sprintf("version = %s\n[plugins.%q.registry]\nconfig_path = %q\n", version[1], plugin, certs)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	logs, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer logs.Close()
	cmd := exec.Command(path, "--config", config, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"), "--address", socket, "--log-level", "error")
	cmd.Stdout, cmd.Stderr = logs, logs
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{name: "containerd", root: filepath.Join(dir, "root"), pid: cmd.Process.Pid, stop: func() error {
		return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
	}}
	if out, err := exec.CommandContext(ctx, path, "--version").Output(); err == nil && len(strings.Fields(string(out))) > 2 {
		d.name += " " + regexp.MustCompile(`^v?([0-9.]*[0-9]).*`).ReplaceAllString(strings.Fields(string(out))[2], "$1")
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, errors.Join(err, d.stop())
	}
	d.images = runtimeapi.NewImageServiceClient(conn)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := d.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		if err == nil {
			return d, nil
		}
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(logs.Name())
			return nil, errors.Join(fmt.Errorf("it does not answer: %w\n%s", err, said), d.stop())
		}
	}
}
