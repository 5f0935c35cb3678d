package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// DefaultFile is the file that is read when none is named.
const DefaultFile = "/etc/gantry/config.toml"

// Values of Config.CgroupDriver and Network.Default.
const (
	CgroupFS      = "cgroupfs"
	Systemd       = "systemd"
	NetworkBridge = "gantry-bridge"
	NetworkNone   = "none"
)

// Config is the whole configuration. It comes settled from [Load]: no path is
// empty but Supervisor, when there is none to be found.
type Config struct {
	Root            string `toml:"root" comment:"State that outlives a reboot: images, records, leases of addresses. One instance at a time."`
	Run             string `toml:"run" comment:"State until the next reboot: namespaces, bundles, mounts, the socket."`
	Socket          string `toml:"socket" comment:"Unix socket of the CRI, at most 107 bytes. Default: gantry.sock in run."`
	Supervisor      string `toml:"supervisor" comment:"The gantry-supervisor binary. Default: the one beside the gantry binary, else in PATH."`
	DefaultRuntime  string `toml:"default_runtime" comment:"The runtime of pods that name none. Default: runc, else crun, else the first by name."`
	CgroupDriver    string `toml:"cgroup_driver" comment:"How cgroups are made, as the kubelet's cgroupDriver: \"cgroupfs\" or \"systemd\"."`
	ShmSize         Size   `toml:"shm_size" comment:"Size of a pod's /dev/shm."`
	SeccompDir      string `toml:"seccomp_dir" comment:"Where localhost seccomp profiles with a relative name lie."`
	DeviceOwnership bool   `toml:"device_ownership_from_security_context" comment:"Give the devices of a pod spec to the run_as_user and run_as_group of the container; otherwise they are their owner's on the host."`
	SELinux         bool   `toml:"selinux" comment:"Give pods and containers SELinux labels, and volumes those that the kubelet asks for. Takes a kernel that runs SELinux and a policy with container types (container-selinux). Otherwise containers are not confined by it."`
	MaxCheckpoint   Size   `toml:"max_checkpoint" comment:"What CheckpointContainer may write for one container, such as \"4GiB\"; \"0\" refuses it. It takes CRIU and an OCI runtime that was built with it."`
	LogLevel        int    `toml:"log_level" comment:"0 what an operator must see, 2 state changes, 4 steps, 5 and more for developers."`

	CDISpecDirs        []string `toml:"cdi_spec_dirs" comment:"Directories with CDI specs: what drivers want containers to get with a device. Read for each container that wants one; a later one goes before an earlier one."`
	RegistryConfigDirs []string `toml:"registry_config_dirs" comment:"Directories with a hosts.toml per registry, as containerd's certs.d; the first with an entry is used."`

	Logs      Logs               `toml:"logs" comment:"Logs of containers."`
	CNI       CNI                `toml:"cni" comment:"Networks by CNI plugins. The first configuration of conf_dir by name is used, and read anew when it changes."`
	Network   Network            `toml:"network" comment:"The network that serves when cni.conf_dir has no configuration.\nInstances beside each other on one machine need a bridge, subnets and table each."`
	Streaming Streaming          `toml:"streaming" comment:"Where exec, attach and port-forward clients connect to, with a token that is used once. The kubelet does so from this node."`
	Images    Images             `toml:"images" comment:"Pulling and keeping images."`
	Runtimes  map[string]Runtime `toml:"runtimes" comment:"OCI runtimes by the name of their handler. Default, when none is named: runc and crun where installed."`
}

// Logs is how the output of containers is kept.
type Logs struct {
	MaxSize Size `toml:"max_size" comment:"Size that the log file of one container never passes, however much is written between two rotations: what is more is dropped, with a warning, until the kubelet has rotated it. Give more than the kubelet's containerLogMaxSize (10Mi), which is the size that it rotates at. \"0\": no limit."`
}

