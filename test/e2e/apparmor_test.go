package e2e

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func hasAppArmor() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(b), "Y")
}

func apparmor(kind runtimeapi.SecurityProfile_ProfileType, ref string) func(*securityContext) {
	return func(s *securityContext) {
		s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
}

// oldAppArmor is the deprecated field, the only one that clients of before Kubernetes 1.30 know.
func oldAppArmor(value string) func(*securityContext) {
	//lint:ignore SA1019 it is honoured, so it is tested
	return func(s *securityContext) { s.ApparmorProfile = value }
}

const (
	localhost      = runtimeapi.SecurityProfile_Localhost
	runtimeDefault = runtimeapi.SecurityProfile_RuntimeDefault
	unconfined     = runtimeapi.SecurityProfile_Unconfined
)

// loadProfile loads a profile that allows all but writing to /tmp/denied, for as long as the test runs.
func loadProfile(t *testing.T, name string) {
	t.Helper()
	cmd := exec.Command("apparmor_parser", "--replace", "--skip-cache")
	cmd.Stdin = strings.NewReader("profile " + name + " flags=(attach_disconnected, mediate_deleted) {\n file,\n capability,\n network,\n signal,\n ptrace,\n mount,\n umount,\n deny /tmp/denied wl,\n}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apparmor_parser: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if err := removeProfile(name); err != nil {
			t.Error(err)
		}
	})
}

func removeProfile(name string) error {
	return os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte(name), 0)
}

func TestAppArmor(t *testing.T) {
	if !hasAppArmor() {
		t.Skip("this machine does not run AppArmor; make test-vm tests on one that does")
	}
	const denying = "gantry-e2e-denying"
	loadProfile(t, denying)
	n := newNode(t)
	p := n.runPod("pod", privilegedPod)
	for name, row := range map[string]struct {
		want   string
		change func(*securityContext)
	}{
		"nothing said":           {"gantry-default (enforce)", func(*securityContext) {}},
		"default":                {"gantry-default (enforce)", apparmor(runtimeDefault, "")},
		"unconfined":             {"unconfined", apparmor(unconfined, "")},
		"localhost":              {denying + " (enforce)", apparmor(localhost, denying)},
		"old localhost":          {denying + " (enforce)", oldAppArmor("localhost/" + denying)},
		"privileged and default": {"unconfined", func(s *securityContext) { privileged(s); apparmor(runtimeDefault, "")(s) }},
		"privileged and named":   {denying + " (enforce)", func(s *securityContext) { privileged(s); apparmor(localhost, denying)(s) }},
	} {
		t.Run(name, func(t *testing.T) {
			c := p.in(t).run(strings.ReplaceAll(name, " ", "-"), forever, security(row.change))
			touched := "yes"
			if strings.HasPrefix(row.want, denying) {
				touched = "no"
			}
			// Of the first process, of one that is exec'd, and what the profile says.
			want := row.want + "\n" + row.want + "\n" + touched + "\n"
			if got := c.exec("sh", "-c", "cat /proc/1/attr/current /proc/self/attr/current; touch /tmp/denied 2>/dev/null && echo yes || echo no"); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if c.stop(20); c.status().GetExitCode() != 128+int32(syscall.SIGTERM) { // a signal from outside gets through
				t.Errorf("exit code %d after SIGTERM", c.status().GetExitCode())
			}
		})
	}

	_, err := p.tryCreate(p.containerConfig("missing", forever, security(apparmor(localhost, "gantry-e2e-no-such-profile"))))
	wantError(t, err, codes.FailedPrecondition, "apparmor", "gantry-e2e-no-such-profile", "not loaded")

	// Somebody removes the default profile, as aa-remove-unknown does: the next container has it again.
	if err := removeProfile("gantry-default"); err != nil {
		t.Fatal(err)
	}
	if got := p.run("again", forever).exec("cat", "/proc/self/attr/current"); !strings.HasPrefix(got, "gantry-default ") {
		t.Errorf("after the profile was removed a container has the label %q", got)
	}
}

