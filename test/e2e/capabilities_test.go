package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// capSets reads the capability sets of a process of the container, as five numbers: Inh, Prm, Eff, Bnd, Amb.
func (c *container) capSets(process string) string {
	c.t.Helper()
	var sets []string
	for line := range strings.Lines(c.exec("grep", "^Cap", "/proc/"+process+"/status")) {
		value := strings.TrimLeft(strings.Fields(line)[1], "0")
		sets = append(sets, max("0", value))
	}
	return strings.Join(sets, " ")
}

// Each row is a security context and the sets Inh, Prm, Eff, Bnd and Amb that the container's first process has with
// it, and every process that is exec'd in it.
func TestCapabilitySets(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	for name, row := range map[string]struct {
		want   string
		change func(*securityContext)
	}{
		"default": {"0 a80425fb a80425fb a80425fb 0", func(*securityContext) {}},
		"one added": {"0 a80435fb a80435fb a80435fb 0", func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"net_Admin"}}
		}},
		"all but one dropped": {"0 1 1 1 0", func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"all"}, AddCapabilities: []string{"CAP_CHOWN"}}
		}},
		// A user loses them all at the execve, but the bounding set (CVE-2018-1000400).
		"user": {"0 0 0 a80435fb 0", func(s *securityContext) {
			s.RunAsUser, s.Capabilities = id(1000), &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
		}},
		"privileged user": {"0 0 0 * 0", func(s *securityContext) { s.RunAsUser, s.Privileged = id(1000), true }},
		"ambient for a user": {"400 400 400 400 400", func(s *securityContext) {
			s.RunAsUser, s.Capabilities = id(1000), &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		}},
		"ambient beside others": {"400 400 400 401 400", func(s *securityContext) {
			s.RunAsUser, s.Capabilities = id(1000), &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"CHOWN"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := p.in(t).run(strings.ReplaceAll(name, " ", "-"), forever, security(row.change))
			for _, process := range []string{"1", "self"} {
				got := c.capSets(process)
				if strings.Contains(row.want, "*") { // whatever this machine has
					sets := strings.Fields(got)
					sets[3] = "*"
					got = strings.Join(sets, " ")
				}
				if got != row.want {
					t.Errorf("process %s: %s, want %s", process, got, row.want)
				}
			}
		})
	}
	for _, caps := range []*runtimeapi.Capability{{AddCapabilities: []string{"ROOT"}}, {DropCapabilities: []string{"CAP_"}}, {AddAmbientCapabilities: []string{"ROOT"}}} {
		_, err := p.tryCreate(p.containerConfig("unknown", forever, security(func(s *securityContext) { s.Capabilities = caps })))
		wantError(t, err, codes.InvalidArgument, "capabilities.", "is no capability")
	}
}

// What an ambient capability is for: a user's program may do what it allows.
func TestAmbientCapabilityWorks(t *testing.T) {
	p := newNode(t).runPod("pod")
	for _, row := range []struct {
		ambient []string
		want    string
	}{{nil, "denied\n"}, {[]string{"SYS_CHROOT"}, "1000\n"}} {
		got, _ := p.output("ambient-"+strings.Join(row.ambient, ""), "chroot / id -u 2>/dev/null || echo denied", security(func(s *securityContext) {
			s.RunAsUser, s.Capabilities = id(1000), &runtimeapi.Capability{AddAmbientCapabilities: row.ambient}
		}))
		if got != row.want {
			t.Errorf("ambient %v: %q, want %q", row.ambient, got, row.want)
		}
	}
}
