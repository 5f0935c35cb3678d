package apparmor

import (
	"regexp"
	"slices"
	"strings"
)

// DefaultProfile is the name of the profile that containers run under which
// ask for no other.
const DefaultProfile = "gantry-default"

// profile is the default profile. What a container needs is allowed broadly,
// for it is made for every image; what is denied is what namespaces,
// capabilities and seccomp leave open:
//
//   - /proc and /sys, other than what is the container's own, are not written,
//     also when procMount is Unmasked; kernel.shm* is the IPC namespace's. The
//     kernel compares resolved paths, so "self" is a number there.
//   - Energy and temperature counters tell a neighbour's secrets
//     (GHSA-7ww5-4wqc-m92c, GHSA-6fw5-f8r9-fgfm).
//   - AF_ALG sockets write to the page cache of shared layers on kernels with
//     CVE-2026-31431. Seccomp forbids them too, but cannot on architectures
//     where socketcall(2) hides the arguments.
//   - mount(2) gets around the paths above.
//
// Signals and ptrace reach the container's like, and come from outside only
// from those who manage it: peers are the labels of their processes.
// attach_disconnected: descriptors from outside the mount namespace, the log's
// among them, have paths that the profile cannot see. No file is included, so
// that the profile does not depend on what a distribution has in /etc/apparmor.d.
const profile = `profile NAME flags=(attach_disconnected, mediate_deleted) {
  file,
  capability,
  network,
  unix,
  umount,

  signal (send, receive) peer=NAME,
  signal (receive) peer={MANAGERS},
  ptrace (read, trace, readby, tracedby) peer=NAME,
  ptrace (readby, tracedby) peer={MANAGERS},

  deny mount,
  deny network alg,

  deny /proc/* w,
  deny /proc/[^0-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sys[^/]*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/[^s]** w,
  deny /proc/sys/kernel/s[^h]** w,
  deny /proc/sys/kernel/sh[^m]** w,
  deny /proc/{kcore,sysrq-trigger} rwklx,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/** rwklx,
}
`

// plainLabel is what can stand in a rule without quotes; stacked labels, of a
// daemon in a container say, cannot.
var plainLabel = regexp.MustCompile(`^[-A-Za-z0-9_./]+$`)

// text is the profile as apparmor_parser reads it. own is the label that the
// daemon runs under. Distributions give runc and crun profiles that allow all
// but are not called unconfined.
func text(own string) string {
	managers := []string{"unconfined", "runc", "crun"}
	if plainLabel.MatchString(own) && !slices.Contains(managers, own) {
		managers = append(managers, own)
	}
	return strings.NewReplacer("NAME", DefaultProfile, "{MANAGERS}", "{"+strings.Join(managers, ",")+"}").Replace(profile)
}
