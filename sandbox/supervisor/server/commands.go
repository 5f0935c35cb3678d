package server

import (
	"fmt"
	"strings"
	"time"
)

// execWait is how long a process may take within execve(2).
const execWait = time.Second

// runtimeCommands finds the OCI runtime commands of the predecessor that still
// run, by container: each has a path in the container's directory among its
// arguments. One that was just being executed has them only when execve(2)
// comes to its end, which is after it has closed the predecessor's lock.
func (s *Server) runtimeCommands() (map[string][]int, error) {
	found := make(map[string][]int)
	pids, err := allPIDs()
	for end := time.Now().Add(execWait); err == nil; time.Sleep(time.Millisecond) {
		var again []int
		for _, pid := range pids {
			id, ready, err := s.runtimeCommand(pid)
			switch {
			case err != nil:
				return nil, err
			case !ready:
				again = append(again, pid)
			case id != "":
				found[id] = append(found[id], pid)
			}
		}
		if pids = again; len(pids) == 0 || time.Now().After(end) {
			break
		}
	}
	return found, err
}

// runtimeCommand says of which container's a process is, "" for none.
func (s *Server) runtimeCommand(pid int) (id string, ready bool, err error) {
	var stat procStat
	file := fmt.Sprintf("/proc/%d/cmdline", pid)
	cmdline, err := readBounded(file, 64<<10)
	if err == nil && len(cmdline) == 0 {
		if stat, err = readStat(pid); err == nil && stat.noArgs {
			return "", stat.kernel || stat.exiting, nil
		}
		cmdline, err = readBounded(file, 64<<10) // it may have got them in between
	}
	if outOfDescriptors(err) {
		return "", false, err
	}
	if err != nil { // it has ended; or has more arguments than a command of ours
		return "", true, nil
	}
	prefix := s.containersDir() + "/"
	for _, arg := range strings.Split(string(cmdline), "\x00") {
		if rest, ok := strings.CutPrefix(arg, prefix); ok {
			id, _, _ := strings.Cut(rest, "/")
			return id, true, nil
		}
	}
	return "", true, nil
}
