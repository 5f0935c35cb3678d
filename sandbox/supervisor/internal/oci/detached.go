package oci

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killDetached kills what a killed command has outside of its process group: crun's run --detach makes the container in
// a process with another session. Such processes have the arguments of the command, not always its path, as that may be
// a script's.
func killDetached(args []string) error {
	end := []byte("\x00" + strings.Join(args, "\x00") + "\x00")
	for deadline := time.Now().Add(killWait); ; time.Sleep(time.Millisecond) {
		names, err := readProc()
		if err != nil {
			return fmt.Errorf("looking for what is left of an OCI runtime: %w", err)
		}
		left := 0
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil && killIf(pid, end) {
				left = pid
			}
		}
		if left == 0 { // a zombie has no arguments
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d of an OCI runtime does not end on SIGKILL", left)
		}
	}
}

func readProc() ([]string, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// killIf kills a process whose command line ends so, and reports whether there is one.
func killIf(pid int, end []byte) bool {
	pidfd, err := unix.PidfdOpen(pid, 0) // first: what is read then is of this process, or of none
	if err != nil {
		return false
	}
	defer unix.Close(pidfd)
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.HasSuffix(cmdline, end) && unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) == nil
}
