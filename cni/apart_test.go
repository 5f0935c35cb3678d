package cni

import (
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// apartEnv is the name of the test that a process is for.
const apartEnv = "GANTRY_TEST_APART"

// apart runs the test in a process, and so a network namespace, of its own, beside other tests: where most of the time
// is the kernel's, taking links down, a processor has room for several. It is true in that process; in this one the
// test is over.
func apart(t *testing.T) bool {
	t.Helper()
	needRoot(t)
	t.Parallel()
	if os.Getenv(apartEnv) == t.Name() {
		return true
	}
	var pattern []string
	for part := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run="+strings.Join(pattern, "/"), "-test.v="+map[bool]string{true: "true", false: "false"}[testing.Verbose()])
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, isolatedEnv+"=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, apartEnv+"="+t.Name())
	if built, err := buildPlugin(); err == nil { // else, in the virtual machine without Go, the test says so if it needs it
		cmd.Env = append(cmd.Env, builtEnv+"="+built)
	}
	runtime.LockOSThread() // with whose end the process would be killed
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || testing.Verbose() {
		t.Logf("in a process of its own:\n%s", out)
	}
	if err != nil {
		t.Error(err)
	}
	return false
}
