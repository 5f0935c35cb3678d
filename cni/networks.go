package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// Config says where a Networks finds its configuration and keeps its state. Several instances run beside each other
// when StateDir, Bridge, Subnets and Table differ.
type Config struct {
	ConfDir            string         // CNI configuration files, e.g. /etc/cni/net.d; need not exist
	BinDirs            []string       // where plugin executables are looked for, in order
	StateDir           string         // leases, records and libcni's cache; survives the daemon
	RunDir             string         // libcni's cache for lists that are built in, which do without after a reboot; "" = StateDir
	Bridge             string         // bridge of the default network; "" = gantry0
	Subnets            []netip.Prefix // pod addresses of the default network, one per family; empty = 10.86.0.0/16
	NonMasqueradeCIDRs []netip.Prefix // what pods of the default network reach with their own address, beside each other
	NoDefault          bool           // no default network: without CNI configuration the network is not ready
	Table              string         // nftables table (family inet) of the built-in plugin; "" = gantry

	pace pace
}

// PortMapping publishes a port of the pod on the node.
type PortMapping struct {
	Protocol      string     // tcp, udp or sctp; any case
	ContainerPort uint16     // 1-65535
	HostPort      uint16     // 0 = not published
	HostIP        netip.Addr // zero = every address of the node
}

// Pod is what the network must know of a pod.
type Pod struct {
	ID, Name, Namespace, UID string
	NetNS                    string // path of the pinned network namespace; may be gone at Detach
	PortMappings             []PortMapping
	DNSServers               []string
	DNSSearches              []string
	DNSOptions               []string
	CgroupParent             string
	Annotations              map[string]string
}

// Result is what a pod got.
type Result struct {
	IPs []netip.Addr // of eth0, in the order of the CNI result; never empty
}

// Networks attaches pods and detaches them. It is made by Open, lives as long as the daemon and is ended by Close;
// attached pods stay attached without it. All methods may be called concurrently; calls for one pod wait for
// each other.
type Networks struct {
	cfg     Config
	records *records
	podCIDR *podCIDR
	bridge  *bridge.Plugin
	exec    *plugins
	libcni  *libcni.CNIConfig
	within  *libcni.CNIConfig // the same for lists that are built in

	pace     pace
	calls    *calls
	retries  *retries
	start    budget
	conf     atomic.Pointer[conf]  // what Status and Attach go by
	verdict  atomic.Pointer[error] // of the plugins, what Status goes by too
	reloaded chan struct{}         // has something after conf has changed
	settled  chan error            // gets an error, or nil, after a GC; see unknown

	reader    confReader // the watcher's own
	stopWatch func() error
	stop      context.CancelFunc
	tasks     sync.WaitGroup // followStatus, followRetries, followGC
}

// Open reads the state and the configuration, and starts to watch the configuration directory until Close. A bad
// configuration file is no error: Status tells it. A damaged record is set aside.
func Open(ctx context.Context, cfg Config) (*Networks, error) {
	cfg.RunDir = orDefault(cfg.RunDir, cfg.StateDir)
	cfg.Bridge, cfg.Table = orDefault(cfg.Bridge, "gantry0"), orDefault(cfg.Table, "gantry")
	if len(cfg.Subnets) == 0 {
		cfg.Subnets = []netip.Prefix{netip.MustParsePrefix("10.86.0.0/16")}
	}
	if err := checkSubnets(cfg.Subnets); err != nil {
		return nil, fmt.Errorf("subnets of the default network: %w", err)
	}
	n := &Networks{cfg: cfg, pace: cfg.pace.orDefault(), calls: newCalls(), reloaded: make(chan struct{}, 1), settled: make(chan error, 1)}
	n.retries, n.start.left = newRetries(n.pace), n.pace.settle
	var err error
	if n.records, err = openRecords(ctx, filepath.Join(cfg.StateDir, "attachments")); err != nil {
		return nil, err
	}
	if err := n.endOrphans(ctx); err != nil { // the address that one of them may yet take is no reason not to serve
		klog.FromContext(ctx).Error(err, "Plugins that an earlier process has left could not be ended, addresses may leak")
	}
	if n.podCIDR, err = openPodCIDR(ctx, cfg); err != nil {
		return nil, errors.Join(err, n.records.journal.Close())
	}
	if n.bridge, err = bridge.Open(ctx, cfg.StateDir, cfg.Bridge, cfg.Table); err != nil {
		return nil, errors.Join(err, n.records.journal.Close())
	}
	n.exec = &plugins{bridge: n.bridge, state: cfg.StateDir}
	n.libcni = libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.StateDir, verbs{n.exec})
	n.within = libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.RunDir, verbs{n.exec})
	if n.stopWatch, err = watch(ctx, cfg.ConfDir, func() time.Duration { return n.reload(ctx) }); err != nil {
		return nil, errors.Join(err, n.bridge.Close(), n.records.journal.Close())
	}
	unasked := n.unasked()
	n.verdict.Store(&unasked)
	following, stop := context.WithCancel(ctx)
	n.stop = stop
	n.tasks.Go(func() { n.followStatus(following) })
	n.tasks.Go(func() { n.followRetries(following) })
	n.tasks.Go(func() { n.followGC(following) })
	return n, nil
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// Close ends the work in the background, and the plugins that it runs. Attached pods stay attached.
func (n *Networks) Close() error {
	n.stop()
	n.tasks.Wait()
	return errors.Join(n.stopWatch(), n.bridge.Close(), n.records.journal.Close())
}

// SetPodCIDR sets the subnets of the default network, and of plugins that have the capability ipRanges: one prefix, or
// two of different families with a comma between.
// It counts from the next Attach on and is remembered. Empty means no change, as the kubelet's empty pod CIDR does.
func (n *Networks) SetPodCIDR(cidrs string) error {
	if cidrs == "" {
		return nil
	}
	if err := n.podCIDR.set(cidrs); err != nil {
		return fmt.Errorf("pod CIDR %q: %w", cidrs, err)
	}
	signal(n.reloaded) // the network may have waited for it
	return nil
}

// Teardown removes the bridges and the nftables table of this instance, after which nothing of it is left but sysctls
// (ip_forward) that others may rely on. It refuses while a pod is attached.
func (n *Networks) Teardown(ctx context.Context) error {
	if attached := len(n.records.all()); attached > 0 {
		return fmt.Errorf("tearing down networks: %d pods are attached, remove them first: %w", attached, errdefs.ErrFailedPrecondition)
	}
	if err := n.bridge.Teardown(ctx); err != nil {
		return fmt.Errorf("tearing down networks: %w", err)
	}
	return nil
}
