package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/cni"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

func TestPluginTypes(t *testing.T) {
	for conf, want := range map[string][]string{
		`{"name":"n","plugins":[{"type":"bridge"},{"type":"portmap"}]}`: {"bridge", "portmap"},
		`{"name":"n","type":"ptp"}`:                                     {"ptp"},
		`{"plugins":[{}]}`:                                              nil,
		`[`:                                                             nil,
	} {
		if got := pluginTypes([]byte(conf)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", conf, got, want)
		}
	}
}

func FuzzPluginTypes(f *testing.F) {
	f.Add([]byte(`{"name":"n","plugins":[{"type":"bridge"}],"type":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, typ := range pluginTypes(data) {
			if typ == "" {
				t.Error("an empty type")
			}
		}
	})
}

// A runtime's words are shown as one line, whatever they hold.
func TestReportLines(t *testing.T) {
	var out strings.Builder
	r := &report{w: &out}
	r.warn("runtime x", "one\nOK    two\x1b[2J\r\n")
	if got, want := out.String(), "WARN  runtime x: one | OK    two | [2J\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// doctor runs the verb below dir, as root, and checks that nothing of it is left.
func doctor(t *testing.T, dir string, args ...string) (status int, out string) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI must run this as root")
		}
		t.Skip("trying mounts, containers and networks needs root")
	}
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	supervisor := filepath.Join(dir, "supervisor")
	if err := os.WriteFile(supervisor, []byte("#!"), 0o700); err != nil {
		t.Fatal(err)
	}
	forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	status, out, errOut := gantry(t, append([]string{"doctor", "--config", file, "--root", dir + "/root", "--run", dir + "/run",
		"--supervisor", supervisor, "--cni-conf-dir", dir + "/net.d"}, args...)...)
	if errOut != "" {
		t.Errorf("on stderr: %s", errOut)
	}
	after, err := os.ReadDir(dir)
	if err != nil || len(after) != len(before) {
		t.Errorf("left in %s: %v (%v)", dir, after, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a mount below %s is left (%v)", dir, err)
	}
	if now, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || string(now) != string(forward) {
		t.Errorf("ip_forward was %q, is %q (%v)", forward, now, err)
	}
	return status, out
}

// realRuntime is a runc: the one that hack/build.sh makes, or an installed one.
func realRuntime(t *testing.T) string {
	t.Helper()
	if path, err := filepath.Abs("../../bin/runc"); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath("runc")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI must have a runc: hack/build.sh runc")
		}
		t.Skip("no runc: run hack/build.sh runc, or install it")
	}
	return path
}

func TestDoctorWithARealRuntime(t *testing.T) {
	dir := t.TempDir()
	status, out := doctor(t, dir, "--runtime", "runc="+realRuntime(t), "--runtime", "gone=/no/such")
	for _, want := range []string{
		"OK    configuration: ", "OK    overlay: works\n", "OK    runtime runc (default): ", "starts a container (runc ",
		"WARN  runtime gone: ", "OK    network gantry-bridge: works\n", "Pods can run",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if status != exitOK {
		t.Errorf("status %d\n%s", status, out)
	}
	if cgroup.Exists(fmt.Sprintf("/gantry-doctor-%d", os.Getpid())) {
		t.Error("its cgroup is left behind")
	}
}

func TestDoctorFindsWhatFails(t *testing.T) {
	dir := t.TempDir()
	runtime := filepath.Join(dir, "runtime")
	if err := os.WriteFile(runtime, []byte("#!/bin/sh\ncase $1 in --version) echo runc version 1.1.0;; features) exit 1;; *) echo 'no such luck' >&2; exit 3;; esac\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "net.d")
	if err := os.Mkdir(conf, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(conf, "10-x.conflist")
	plugins := filepath.Join(dir, "plugins")
	if err := errors.Join(os.Mkdir(plugins, 0o700), os.WriteFile(filepath.Join(plugins, "portmap"),
		[]byte("#!/bin/sh\necho CNI portmap plugin v1.8.0 >&2\necho CNI protocol versions supported: 1.0.0 >&2\n"), 0o700),
		os.WriteFile(filepath.Join(plugins, "sick"), []byte("#!/bin/sh\necho '{\"code\":50,\"msg\":\"the agent is away\"}'; exit 1\n"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		conf string
		args []string
		want []string
	}{
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"no-such-plugin"}]}`, nil, []string{
			"FAIL  network: " + file, "no-such-plugin", "WARN  runtime bad (default): runc 1.1.0 open to CVE-2023-25809",
			"FAIL  runtime bad (default): " + runtime + " starts no container: ", "no such luck", "could not run",
		}},
		{`{"cniVersion":"1.1.0","name":"x","plugins":[{"type":"sick"}]}`, []string{"--cni-bin-dir", plugins}, []string{
			"FAIL  network: network x is not ready: CNI plugin sick STATUS: the agent is away (code 50"}},
		{`{"cniVersion": `, nil, []string{"FAIL  network: ", file}},
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"portmap"}]}`, []string{"--cni-bin-dir", plugins}, []string{
			"OK    network: " + file + " with the plugins portmap", "WARN  network plugin portmap: portmap 1.8.0 open to CVE-2025-67499"}},
		{"", []string{"--network", "none"}, []string{"FAIL  network: no CNI configuration in " + conf, "gantry-bridge"}},
		{"", []string{"--default-runtime", "nothing"}, []string{"FAIL  configuration: default_runtime = \"nothing\""}},
	} {
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		if tt.conf != "" {
			if err := os.WriteFile(file, []byte(tt.conf), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		status, out := doctor(t, dir, append([]string{"--runtime", "bad=" + runtime}, tt.args...)...)
		if status != exitError {
			t.Errorf("status %d\n%s", status, out)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
	}
}

// A program that hangs, with a child that holds its output, is ended with it.
func TestToolIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hang")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nsleep 1000 &\nwait\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := tool(ctx, t.TempDir(), path, "x"); err == nil || ctx.Err() == nil {
		t.Errorf("it returned %v", err)
	}
}

func TestProbeNeedsItsOwnNamespace(t *testing.T) {
	if status, _, errOut := gantry(t, "doctor", networkProbe, t.TempDir()); status != exitError || !strings.Contains(errOut, "namespace of its own") {
		t.Errorf("status %d: %s", status, errOut)
	}
}

func TestAcceptance(t *testing.T) {
	for _, c := range []struct {
		drop cni.ForwardDrop
		want string
	}{
		{cni.ForwardDrop{Family: "ip6", Table: "filter", Chain: "FORWARD"}, "ip6tables -I FORWARD -i br0 -j ACCEPT; ip6tables -I FORWARD -o br0 -j ACCEPT"},
		{cni.ForwardDrop{Family: "inet", Table: "fw", Chain: "f"}, "nft insert rule inet fw f iifname br0 accept; nft insert rule inet fw f oifname br0 accept"},
	} {
		if got := acceptance(c.drop, "br0"); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}
