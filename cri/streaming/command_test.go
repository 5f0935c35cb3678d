package streaming

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var all = &runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true}

// Every version of the protocol carries input to its end, both outputs and what became of the command.
func TestExecSPDY(t *testing.T) {
	s := serve(t, testConfig(), echo(3))
	input := strings.Repeat("0123456789abcde\n", 1<<16) // 1 MiB
	for _, protocol := range commandSPDY {
		t.Run(protocol, func(t *testing.T) {
			got := runSPDY(t, dialSPDY(t, execURL(t, s, all), protocol), input)
			if got.stdout != input || got.stderr != "done" {
				t.Errorf("stdout of %d bytes, stderr %q", len(got.stdout), got.stderr)
			}
			if protocol == protocolV4 {
				if code := exitCode(t, got.fault); code != 3 {
					t.Errorf("exit code %d", code)
				}
			} else if string(got.fault) != "command terminated with exit code 3" {
				t.Errorf("error stream %q", got.fault)
			}
		})
	}
}

// As over SPDY; only version 5 has a half-close.
func TestExecWebSocket(t *testing.T) {
	s := serve(t, testConfig(), echo(3))
	input := strings.Repeat("0123456789abcde\n", 1<<16)
	got := runWS(t, dialWS(t, execURL(t, s, all), protocolV4, protocolV5), input)
	if got.stdout != input || got.stderr != "done" {
		t.Errorf("stdout of %d bytes, stderr %q", len(got.stdout), got.stderr)
	}
	if code := exitCode(t, got.fault); code != 3 {
		t.Errorf("exit code %d", code)
	}
}
