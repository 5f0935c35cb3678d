package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubeletDefault is the security context that the kubelet sends for a container of which the pod spec says nothing, with
// the default seccomp profile.
func kubeletDefault(s *securityContext) {
	s.MaskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	s.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeDefault}
}

// TestSecurityOfContainers is the cases of the catalogue that only a real container shows. All share an instance; each has a pod.
func TestSecurityOfContainers(t *testing.T) {
	n := newNode(t)
	n.pull(guestImage)
	for id, test := range map[string]func(p *pod){
		"GHSA-c9cp-9c75-9v8c": noInheritable, // CVE-2022-27652, CVE-2022-24769
		"CVE-2017-16539":      nothingReadOfTheHost,
		"CVE-2022-0492":       noCgroupMount,
		"CVE-2023-25173":      primaryGroupListed,
		"CVE-2024-21626":      threeDescriptors,
		"CVE-2026-15809":      homeWithLines,
		"CVE-2026-30892":      execAsTheUser,
		"CVE-2026-31431":      noKernelCrypto,
		"CVE-2019-10144":      execIsConfined,
		"2.6-seccomp":         badSeccompFiles,
		"2.6-empty-lists":     unmasked,
	} {
		t.Run(id, func(t *testing.T) { test(n.runPod(strings.ToLower(strings.ReplaceAll(id, ".", "-"))).in(t)) })
	}
}

func withGuest(c *runtimeapi.ContainerConfig) { c.Image = &runtimeapi.ImageSpec{Image: guestImage} }

func noInheritable(p *pod) {
	for name, caps := range map[string]*runtimeapi.Capability{"default": nil, "added": {AddCapabilities: []string{"ALL"}}} {
		c := p.run(name, forever, security(kubeletDefault), security(func(s *securityContext) { s.Capabilities = caps }))
		if got := c.exec("sh", "-c", "grep -h -e ^CapInh -e ^CapAmb /proc/1/status /proc/self/status | cut -f 2 | sort -u"); got != "0000000000000000\n" {
			p.t.Errorf("%s: inheritable or ambient sets %q", name, got)
		}
	}
}

// nothingReadOfTheHost: energy, interrupts, keys and the like are masked (GHSA-7ww5-4wqc-m92c, GHSA-6fw5-f8r9-fgfm), also
// when an older kubelet leaves some of them out of its list, and sysctls are not written.
func nothingReadOfTheHost(p *pod) {
	older := security(func(s *securityContext) {
		s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
	})
	for name, change := range map[string]func(*runtimeapi.ContainerConfig){"kubelet": security(kubeletDefault), "older": older} {
		c := p.run(name, forever, change, security(func(s *securityContext) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}} }))
		script := `cd /proc; for f in asound acpi interrupts kcore keys latency_stats timer_list timer_stats sched_debug scsi \
			/sys/firmware /sys/devices/virtual/powercap; do
			if [ -d $f ]; then ls $f; elif [ -e $f ]; then head -c 10 $f; fi; done
			for f in sysrq-trigger sys/kernel/core_pattern irq/default_smp_affinity; do [ ! -e $f ] || (: >> $f) 2>/dev/null && [ -e $f ] && echo $f is written; done; true`
		if got := c.exec("sh", "-c", script); got != "" {
			p.t.Errorf("%s: %q", name, got)
		}
	}
}

func noCgroupMount(p *pod) {
	c := p.run("c", forever, security(kubeletDefault))
	got := c.exec("sh", "-c", `mkdir /m; for t in cgroup cgroup2; do mount -t $t none /m 2>/dev/null && echo mounted $t; done
		find /sys/fs/cgroup -name release_agent | while read f; do (: >> $f) 2>/dev/null && echo $f; done; true`)
	if got != "" {
		p.t.Errorf("got %q", got)
	}
}

// primaryGroupListed: a file that denies the primary group, and allows everybody else, stays closed.
func primaryGroupListed(p *pod) {
	for _, policy := range []runtimeapi.SupplementalGroupsPolicy{runtimeapi.SupplementalGroupsPolicy_Merge, runtimeapi.SupplementalGroupsPolicy_Strict} {
		who := security(func(s *securityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups, s.SupplementalGroupsPolicy = id(1000), id(2000), []int64{3000}, policy
		})
		c := p.run(policy.String(), forever, who)
		if got := c.exec("sh", "-c", "id -u; grep ^Groups: /proc/self/status"); got != "1000\nGroups:\t2000 3000 \n" {
			p.t.Errorf("%v: %q", policy, got)
		}
		if u := c.status().GetUser().GetLinux(); u.GetUid() != 1000 || u.GetGid() != 2000 || fmt.Sprint(u.GetSupplementalGroups()) != "[2000 3000]" {
			p.t.Errorf("%v: the status has the user %v", policy, u)
		}
	}
}

