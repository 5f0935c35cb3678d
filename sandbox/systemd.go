package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// CheckSystemd reports whether OCI runtimes can have systemd make cgroups:
// whether it is process 1 and takes connections, on the system bus or on its
// own socket. What is missing is errdefs.ErrFailedPrecondition.
func CheckSystemd(ctx context.Context) error {
	return checkSystemd(ctx, "/")
}

func checkSystemd(ctx context.Context, root string) error {
	fail := func(err error) error {
		return fmt.Errorf("cgroup_driver systemd: %w; set cgroup_driver to cgroupfs here and in the kubelet: %w", err, errdefs.ErrFailedPrecondition)
	}
	name, err := os.ReadFile(root + "proc/1/comm")
	if err != nil {
		return fail(err)
	}
	if name := strings.TrimSpace(string(name)); name != "systemd" {
		return fail(fmt.Errorf("process 1 is %q, not systemd", name))
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var errs []error
	for _, socket := range []string{"run/dbus/system_bus_socket", "run/systemd/private"} {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", root+socket)
		if err == nil {
			return conn.Close()
		}
		errs = append(errs, err)
	}
	return fail(fmt.Errorf("systemd cannot be reached, is dbus running? (%w)", errors.Join(errs...)))
}
