package runtimeservice

import (
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/imageservice"
	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox"
)

// A pod's user namespace as the other packages know it; nil is the host's.

func sandboxIDs(u *ocispec.UserNS) sandbox.IDMap {
	if u == nil {
		return sandbox.IDMap{}
	}
	return sandbox.IDMap{UID: u.UID, GID: u.GID, Length: u.Length}
}

func imageIDs(u *ocispec.UserNS) *imageservice.IDMap {
	if u == nil {
		return nil
	}
	return &imageservice.IDMap{
		UIDs: []imageservice.IDRange{{Host: u.UID, Length: u.Length}},
		GIDs: []imageservice.IDRange{{Host: u.GID, Length: u.Length}},
	}
}

// openUserNS opens the pod's user namespace if a mount of the container is to
// be mapped to it; otherwise it returns nil.
func (s *containers) openUserNS(c *container) (*sandbox.UserNS, error) {
	mapped := func(m *runtimeapi.Mount) bool { return m.GetImage() == nil && len(m.GetUidMappings()) > 0 }
	if c.pod.userns == nil || !slices.ContainsFunc(c.config.GetMounts(), mapped) {
		return nil, nil
	}
	return s.host.OpenUserNS(c.pod.id)
}
