package ocispec

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func usernsOptions(uids, gids *runtimeapi.IDMapping) *runtimeapi.NamespaceOption {
	return &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: &runtimeapi.UserNamespace{
		Uids: []*runtimeapi.IDMapping{uids}, Gids: []*runtimeapi.IDMapping{gids}}}
}

func usernsPod() Pod {
	p := testPod()
	p.UserNS, p.UserNSPath = &UserNS{UID: 100_000, GID: 200_000, Length: 65536}, "/run/pod/ns/user"
	p.Config.Linux.SecurityContext.NamespaceOptions = usernsOptions(&runtimeapi.IDMapping{HostId: 100_000, Length: 65536}, &runtimeapi.IDMapping{HostId: 200_000, Length: 65536})
	return p
}

func TestUserNSSpec(t *testing.T) {
	n, c := testNode(), testContainer()
	n.IDMappedMounts = true
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: "/v",
		UidMappings: []*runtimeapi.IDMapping{{HostId: 100_000, Length: 65536}}, GidMappings: []*runtimeapi.IDMapping{{HostId: 200_000, Length: 65536}}}}
	c.Mounts = []Mount{{CRI: c.Config.Mounts[0], Source: "/v"}}
	c.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "c"}, {Path: "/dev/same", Type: "c"}}
	c.DeviceSources = map[string]string{"/dev/x": "/dev/y", "/dev/same": "/dev/same"}
	spec, _, err := Build(n, usernsPod(), c)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(spec.Linux.UIDMappings, spec.Linux.GIDMappings, spec.Linux.Namespaces[1]); got != "[{0 100000 65536}] [{0 200000 65536}] {user /run/pod/ns/user}" {
		t.Errorf("mappings: %s", got)
	}
	for _, m := range spec.Mounts {
		switch m.Destination {
		case "/v":
			if got := fmt.Sprint(m.UIDMappings, m.GIDMappings, m.Options); got != "[{0 100000 65536}] [{0 200000 65536}] [rbind rprivate rw idmap]" {
				t.Errorf("the volume: %s", got)
			}
		case "/dev/x":
			if m.Source != "/dev/y" {
				t.Errorf("the device: %v", m)
			}
		}
	}
	if len(spec.Linux.Devices) != 1 || spec.Linux.Devices[0].Path != "/dev/same" {
		t.Errorf("nodes: %v", spec.Linux.Devices)
	}
	// A namespace too small to have the group of terminals.
	p := usernsPod()
	p.UserNS.Length = 5
	spec, _, err = Build(n, p, testContainer())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Mounts {
		if m.Type == "devpts" && strings.Contains(strings.Join(m.Options, ","), "gid=") {
			t.Errorf("devpts: %v", m.Options)
		}
	}
	init, err := BuildPodInit(n, usernsPod(), "/init", "/pods/init")
	if err != nil || len(init.Linux.UIDMappings) != 1 || !hasNamespace(init, specs.UserNamespace) {
		t.Errorf("pod init: %+v, %v", init, err)
	}
}

