package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Propagation tells whether the mount that path lies on is shared with, or a
// slave of, other mount namespaces (mount_namespaces(7)).
func Propagation(path string) (shared, slave bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return false, false, fmt.Errorf("finding the mount of %s: %w", path, err)
	}
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return false, false, fmt.Errorf("finding the mount of %s: %w", path, err)
	}
	defer f.Close()
	id := strconv.FormatUint(st.Mnt_id, 10)
	for s := bufio.NewScanner(f); s.Scan(); {
		// proc_pid_mountinfo(5): id parent major:minor root target options [tag...] - ...
		fields := strings.Fields(s.Text())
		if len(fields) < 7 || fields[0] != id {
			continue
		}
		for _, tag := range fields[6:] {
			if tag == "-" {
				break
			}
			shared = shared || strings.HasPrefix(tag, "shared:")
			slave = slave || strings.HasPrefix(tag, "master:")
		}
		return shared, slave, nil
	}
	return false, false, fmt.Errorf("finding the mount of %s: mount %s is not in mountinfo", path, id)
}
