package ocispec

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UserNS is a pod's user namespace: the user and group ids from 0 on in it are
// those from UID and GID on on the host, Length of each. nil is the host's.
type UserNS struct{ UID, GID, Length uint32 }

// ParseUserNS is the user namespace that a pod's namespace options ask for, or
// nil for the host's. There is one range of each, which begins with the pod's
// root, and which is not to hold the host's.
func ParseUserNS(opts *runtimeapi.NamespaceOption) (*UserNS, error) {
	const field = "namespace_options.userns_options"
	o := opts.GetUsernsOptions()
	if o == nil {
		return nil, nil
	}
	switch o.GetMode() {
	case runtimeapi.NamespaceMode_POD:
	case runtimeapi.NamespaceMode_NODE:
		if len(o.GetUids()) > 0 || len(o.GetGids()) > 0 {
			return nil, fmt.Errorf("%s: mode NODE with mappings: %w", field, errdefs.ErrInvalidArgument)
		}
		return nil, nil
	default:
		return nil, fmt.Errorf("%s.mode: %s is not possible, only POD and NODE are: %w", field, o.GetMode(), errdefs.ErrInvalidArgument)
	}
	uids, err := idRange(field+".uids", o.GetUids())
	if err != nil {
		return nil, err
	}
	gids, err := idRange(field+".gids", o.GetGids())
	if err != nil {
		return nil, err
	}
	if uids.GetLength() != gids.GetLength() {
		return nil, fmt.Errorf("%s: %d uids and %d gids are mapped, there must be as many of both: %w", field, uids.GetLength(), gids.GetLength(), errdefs.ErrInvalidArgument)
	}
	// The kernel would grant the namespace no right over the host's others:
	// not even /proc and /dev/mqueue could be mounted.
	for name, mode := range map[string]runtimeapi.NamespaceMode{"pid": opts.GetPid(), "ipc": opts.GetIpc()} {
		if mode == runtimeapi.NamespaceMode_NODE {
			return nil, fmt.Errorf("namespace_options.%s: NODE in a pod with a user namespace: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return &UserNS{UID: uids.GetHostId(), GID: gids.GetHostId(), Length: uids.GetLength()}, nil
}

func idRange(field string, list []*runtimeapi.IDMapping) (*runtimeapi.IDMapping, error) {
	if len(list) != 1 {
		return nil, fmt.Errorf("%s: %d mappings, there must be one: %w", field, len(list), errdefs.ErrInvalidArgument)
	}
	m := list[0]
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	switch {
	case m.GetLength() == 0:
		return nil, refuse("length 0")
	case m.GetContainerId() != 0:
		return nil, refuse("container_id %d, it must be 0: the pod needs a root", m.GetContainerId())
	case m.GetHostId() == 0:
		return nil, refuse("host_id 0 is the host's root")
	case uint64(m.GetHostId())+uint64(m.GetLength()) > math.MaxUint32: // the last id means "none"
		return nil, refuse("%d ids from host_id %d on are more than there are", m.GetLength(), m.GetHostId())
	}
	return m, nil
}

// mappings are the namespace as the OCI spec has it.
func (u *UserNS) mappings() (uids, gids []specs.LinuxIDMapping) {
	return []specs.LinuxIDMapping{{HostID: u.UID, Size: u.Length}}, []specs.LinuxIDMapping{{HostID: u.GID, Size: u.Length}}
}

// Host is who on the host a user and group of the pod are.
func (u *UserNS) Host(uid, gid uint32) (hostUID, hostGID uint32) {
	if u == nil {
		return uid, gid
	}
	return u.UID + uid, u.GID + gid
}

// has refuses a user whom the namespace does not have.
func (u *UserNS) has(user User) error {
	if u == nil {
		return nil
	}
	for _, id := range append([]uint32{user.UID, user.GID}, user.Groups...) {
		if id >= u.Length {
			return fmt.Errorf("user %d:%d with the groups %v: %d is not in the pod's user namespace, which has the ids below %d: %w",
				user.UID, user.GID, user.Groups, id, u.Length, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// checkMapping refuses a mount whose owners shall be mapped otherwise than the
// pod's user namespace maps them, or cannot be.
func (u *UserNS) checkMapping(n Node, m *runtimeapi.Mount) error {
	for _, side := range []struct {
		field string
		list  []*runtimeapi.IDMapping
		other []*runtimeapi.IDMapping
		pod   func(*UserNS) uint32
	}{
		{"uidMappings", m.GetUidMappings(), m.GetGidMappings(), func(u *UserNS) uint32 { return u.UID }},
		{"gidMappings", m.GetGidMappings(), m.GetUidMappings(), func(u *UserNS) uint32 { return u.GID }},
	} {
		switch {
		case len(side.list) == 0 && len(side.other) == 0:
			return nil
		case u == nil:
			return fmt.Errorf("%s in a pod without a user namespace: %w", side.field, errdefs.ErrInvalidArgument)
		case len(side.list) != 1 || side.list[0].GetContainerId() != 0 || side.list[0].GetHostId() != side.pod(u) || side.list[0].GetLength() != u.Length:
			return fmt.Errorf("%s are not those of the pod's user namespace: %w", side.field, errdefs.ErrInvalidArgument)
		case !n.IDMappedMounts && m.GetImage() == nil:
			return fmt.Errorf("%s need an OCI runtime that says in its features that it can map the owners of mounts: %w", side.field, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// PingGroups is the value of the sysctl ping_group_range as the host has to
// write it: the kernel takes the groups for those of whoever writes.
func (u *UserNS) PingGroups(value string) (string, error) {
	if u == nil {
		return value, nil
	}
	fields := strings.Fields(value)
	if len(fields) != 2 {
		return "", fmt.Errorf("sysctls: net.ipv4.ping_group_range %.64q is not two groups: %w", value, errdefs.ErrInvalidArgument)
	}
	var groups [2]uint64
	for i, f := range fields {
		var err error
		if groups[i], err = strconv.ParseUint(f, 10, 32); err != nil {
			return "", fmt.Errorf("sysctls: net.ipv4.ping_group_range: %.64q is no group: %w", f, errdefs.ErrInvalidArgument)
		}
	}
	if groups[0] > groups[1] {
		return "1 0", nil // nobody
	}
	if groups[1] >= uint64(u.Length) {
		return "", fmt.Errorf("sysctls: net.ipv4.ping_group_range: group %d is not in the pod's user namespace, which has those below %d: %w", groups[1], u.Length, errdefs.ErrInvalidArgument)
	}
	return fmt.Sprintf("%d %d", uint64(u.GID)+groups[0], uint64(u.GID)+groups[1]), nil
}