// TestSecurityOfUserNamespaces: a mapping that is not one range which begins with the pod's root and lies beside the host's
// is refused, and so is whoever it does not have.
func TestSecurityOfUserNamespaces(t *testing.T) {
	good := &runtimeapi.IDMapping{HostId: 100_000, Length: 65536}
	for id, bad := range map[string]*runtimeapi.NamespaceOption{
		"2.6-userns-length-0":   usernsOptions(&runtimeapi.IDMapping{HostId: 100_000}, &runtimeapi.IDMapping{HostId: 100_000}),
		"2.6-userns-overflow":   usernsOptions(&runtimeapi.IDMapping{HostId: 1 << 31, Length: 1 << 31}, &runtimeapi.IDMapping{HostId: 5, Length: 1 << 31}),
		"2.6-userns-no-root":    usernsOptions(&runtimeapi.IDMapping{HostId: 100_000, ContainerId: 1, Length: 65536}, good),
		"2.6-userns-host-root":  usernsOptions(good, &runtimeapi.IDMapping{Length: 65536}),
		"2.6-userns-unlike":     usernsOptions(good, &runtimeapi.IDMapping{HostId: 100_000, Length: 65535}),
		"2.6-userns-overlap":    {UsernsOptions: &runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{good, good}, Gids: []*runtimeapi.IDMapping{good, good}}},
		"2.6-userns-70-KiB":     {UsernsOptions: &runtimeapi.UserNamespace{Uids: make([]*runtimeapi.IDMapping, 35<<10), Gids: []*runtimeapi.IDMapping{good}}},
		"2.6-userns-of-another": {UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_TARGET, Uids: []*runtimeapi.IDMapping{good}, Gids: []*runtimeapi.IDMapping{good}}},
		"2.6-userns-host-pid":   {Pid: runtimeapi.NamespaceMode_NODE, UsernsOptions: usernsOptions(good, good).UsernsOptions},
		"2.6-userns-not-POD":    {UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE, Uids: []*runtimeapi.IDMapping{good}}},
	} {
		t.Run(id, func(t *testing.T) {
			if u, err := ParseUserNS(bad); !errors.Is(err, errdefs.ErrInvalidArgument) || len(err.Error()) > 512 {
				t.Errorf("%v, %v", u, err)
			}
		})
	}
	for id, row := range map[string]struct {
		change func(n *Node, p *Pod, c *Container)
		kind   error
	}{
		"2.6-userns-stranger": {func(_ *Node, _ *Pod, c *Container) { c.User.Groups = append(c.User.Groups, 65536) }, errdefs.ErrInvalidArgument},
		"2.6-userns-left": {func(_ *Node, _ *Pod, c *Container) {
			c.Config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: 1, UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}}
		}, errdefs.ErrInvalidArgument},
		"2.6-userns-lost":        {func(_ *Node, p *Pod, _ *Container) { p.UserNS = nil }, errdefs.ErrFailedPrecondition},
		"2.6-mapping-of-another": {mappedFrom(7000), errdefs.ErrInvalidArgument},
		"2.6-mapping-unable":     {mappedFrom(100_000), errdefs.ErrFailedPrecondition},
		"2.6-userns-propagation": {func(_ *Node, _ *Pod, c *Container) {
			c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: "/v", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
			c.Mounts = []Mount{{CRI: c.Config.Mounts[0], Source: "/v", Shared: true}}
		}, errdefs.ErrInvalidArgument},
		"2.6-userns-default-device": {func(_ *Node, _ *Pod, c *Container) {
			c.Devices, c.DeviceSources = []specs.LinuxDevice{{Path: "/dev/tty", Type: "c"}}, map[string]string{"/dev/tty": "/dev/x"}
		}, errdefs.ErrInvalidArgument},
	} {
		t.Run(id, func(t *testing.T) {
			n, p, c := testNode(), usernsPod(), testContainer()
			row.change(&n, &p, &c)
			if _, _, err := Build(n, p, c); !errors.Is(err, row.kind) {
				t.Error(err)
			}
		})
	}
}

func mappedFrom(host uint32) func(*Node, *Pod, *Container) {
	return func(_ *Node, _ *Pod, c *Container) {
		c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: "/v",
			UidMappings: []*runtimeapi.IDMapping{{HostId: host, Length: 65536}}, GidMappings: []*runtimeapi.IDMapping{{HostId: 200_000, Length: 65536}}}}
		c.Mounts = []Mount{{CRI: c.Config.Mounts[0], Source: "/v"}}
	}
}

func TestPingGroups(t *testing.T) {
	u := &UserNS{UID: 1, GID: 200_000, Length: 65536}
	for value, want := range map[string]string{
		"0 65535": "200000 265535", " 10\t20 ": "200010 200020", "1 0": "1 0", "7 3": "1 0",
		"0 65536": "", "0": "", "": "", "0 1 2": "", "-1 5": "", "0 4294967296": "", "a b": "",
	} {
		got, err := u.PingGroups(value)
		if got != want || (err != nil) != (want == "") || err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %q, %v; want %q", value, got, err, want)
		}
	}
	if got, err := (*UserNS)(nil).PingGroups("0 2147483647"); got != "0 2147483647" || err != nil {
		t.Errorf("on the host: %q, %v", got, err)
	}
}

// FuzzPingGroups: what comes out is written to the host's kernel and never names a group outside of the pod's.
func FuzzPingGroups(f *testing.F) {
	f.Add("0 65535", uint32(100_000), uint32(65536))
	f.Fuzz(func(t *testing.T, value string, gid, length uint32) {
		if gid == 0 || length == 0 || uint64(gid)+uint64(length) > math.MaxUint32 {
			return
		}
		got, err := (&UserNS{GID: gid, Length: length}).PingGroups(value)
		if err != nil || got == "1 0" {
			return
		}
		var low, high uint64
		if n, err := fmt.Sscanf(got, "%d %d", &low, &high); n != 2 || err != nil || low < uint64(gid) || high >= uint64(gid)+uint64(length) || low > high {
			t.Errorf("%q of %d+%d: %q", value, gid, length, got)
		}
	})
}