// homeWithLines: nothing of the environment becomes a line of the container's passwd (CVE-2022-4318 as well).
func homeWithLines(p *pod) {
	const home = "/x\nevil:x:0:0::/:/bin/sh"
	c := p.run("c", forever, func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "HOME", Value: []byte(home)}}
	}, security(func(s *securityContext) { s.RunAsUser = id(4711) }))
	if got := c.exec("sh", "-c", `grep -c -e evil -e 4711 /etc/passwd /etc/group; printf '%s' "$HOME"`); got != "/etc/passwd:0\n/etc/group:0\n"+home {
		p.t.Errorf("got %q", got)
	}
}

// threeDescriptors: neither the first process nor an exec'd one has a descriptor of the runtime's or the daemon's.
func threeDescriptors(p *pod) {
	c := p.run("c", "exec sleep 4321")
	// Without a pipe, which would be the shell's for a moment.
	if got := strings.Join(strings.Fields(c.exec("sh", "-c", "ls /proc/1/fd /proc/$$/fd; true")), " "); !regexp.MustCompile(`^/proc/\d+/fd: 0 1 2 /proc/\d+/fd: 0 1 2$`).MatchString(got) {
		p.t.Errorf("descriptors %q", got)
	}
}

func execAsTheUser(p *pod) {
	c := p.run("c", forever, security(func(s *securityContext) { s.RunAsUser = id(1) }))
	if got := c.exec("id", "-u"); got != "1\n" {
		p.t.Errorf("exec as user 1 is %q", got)
	}
}

// noKernelCrypto: the families of sockets that write to pages of others, and to the hypervisor, are refused; their
// neighbours are left to the kernel.
func noKernelCrypto(p *pod) {
	c := p.run("c", forever, security(kubeletDefault), withGuest)
	for family, denied := range map[int]bool{1: false, 2: false, 10: false, 38: true, 40: true} {
		resp, err := c.execSync(30, guestProgram, "socket", fmt.Sprint(family))
		if err != nil || (resp.GetExitCode() != 0) != denied {
			p.t.Errorf("socket of family %d: %v, %v; denied: %v", family, resp, err, denied)
		}
	}
}

// execIsConfined: what is exec'd is held by all that holds the first process.
func execIsConfined(p *pod) {
	c := p.run("c", forever, security(kubeletDefault), security(func(s *securityContext) {
		s.RunAsUser, s.NoNewPrivs, s.Capabilities = id(1000), true, &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
	}))
	const what = "for p in 1 self; do grep -e ^Cap -e ^NoNewPrivs -e ^Seccomp: -e ^Groups -e ^Uid -e ^Gid /proc/$p/status; cat /proc/$p/cgroup /proc/$p/oom_score_adj /proc/$p/limits; readlink /proc/$p/ns/* 2>/dev/null; echo ---; done"
	parts := strings.Split(c.exec("sh", "-c", what), "---\n")
	for _, tty := range []bool{false, true} {
		s := c.session(&runtimeapi.ExecRequest{Stdout: true, Tty: tty}, "sh", "-c", what).read()
		if code, err := s.outcome(); code != 0 || err != nil {
			p.t.Errorf("session with terminal = %v: exit code %d, %v", tty, code, err)
		}
		parts = append(parts, strings.Split(strings.ReplaceAll(s.text(channelStdout), "\r", ""), "---\n")...)
	}
	if len(parts) != 9 {
		p.t.Fatalf("got %q", parts)
	}
	for _, i := range []int{1, 3, 4, 6, 7} {
		if parts[i] != parts[0] {
			p.t.Errorf("process 1 has\n%s\nan exec'd one\n%s", parts[0], parts[i])
		}
	}
	for _, want := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapBnd:\t0000000000000000\n"} {
		if !strings.Contains(parts[1], want) {
			p.t.Errorf("an exec'd process lacks %q:\n%s", want, parts[1])
		}
	}
}

// badSeccompFiles: a profile that cannot be had keeps the container from being made (CVE-2023-2431).
func badSeccompFiles(p *pod) {
	dir := p.t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			p.t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		p.t.Fatal(err)
	}
	for _, ref := range []string{
		filepath.Join(dir, "missing"), dir, fifo, "", "relative.json", dir + "/../x", file("text", "no JSON"), file("empty", ""), file("nothing", "{}"),
		file("action", `{"defaultAction": "SCMP_ACT_WHATEVER"}`), file("large", `{"defaultAction": "SCMP_ACT_ALLOW"}`+strings.Repeat(" ", 1<<20)),
	} {
		_, err := p.tryCreate(p.containerConfig("c", forever, security(func(s *securityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: ref}
		})))
		wantError(p.t, err, codes.InvalidArgument, "seccomp")
	}
}

// unmasked: empty lists are procMount: Unmasked, and nothing is added to them.
func unmasked(p *pod) {
	c := p.run("c", forever, security(func(s *securityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	}))
	if got := c.exec("sh", "-c", "grep -c ' /proc/' /proc/self/mounts; true"); got != "0\n" {
		p.t.Errorf("%s mounts below /proc", got)
	}
}
