package main

import (
	"context"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/bench/containerd"
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

func startContainerd(ctx context.Context, path, dir string, registry *images.Registry) (*daemon, error) {
	d, err := containerd.Start(ctx, containerd.Config{Path: path, Dir: dir, State: filepath.Join(dir, "state"), Registry: registry})
	if err != nil {
		return nil, err
	}
	return &daemon{name: d.Name, root: d.Root, pid: d.PID, images: d.Images, stop: d.Close}, nil
}