// CNI is where CNI configuration and plugins lie.
type CNI struct {
	ConfDir string   `toml:"conf_dir" comment:"Directory of *.conflist, *.conf and *.json."`
	BinDirs []string `toml:"bin_dirs" comment:"Where plugins are looked for, in this order."`
}

// Network is the built-in network.
type Network struct {
	Default            string         `toml:"default" comment:"\"gantry-bridge\", or \"none\": without CNI configuration the node is not ready."`
	Bridge             string         `toml:"bridge" comment:"Name of its bridge, at most 15 bytes."`
	Subnets            []netip.Prefix `toml:"subnets" comment:"Addresses of pods: one prefix, or two of different families. The kubelet's pod CIDR goes before."`
	NonMasqueradeCIDRs []netip.Prefix `toml:"non_masquerade_cidrs" comment:"Where pods go with their own address, beside each other's: networks that have a route to the pods' subnets. Elsewhere they have the node's."`
	Table              string         `toml:"table" comment:"nftables table for masquerading and host ports. Default: gantry, followed by the bridge's name if that is not gantry0."`
}

// Streaming is the server behind the URLs of exec, attach and port-forward.
type Streaming struct {
	Address         string   `toml:"address" comment:"IP address and port, which may be 0 for any that is free. One that other machines reach takes tls_cert and tls_key."`
	IdleTimeout     Duration `toml:"idle_timeout" comment:"A session in which nothing is sent either way for so long is ended."`
	CreationTimeout Duration `toml:"creation_timeout" comment:"How long a client may take, once connected, to open its streams."`
	TLSCert         string   `toml:"tls_cert" comment:"Certificate in PEM, for TLS of version 1.2 at least. Read anew when it changes, as are the other two."`
	TLSKey          string   `toml:"tls_key" comment:"Its key."`
	TLSClientCA     string   `toml:"tls_client_ca" comment:"Clients must have a certificate of this CA; the kubelet has none to show."`
}

// Images is how images are pulled and kept.
type Images struct {
	MaxDownloads        int      `toml:"max_downloads" comment:"Layers that are fetched and unpacked at a time, over all pulls."`
	PullProgressTimeout Duration `toml:"pull_progress_timeout" comment:"A pull that gets no byte for so long fails."`
	LayerRanges         int      `toml:"layer_ranges" comment:"Parts of one large layer that are asked for at a time, where the registry knows ranges; 1 is a single stream."`
	KeepLayerBlobs      bool     `toml:"keep_layer_blobs" comment:"Keep the compressed layers too."`
	Pinned              []string `toml:"pinned" comment:"Images that the kubelet never removes; * matches any text."`
	ShortNames          string   `toml:"short_names" comment:"Registry of image names that have none; \"none\" refuses such names."`
	DockerConfig        string   `toml:"docker_config" comment:"Docker's config.json with credentials by registry, for pulls that bring none, and of mirrors. Read at each pull; may be absent."`
	PreloadDir          string   `toml:"preload_dir" comment:"Image archives in here are loaded at start. May be absent. Default: preload in root."`

	Verify Verify      `toml:"verify" comment:"Checking signatures before an image is unpacked."`
	Limits ImageLimits `toml:"limits" comment:"What an image may cost; more is refused."`
}

// Verify is the programs that must agree to an image.
type Verify struct {
	BinDir      string   `toml:"bin_dir" comment:"Every program in here is asked, as containerd's image verifiers are: -name NAME -digest DIGEST, exit status 0 to agree. Absent or empty: none."`
	MaxPrograms int      `toml:"max_programs" comment:"More programs than this refuse every image."`
	Timeout     Duration `toml:"timeout" comment:"How long one program may take."`
}

// ImageLimits bound what comes from a registry or an archive.
type ImageLimits struct {
	ManifestSize Size  `toml:"manifest_size" comment:"Bytes of a manifest, an index or an image's config."`
	IndexDepth   int   `toml:"index_depth" comment:"Indexes within one another."`
	Layers       int   `toml:"layers" comment:"Layers of an image. The kernel stacks 500."`
	LayerEntries int64 `toml:"layer_entries" comment:"Files and directories of a layer."`
	LayerSize    Size  `toml:"layer_size" comment:"Bytes of a layer once it is uncompressed."`
	LayerRatio   int64 `toml:"layer_ratio" comment:"How many times its compressed size a layer above 1GiB may grow to."`
}

