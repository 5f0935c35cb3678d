package runtimeservice

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Real-time signals as glibc counts them (signal(7)); the kernel's 32 and 33 are glibc's own.
const sigRTMin, sigRTMax = 34, 64

// stopSignal is the signal that stops a container: the request's, else the image's, else SIGTERM.
func stopSignal(asked runtimeapi.Signal, image string) (int, error) {
	if asked != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		name, known := runtimeapi.Signal_name[int32(asked)]
		n := signalNumber(strings.TrimPrefix(name, "SIGNAL_"))
		if !known || n == 0 {
			return 0, fmt.Errorf("stop_signal %d is unknown: %w", asked, errdefs.ErrInvalidArgument)
		}
		return n, nil
	}
	if image == "" {
		return int(syscall.SIGTERM), nil
	}
	if n := signalNumber(image); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("the image's StopSignal %.64q is unknown: %w", image, errdefs.ErrInvalidArgument)
}

// signalNumber reads a signal as images and the CRI's enum name it: "15",
// "TERM", "SIGTERM", "SIGRTMIN+3", "SIGRTMINPLUS3", "SIGRTMAX-1",
// "SIGRTMAXMINUS1". 0 = not one.
func signalNumber(s string) int {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax || s[0] == '+' {
			return 0
		}
		return n
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return int(n)
	}
	switch name { // other names of the same
	case "SIGCLD":
		return int(unix.SIGCHLD)
	case "SIGIOT":
		return int(unix.SIGABRT)
	case "SIGPOLL":
		return int(unix.SIGIO)
	}
	for _, rt := range []struct {
		prefix     string
		base, step int
	}{
		{"SIGRTMINPLUS", sigRTMin, 1}, {"SIGRTMIN+", sigRTMin, 1}, {"SIGRTMAXMINUS", sigRTMax, -1}, {"SIGRTMAX-", sigRTMax, -1},
	} {
		if digits, ok := strings.CutPrefix(name, rt.prefix); ok {
			n, err := strconv.ParseUint(digits, 10, 8)
			if sum := rt.base + rt.step*int(n); err == nil && sum >= sigRTMin && sum <= sigRTMax {
				return sum
			}
			return 0
		}
	}
	switch name {
	case "SIGRTMIN":
		return sigRTMin
	case "SIGRTMAX":
		return sigRTMax
	}
	return 0
}

// shownSignal is a signal number as the CRI reports it.
func shownSignal(n int) runtimeapi.Signal {
	for v := range int32(len(runtimeapi.Signal_name)) { // the lowest value wins among aliases
		if name, ok := runtimeapi.Signal_name[v]; ok && v != 0 && signalNumber(strings.TrimPrefix(name, "SIGNAL_")) == n {
			return runtimeapi.Signal(v)
		}
	}
	return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT
}
