package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cmd/gantry/config"
	"github.com/gantry-cri/gantry/cni"
	"github.com/gantry-cri/gantry/cri"
	"github.com/gantry-cri/gantry/cri/streaming"
	"github.com/gantry-cri/gantry/cri/transfer"
	"github.com/gantry-cri/gantry/imageservice"
	"github.com/gantry-cri/gantry/runtimeservice"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/selinux"
)

// teardownTimeout bounds what is removed when the daemon ends and no pod is left.
const teardownTimeout = 10 * time.Second

// streamingTokenTimeout is how long the URL of a streaming session is good for: the kubelet connects at once.
const streamingTokenTimeout = time.Minute

// serve is the daemon: it takes over what the last one has left, answers the
// CRI until ctx ends, and leaves what runs running.
func serve(ctx context.Context, cfg config.Config) (err error) {
	manager := takeManager()
	unlock, err := lockRoot(ctx, cfg.Root, cfg.Run)
	if err != nil {
		return err
	}
	defer unlock()
	if cfg.CgroupDriver == config.Systemd {
		if err := sandbox.CheckSystemd(ctx); err != nil {
			return err
		}
	}
	if cfg.SELinux {
		if err := selinux.Check(); err != nil {
			return fmt.Errorf("selinux = true: %w", err)
		}
	}
	// What the parts do at their end must not be cut off by what ends them.
	detached := context.WithoutCancel(ctx)

	host, err := sandbox.Open(ctx, sandbox.Config{
		RunDir: cfg.Run, Supervisor: cfg.Supervisor, MaxLog: int64(cfg.Logs.MaxSize), SupervisorLog: filepath.Join(cfg.Run, "supervisor.log"),
		SupervisorScope: manager.systemd(),
	})
	if err != nil {
		return err
	}
	defer closing(&err, host.Close)
	images, err := imageservice.Open(detached, imagesOf(cfg))
	if err != nil {
		return err
	}
	defer closing(&err, images.Close)
	networks, err := cni.Open(detached, cni.Config{
		ConfDir: cfg.CNI.ConfDir, BinDirs: cfg.CNI.BinDirs, StateDir: filepath.Join(cfg.Root, "cni"), RunDir: filepath.Join(cfg.Run, "cni"),
		Bridge: cfg.Network.Bridge, Subnets: cfg.Network.Subnets, NonMasqueradeCIDRs: cfg.Network.NonMasqueradeCIDRs, NoDefault: cfg.Network.Default == config.NetworkNone, Table: cfg.Network.Table,
	})
	if err != nil {
		return err
	}
	defer closing(&err, networks.Close)
	streams, err := streaming.Listen(streaming.Config{
		Address: cfg.Streaming.Address, IdleTimeout: time.Duration(cfg.Streaming.IdleTimeout),
		CreationTimeout: time.Duration(cfg.Streaming.CreationTimeout), TokenTimeout: streamingTokenTimeout,
		TLS: streaming.TLS{Cert: cfg.Streaming.TLSCert, Key: cfg.Streaming.TLSKey, ClientCA: cfg.Streaming.TLSClientCA},
	})
	if err != nil {
		return err
	}
	defer streams.Close() // again, but for an error before it serves
	service, err := runtimeservice.Open(ctx, runtimeservice.Config{
		Root: cfg.Root, Version: version, Handlers: probeHandlers(ctx, cfg), DefaultHandler: cfg.DefaultRuntime,
		SystemdCgroup: cfg.CgroupDriver == config.Systemd, SeccompRoot: cfg.SeccompDir, ShmSize: int64(cfg.ShmSize), CDISpecDirs: cfg.CDISpecDirs,
		DeviceOwnership: cfg.DeviceOwnership, SELinux: cfg.SELinux, MaxCheckpoint: int64(cfg.MaxCheckpoint), Streaming: streams,
	}, host, images, networks)
	if err != nil {
		return err
	}
	defer closing(&err, service.Close)

	servers, serving := errgroup.WithContext(ctx) // one does not go on without the other
	servers.Go(func() error { return streams.Serve(serving, sessions{service}) })
	servers.Go(func() error {
		return cri.Serve(serving, cri.Config{
			Socket: cfg.Socket, Transfer: transferred{images},
			Ready: func() {
				klog.FromContext(ctx).Info("Ready", "socket", cfg.Socket, "version", version)
				servers.Go(func() error {
					manager.tell(serving, "Serving the CRI on "+cfg.Socket, func(ctx context.Context) error { return answers(ctx, cfg.Socket) })
					return nil
				})
			},
		}, service, images)
	})
	return errors.Join(servers.Wait(), leaveNothing(detached, networks))
}

// leaveNothing removes the bridge and the nftables table if no pod needs them,
// so that a node whose pods are gone is as it was before.
func leaveNothing(ctx context.Context, networks *cni.Networks) error {
	ctx, cancel := context.WithTimeout(ctx, teardownTimeout)
	defer cancel()
	if err := networks.Teardown(ctx); err != nil && !errdefs.IsFailedPrecondition(err) {
		return err
	}
	return nil
}

