package oci

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// migration makes an OCI runtime's moving of processes into cgroups quick.
//
// Writing to a cgroup.procs file takes cgroup_threadgroup_rwsem for writing, a
// lock whose first writer waits for an RCU grace period, some 8 ms and more on
// a busy machine, unless another writer came shortly before (kernel/rcu/sync.c;
// the mount option favordynmods, Linux 6.0, avoids it at the cost of every
// fork). A runtime comes to that point about 10 ms after its start. begin has
// the wait take place meanwhile: it moves this process into the cgroup where
// it is, which takes the lock and changes nothing.
type migration struct {
	procs  string // this process' cgroup.procs; empty: not found, and begin does nothing
	groups []byte // /proc/self/cgroup as it was then

	mu      sync.Mutex
	pending chan struct{} // closed when the present write has come back; nil: there is none
}

const ownCgroups = "/proc/self/cgroup"

// newMigration looks for the file at the usual places of hierarchies.
func newMigration() *migration {
	groups, err := os.ReadFile(ownCgroups)
	if err != nil {
		return &migration{}
	}
	pid := strconv.Itoa(os.Getpid())
	for line := range strings.Lines(string(groups)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) < 3 {
			continue
		}
		controller := strings.TrimPrefix(fields[1], "name=")
		for _, tree := range []string{controller, "unified"} { // or, of version 2 alone, ""
			if tree == "unified" && controller != "" {
				continue
			}
			file := filepath.Join("/sys/fs/cgroup", tree, fields[2], "cgroup.procs")
			if data, err := os.ReadFile(file); err == nil && bytes.Contains(append([]byte("\n"), data...), []byte("\n"+pid+"\n")) {
				return &migration{procs: file, groups: groups}
			}
		}
	}
	return &migration{}
}

// begin starts the write, unless one is under way. The caller must call wait.
func (m *migration) begin() (wait func()) {
	if m.procs == "" {
		return func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pending != nil {
		return func() {}
	}
	done := make(chan struct{})
	m.pending = done
	go func() {
		defer close(done)
		m.write()
		m.mu.Lock()
		m.pending = nil
		m.mu.Unlock()
	}()
	return func() { <-done }
}

// write changes nothing: whoever has moved this process since must not find it moved back.
func (m *migration) write() {
	if groups, err := os.ReadFile(ownCgroups); err != nil || !bytes.Equal(groups, m.groups) {
		return
	}
	fd, err := unix.Open(m.procs, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	for {
		if _, err := unix.Write(fd, []byte("0")); !errors.Is(err, unix.EINTR) { // 0 is the writer itself (cgroups(7))
			return
		}
	}
}
