package ocispec

import (
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Node is what a spec has to know of the machine and of the OCI runtime.
// It does not change while the daemon runs.
type Node struct {
	Cgroup2 bool // the unified hierarchy alone; hybrid counts as version 1
	Systemd bool // cgroups are made through systemd

	// OCIVersion is the ociVersion that specs carry: no newer than the
	// runtime's `features` command says it knows. "" means 1.0.2, which every
	// runtime takes.
	OCIVersion string

	// MinOOMScoreAdj is the lowest oom_score_adj that may be given: -1000, or
	// the daemon's own when it lacks CAP_SYS_RESOURCE (proc_pid_oom_score_adj(5)).
	// Lower ones are raised to it; the caller has warned of that once.
	MinOOMScoreAdj int

	// Capabilities are the ones that the daemon can hand on, in the form
	// CAP_CHOWN: its permitted set. nil means all that are known.
	Capabilities []string

	// Rlimits are those of every process. They are written out in full, for a
	// container must not depend on what the daemon was started with. nil means
	// DefaultRlimits(nil).
	Rlimits []specs.POSIXRlimit

	Hugetlb        bool // the hugetlb controller is there
	SwapAccounting bool // cgroups limit swap (v1: memory.memsw.*, v2: memory.swap.max)
	Pids           bool // the pids controller is there

	AppArmor        bool   // the kernel has AppArmor enabled
	AppArmorProfile string // loaded profile for RuntimeDefault, "" = none is loaded
	SELinux         bool   // pods are given SELinux labels
	NoUserNS        bool   // the kernel makes no user namespaces

	// NoX32 says that the kernel has no x32 ABI: a filter for it would take a
	// fifth of what the OCI runtime needs to start a process, for nothing.
	NoX32 bool

	Annotations    AnnotationFilter // which ones the handler's OCI runtime is given
	CgroupWritable bool             // unprivileged containers too may write to /sys/fs/cgroup, on version 2

	SeccompRoot       string // localhost/NAME in the deprecated profile field is a file below it; "" = only absolute paths
	IDMappedMounts    bool   // the OCI runtime mounts with mapped owners
	RecursiveReadOnly bool   // the OCI runtime has the mount option rro and the kernel has mount_setattr(2)
}

// Pod is the sandbox that the container belongs to, as it stands.
// Config is read only.
type Pod struct {
	ID     string
	Config *runtimeapi.PodSandboxConfig

	Hostname string // of the pod's UTS namespace, or the host's; the container's $HOSTNAME

	UserNS *UserNS // nil = the host's

	// Paths of pinned namespaces; "" is the host's namespace. PIDNS is set only
	// when the pod shares one PID namespace; where it is not set, the pod's own
	// namespace option decides between the host's and one per container.
	UserNSPath, NetNS, IPCNS, UTSNS, PIDNS string

	// Host paths that every container of the pod sees at /dev/shm,
	// /etc/resolv.conf, /etc/hostname and /etc/hosts; "" = do not mount.
	ShmDir, ResolvConf, HostnameFile, HostsFile string

	CgroupParent string // as in the request, see [CgroupsPath]

	ProcessLabel, MountLabel string // SELinux labels of the pod, "" = none
}

// User is who a process runs as. Groups holds the primary group, first, and
// the supplementary ones without duplicates.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Mount is a CRI mount whose source has been looked up: host_path with
// symlinks followed, or the directory that an image volume is mounted at.
type Mount struct {
	CRI    *runtimeapi.Mount
	Source string // absolute

	// Of the mount that Source lies on: the "shared:" and "master:" tags of
	// proc_pid_mountinfo(5). Looked at only when propagation is asked for.
	Shared, Slave bool
}

// Container is what Build makes a spec of. Config and Image are read only.
type Container struct {
	ID     string
	Config *runtimeapi.ContainerConfig
	Image  imagespec.ImageConfig
	Rootfs string // absolute path of the mounted root file system
	User   User   // by [ResolveUser]

	TargetPIDNS string  // PID namespace of the container that target_id names, when pid is TARGET
	Mounts      []Mount // one per Config.Mounts, in that order

	// Device nodes and cgroup rules for Config.Devices; with AllDevices, which a
	// privileged container gets unless its handler says otherwise, the nodes of
	// all the host's devices as well.
	AllDevices  bool
	Devices     []specs.LinuxDevice
	DeviceRules []specs.LinuxDeviceCgroup
	// Where on the host each of Devices is, by its Path; for one that is not
	// named it is that path. Only user namespaces need to know.
	DeviceSources map[string]string

	// CDI is what the devices that [CDIDevices] gives want; nil when there are none.
	CDI *CDIEdits

	SeccompProfile []byte // content of the file that [SeccompPath] names
	CgroupsPath    string // by [CgroupsPath]

	ProcessLabel, MountLabel string // SELinux labels of its processes and of what is mounted for it, "" = none

	// Volumes maps each target that [ImageVolumes] gives to a host directory.
	Volumes map[string]string
}
