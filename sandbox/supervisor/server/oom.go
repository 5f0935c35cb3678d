package server

import (
	"bytes"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

// diedOfOOM decides whether the container has ended, with this code, because
// the kernel was short of memory for it. Its first process was then killed, or
// has passed the end of its child on, as a shell does: both give the code of
// SIGKILL. A process whose end was not that of the container (of an exec, say)
// is counted by the kernel too; so the count alone is no proof, nor is the code.
//
// It is called as soon as the end is known. Yet systemd, where it made the
// cgroup, removes it as soon as it is empty, and may be the faster; then what
// was killed since the start in the cgroup above, the pod's, speaks for it. That
// a neighbour's process was killed is all that this can take for the container's.
func (c *container) diedOfOOM(code int) bool {
	c.mu.Lock()
	killed, rec := c.killed, c.rec
	c.mu.Unlock()
	if code != 128+int(unix.SIGKILL) || killed {
		return false
	}
	n, ok := oomKills(rec.Request.OOMFile)
	if ok || rec.OOMKillsAbove == nil {
		return n > rec.OOMKills
	}
	n, _ = oomKills(oomFileAbove(&rec.Request))
	return n > *rec.OOMKillsAbove
}

// countOOMKills enters in the record what was counted before the start.
func (r *record) countOOMKills() {
	r.OOMKills, _ = oomKills(r.Request.OOMFile)
	if above := oomFileAbove(&r.Request); above != "" {
		n, _ := oomKills(above)
		r.OOMKillsAbove = &n
	}
}

// oomFileAbove is where the kernel counts for the cgroup above the container's
// and all below it; "" on version 1, which counts for each cgroup alone, and
// where nobody but the OCI runtime removes the container's.
func oomFileAbove(r *supervisor.RunRequest) string {
	dir, name := filepath.Split(r.OOMFile)
	if !r.Runtime.SystemdCgroup || name != "memory.events" {
		return ""
	}
	return filepath.Join(dir, "..", name)
}

// oomKills reads the line "oom_kill N" of memory.oom_control (cgroup v1) or
// memory.events (v2); false when there is no such file, or its cgroup has gone.
func oomKills(file string) (uint64, bool) {
	if file == "" {
		return 0, false
	}
	data, err := readBounded(file, 64<<10)
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(data) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "oom_kill "); ok {
			n, _ := strconv.ParseUint(value, 10, 64)
			return n, true
		}
	}
	return 0, true
}