// Runtime is an OCI runtime.
type Runtime struct {
	Path        string   `toml:"path" comment:"The binary: an absolute path, or a name to be looked for in PATH."`
	Root        string   `toml:"root" comment:"Where it keeps the state of its containers, its own. Default: runtimes/NAME in run."`
	Options     []string `toml:"options" comment:"Further global options of its command line, each as --NAME or --NAME=VALUE."`
	Annotations []string `toml:"annotations" comment:"Annotations of pods and containers that are passed on to it: the whole key, or PREFIX/* for every key that begins with PREFIX/."`

	PrivilegedWithoutHostDevices bool `toml:"privileged_without_host_devices" comment:"Give privileged containers no more devices than others."`
	CgroupWritable               bool `toml:"cgroup_writable" comment:"Let containers write to /sys/fs/cgroup below their own cgroup. On cgroup version 2 only."`
}

const defaultBridge = "gantry0"

// Default is the configuration of an empty file, not settled yet (see [Settle]).
func Default() Config {
	return Config{
		Root:               "/var/lib/gantry",
		Run:                "/run/gantry",
		CgroupDriver:       CgroupFS,
		ShmSize:            64 << 20,
		SeccompDir:         "/var/lib/kubelet/seccomp",
		LogLevel:           2,
		CDISpecDirs:        []string{"/etc/cdi", "/var/run/cdi"},
		RegistryConfigDirs: []string{"/etc/gantry/certs.d", "/etc/containerd/certs.d"},
		CNI:                CNI{ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"}},
		Network: Network{
			Default:            NetworkBridge,
			Bridge:             defaultBridge,
			Subnets:            []netip.Prefix{netip.MustParsePrefix("10.86.0.0/16")},
			NonMasqueradeCIDRs: []netip.Prefix{},
		},
		Streaming: Streaming{Address: "127.0.0.1:0", IdleTimeout: Duration(4 * time.Hour), CreationTimeout: Duration(30 * time.Second)},
		Images: Images{
			MaxDownloads: 6, PullProgressTimeout: Duration(time.Minute), LayerRanges: 1, Pinned: []string{},
			ShortNames: "docker.io", DockerConfig: "/etc/gantry/docker-config.json",
			Verify: Verify{BinDir: "/opt/gantry/image-verifier/bin", MaxPrograms: 10, Timeout: Duration(10 * time.Second)},
			Limits: ImageLimits{
				ManifestSize: 4 << 20, IndexDepth: 3, Layers: 500,
				LayerEntries: 4 << 20, LayerSize: 256 << 30, LayerRatio: 200,
			},
		},
	}
}

// Duration is a time.Duration that is written like "1m30s".
type Duration time.Duration

// UnmarshalText reads what [time.ParseDuration] does.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"90s\"", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Size is a number of bytes that is written like "64MiB".
type Size int64

var units = []struct {
	suffix string
	shift  int
}{{"GiB", 30}, {"MiB", 20}, {"KiB", 10}, {"", 0}}

// UnmarshalText reads a number of bytes, KiB, MiB or GiB.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range units {
		digits, ok := strings.CutSuffix(string(text), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > (1<<62)>>u.shift {
			break
		}
		*s = Size(n << u.shift)
		return nil
	}
	return fmt.Errorf("%q is not a size such as \"64MiB\"", text)
}

// MarshalText writes the size in the greatest unit that it is whole in.
func (s Size) MarshalText() ([]byte, error) {
	for _, u := range units {
		if s != 0 && s%(1<<u.shift) == 0 {
			return fmt.Appendf(nil, "%d%s", s>>u.shift, u.suffix), nil
		}
	}
	return []byte("0"), nil
}
