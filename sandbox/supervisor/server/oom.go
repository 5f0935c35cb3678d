package server

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// diedOfOOM decides whether the container has ended, with this code, because
// the kernel was short of memory for it. Its first process was then killed, or
// has passed the end of its child on, as a shell does: both give the code of
// SIGKILL. A process whose end was not that of the container (of an exec, say)
// is counted by the kernel too; so the count alone is no proof, nor is the code.
//
// It is called as soon as the end is known: systemd removes the cgroup of a
// scope, and the count with it, once that is empty.
func (c *container) diedOfOOM(code int) bool {
	c.mu.Lock()
	killed, file, before := c.killed, c.rec.Request.OOMFile, c.rec.OOMKills
	c.mu.Unlock()
	return code == 128+int(unix.SIGKILL) && !killed && oomKills(file) > before
}

// oomKills reads the line "oom_kill N" of memory.oom_control (cgroup v1) or
// memory.events (v2); 0 when there is no such file.
func oomKills(file string) uint64 {
	if file == "" {
		return 0
	}
	data, err := readBounded(file, 64<<10)
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(data) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "oom_kill "); ok {
			n, _ := strconv.ParseUint(value, 10, 64)
			return n
		}
	}
	return 0
}
