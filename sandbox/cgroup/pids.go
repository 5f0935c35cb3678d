package cgroup

import (
	"fmt"
	"path/filepath"
)

// pidsNear is how many processes and threads an OCI runtime and what it starts may take at once, and have given back
// when its failure is looked into: runc's have 10 or so.
const pidsNear = 32

// NearPidsLimit tells in words for an error which cgroup, of path and those above it, has nearly or all of the processes
// and threads that it may have; "" if there is none. The cgroup itself may be gone.
func NearPidsLimit(path string) string {
	t, err := host()
	if err != nil || checkPath(path) != nil {
		return ""
	}
	return t.nearPidsLimit(path)
}

func (t *tree) nearPidsLimit(path string) (near string) {
	buf := statBuffers.Get().(*[maxStatFile]byte)
	defer statBuffers.Put(buf)
	for least := uint64(pidsNear); path != "/"; path = filepath.Dir(path) {
		r := detailReader{t: t, path: path, buf: buf[:]}
		used := r.number("pids", "pids.current")
		limit, limited, err := parseNumber(r.read("pids", "pids.max"))
		// Processes that are moved into it may be beyond the limit.
		if left := max(limit, used) - used; r.err == nil && err == nil && limited && left < least {
			least = left
			near = fmt.Sprintf("cgroup %s has %d of the %d processes and threads that its limit allows (pids.max)", path, used, limit)
		}
	}
	return near
}