// What the default profile holds, whatever else the container may do.
func TestAppArmorDefaultProfile(t *testing.T) {
	if !hasAppArmor() {
		t.Skip("this machine does not run AppArmor; make test-vm tests on one that does")
	}
	n := newNode(t)
	n.pull(guestImage)
	p := n.runPod("pod", sharedPID)
	all := security(func(s *securityContext) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}} })
	guest := func(c *runtimeapi.ContainerConfig) { c.Image = &runtimeapi.ImageSpec{Image: guestImage} }
	c := p.run("c", forever, all, guest)
	free := p.run("unconfined", forever, all, guest, security(apparmor(unconfined, "")))
	for what, script := range map[string]string{
		"mount":                 "mkdir -p /mnt && mount -t tmpfs none /mnt && umount /mnt",
		"write to core_pattern": "v=$(cat /proc/sys/kernel/core_pattern) && echo \"$v\" > /proc/sys/kernel/core_pattern",
		"open kcore":            "head -c 0 /proc/kcore",
		"write to sysrq":        "printf '' > /proc/sysrq-trigger",
		"make an AF_ALG socket": guestProgram + " socket 38",
	} {
		// The kernel asks AppArmor about a socket before it looks whether it knows the family.
		if resp, err := free.execSync(30, "sh", "-c", script); err != nil || resp.GetExitCode() != 0 && !strings.Contains(string(resp.GetStderr()), "family not supported") {
			t.Errorf("%s, unconfined: %s, %v", what, resp.GetStderr(), err)
		}
		if resp, err := c.execSync(30, "sh", "-c", script); err != nil || !strings.Contains(strings.ToLower(string(resp.GetStderr())), "permission denied") {
			t.Errorf("%s: %v, %v; want that permission is denied", what, resp, err)
		}
	}
	for what, script := range map[string]string{
		"IPC's own sysctls":      "v=$(cat /proc/sys/kernel/shmmni) && echo $v > /proc/sys/kernel/shmmni",
		"its own process' files": "echo 10 > /proc/self/oom_score_adj && echo x > /proc/self/comm",
		"signals to its like":    "sleep 100 & kill $!",
		"sockets":                guestProgram + " socket 1 && " + guestProgram + " socket 2 && " + guestProgram + " socket 10",
		"files":                  "mkdir -p /a/b && echo x > /a/b/c && ln /a/b/c /a/d && mv /a/d /a/e && rm -r /a",
	} {
		if resp, err := c.execSync(30, "sh", "-c", script); err != nil || resp.GetExitCode() != 0 {
			t.Errorf("%s: %s, %v", what, resp.GetStderr(), err)
		}
	}
}

// A machine without AppArmor refuses what it cannot give and gives what means nothing there.
func TestAppArmorIsMissing(t *testing.T) {
	if hasAppArmor() {
		t.Skip("this machine runs AppArmor: TestAppArmor is for it")
	}
	p := newNode(t).runPod("pod")
	for i, change := range []func(*securityContext){apparmor(runtimeDefault, ""), apparmor(unconfined, ""), oldAppArmor("runtime/default")} {
		p.create("c"+string(rune('0'+i)), forever, security(change))
	}
	for _, change := range []func(*securityContext){apparmor(localhost, "some-profile"), oldAppArmor("localhost/some-profile")} {
		_, err := p.tryCreate(p.containerConfig("c", forever, security(change)))
		wantError(t, err, codes.FailedPrecondition, "apparmor", "some-profile", "does not run AppArmor")
	}
	for _, change := range []func(*securityContext){apparmor(localhost, ""), apparmor(9, ""), oldAppArmor("some-profile"), oldAppArmor("localhost/")} {
		_, err := p.tryCreate(p.containerConfig("c", forever, security(change)))
		wantError(t, err, codes.InvalidArgument, "apparmor")
	}
}