// probeHandlers asks every configured OCI runtime what it can do, all at once,
// so that one that hangs delays the start by its time limit and no more. One
// that does not answer keeps its pods from running, not the others'.
func probeHandlers(ctx context.Context, cfg config.Config) []runtimeservice.Handler {
	missing := cfg.Missing()
	names := slices.Sorted(maps.Keys(cfg.Runtimes))
	out := make([]runtimeservice.Handler, len(names))
	var probes sync.WaitGroup
	for i, name := range names {
		r := cfg.Runtimes[name]
		out[i] = runtimeservice.Handler{
			Name: name, Path: r.Path, Root: r.Root, Options: r.Options, Annotations: r.Annotations,
			PrivilegedWithoutHostDevices: r.PrivilegedWithoutHostDevices, CgroupWritable: r.CgroupWritable, Err: missing[name],
		}
		// Without it every start and every removal would fail.
		if err := os.MkdirAll(r.Root, 0o700); err != nil && out[i].Err == nil {
			out[i].Err = fmt.Errorf("runtimes.%s.root = %q: %w", name, r.Root, err)
		}
		if out[i].Err == nil {
			probes.Go(func() { out[i].Features, out[i].Err = sandbox.ProbeRuntime(ctx, r.Path, r.Options) })
		}
	}
	probes.Wait()
	log := klog.FromContext(ctx)
	for _, h := range out {
		if h.Err != nil {
			log.Error(h.Err, "Pods of this runtime cannot be run", "runtime", h.Name)
		} else if known := judge(h.Features.Program, h.Features.Version); known.open {
			log.Info("Warning: the OCI runtime has known holes", "runtime", h.Name, "path", h.Path, "detail", known.detail)
		}
	}
	return out
}

// lockRoot makes the two directories, closed to everybody else, and keeps a
// second daemon from using them.
func lockRoot(ctx context.Context, root, run string) (unlock func(), err error) {
	for _, dir := range []string{root, run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making %s: %w", dir, err)
		}
		// Root file systems with setuid programs lie below (CVE-2021-41103).
		// A disk that has become read-only must not keep a daemon from taking over what runs.
		if err := os.Chmod(dir, 0o700); err != nil && !(errors.Is(err, unix.EROFS) && isClosed(dir)) {
			return nil, fmt.Errorf("closing %s to others: %w", dir, err)
		}
	}
	// Both: to a daemon with other records, all that is in a shared run directory would be leftovers to remove.
	ofRoot, err := lockDir(ctx, root)
	if err != nil {
		return nil, err
	}
	ofRun, err := lockDir(ctx, run)
	if err != nil {
		_ = ofRoot.Close()
		return nil, err
	}
	return func() { _, _ = ofRun.Close(), ofRoot.Close() }, nil
}

func isClosed(dir string) bool {
	info, err := os.Stat(dir)
	return err == nil && info.Mode().Perm() == 0o700
}

// lockWait is how long a daemon that was killed may take to be gone: a child that it had forked keeps its descriptors
// until it executes its program, or sees that nobody is left who would set it up.
const lockWait = 5 * time.Second

// lockDir locks one directory; the lock ends with the descriptor.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EROFS) {
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) && ctx.Err() == nil; {
		time.Sleep(2 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another gantry uses %s (stop it, or give this one its own --root, --run, --bridge and --subnet): %w: %w", dir, err, errdefs.ErrFailedPrecondition)
	}
	return f, nil
}

// closing adds the error of an orderly end to *err.
func closing(err *error, end func() error) { *err = errors.Join(*err, end()) }

// transferred is the image service as package transfer wants it.
type transferred struct{ *imageservice.Service }

func (t transferred) Pulls() []transfer.Pull {
	var out []transfer.Pull
	for _, p := range t.Service.Pulls() {
		out = append(out, transfer.Pull(p))
	}
	return out
}

// sessions is the runtime service as package streaming wants it.
type sessions struct{ *runtimeservice.Service }

func (s sessions) ExecSession(ctx context.Context, req *runtimeapi.ExecRequest, st streaming.Streams) (int, error) {
	return s.Service.ExecSession(ctx, req, sandbox.Streams(st))
}

func (s sessions) AttachSession(ctx context.Context, req *runtimeapi.AttachRequest, st streaming.Streams) error {
	return s.Service.AttachSession(ctx, req, sandbox.Streams(st))
}

// imagesOf is the part of the configuration that images need.
func imagesOf(cfg config.Config) imageservice.Config {
	i := cfg.Images
	return imageservice.Config{
		Root: filepath.Join(cfg.Root, "images"), RunDir: filepath.Join(cfg.Run, "rootfs"), HostsDirs: cfg.RegistryConfigDirs,
		MaxDownloads: i.MaxDownloads, ProgressTimeout: time.Duration(i.PullProgressTimeout), LayerRanges: i.LayerRanges,
		KeepLayerBlobs: i.KeepLayerBlobs, Pinned: i.Pinned, ShortNames: i.ShortNames, DockerConfig: i.DockerConfig, PreloadDir: i.PreloadDir,
		Handlers: slices.Sorted(maps.Keys(cfg.Runtimes)),
		Verify:   imageservice.Verify{BinDir: i.Verify.BinDir, MaxPrograms: i.Verify.MaxPrograms, Timeout: time.Duration(i.Verify.Timeout)},
		Limits: imageservice.Limits{
			ManifestSize: int64(i.Limits.ManifestSize), IndexDepth: i.Limits.IndexDepth, Layers: i.Limits.Layers,
			LayerEntries: i.Limits.LayerEntries, LayerSize: int64(i.Limits.LayerSize), LayerRatio: i.Limits.LayerRatio,
		},
	}
}
