package bridge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/cni/internal/ipam"
)

// CheckKeys is nil when gantry-bridge knows every key of the configuration, else it names one that it does not. Keys
// that it does not know are no reason to refuse a configuration, but a slip of the pen is worth a line in the log.
func CheckKeys(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(&rawConfig{})
}

// parseMAC reads the capability mac. The addresses that podMAC makes are refused: they are those of other pods and of
// the bridge.
func parseMAC(s string) (net.HardwareAddr, error) {
	if s == "" {
		return nil, nil
	}
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 {
		return nil, fmt.Errorf("mac %q is no address such as 02:00:5e:10:00:01: %w", s, errdefs.ErrInvalidArgument)
	}
	if m[0]&1 != 0 || bytes.Equal(m, make([]byte, 6)) {
		return nil, fmt.Errorf("mac %s is not of one interface: %w", m, errdefs.ErrInvalidArgument)
	}
	if bytes.HasPrefix(m, macPrefix) {
		return nil, fmt.Errorf("mac %s: those that start with %s belong to the pods' addresses: %w", m, macPrefix, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

// podMAC is the pod's hardware address.
func (c *Config) podMAC(addrs []ipam.Address) net.HardwareAddr {
	if c.MAC != nil {
		return c.MAC
	}
	return mac(addrs[0].Prefix.Addr())
}
