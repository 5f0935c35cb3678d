package sandbox

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// realRuntime is the binary of hack/build.sh, or an installed one.
func realRuntime(t *testing.T, name string) string {
	t.Helper()
	if path, err := filepath.Abs("../bin/" + name); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI must have %s: hack/install-deps.sh test", name)
		}
		t.Skipf("no %s: run hack/build.sh runc, hack/install-deps.sh test", name)
	}
	return path
}

func TestProbeRunc(t *testing.T) {
	path := realRuntime(t, "runc")
	f, err := ProbeRuntime(t.Context(), path, []string{"--debug"})
	if err != nil {
		t.Fatal(err)
	}
	if f.Program != "runc" || f.Version == "" || !f.Known || !strings.HasPrefix(f.OCIVersion, "1.") || !f.RecursiveReadOnly || !f.Seccomp || !f.CgroupV1 ||
		!f.CgroupV2 || !f.CgroupSystemd || !slices.Contains(f.Namespaces, "user") || !slices.Contains(f.UnsafeAnnotations, "org.systemd.property.") {
		t.Errorf("%+v", f)
	}
	if _, err := ProbeRuntime(t.Context(), path, []string{"--no-such-option"}); err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("with an option that it does not know: %v", err)
	}
}

// crun before 1.9 or so has no "features".
func TestProbeCrun(t *testing.T) {
	path := realRuntime(t, "crun")
	f, err := ProbeRuntime(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if f.Program != "crun" || f.Version == "" || f.OCIVersion == "" {
		t.Errorf("%+v", f)
	}
	if f.Version == "1.8.1" {
		if diff := cmp.Diff(Features{Program: "crun", Version: "1.8.1", OCIVersion: OldestOCIVersion, RecursiveReadOnly: true, IDMappedMounts: true}, f); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	if _, err := ProbeRuntime(t.Context(), path, []string{"--no-such-option"}); err == nil {
		t.Error("an option that it does not know is taken")
	}
}

// TestProbeBadRuntimes: what is no runtime, or not a good one, is an error and holds up nobody.
func TestProbeBadRuntimes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runtime")
	write := func(script string) {
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	const version = "[ $1 = --version ] && echo runc version 9.8.7 && exit\n"
	for script, want := range map[string]string{
		"exit 1":                         "--version",
		version + "echo {":               "features",
		version + "echo '[]'":            "features",
		version + "yes":                  "bytes of output",
		"echo broken >&2; kill -SEGV $$": "broken",
	} {
		write(script)
		if _, err := ProbeRuntime(t.Context(), path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", script, err, want)
		}
	}
	for script, want := range map[string]Features{
		"echo something else": {OCIVersion: OldestOCIVersion},
		version + "exit 1":    {Program: "runc", Version: "9.8.7", OCIVersion: OldestOCIVersion},
		version + "echo '{}'": {Program: "runc", Version: "9.8.7", OCIVersion: OldestOCIVersion, Known: true},
		version + `echo '{"linux":{"cgroup":null,"seccomp":{"enabled":null},"mountExtensions":{"idmap":{"enabled":true}}},"ociVersionMax":"1.2.0"}'`: {
			Program: "runc", Version: "9.8.7", OCIVersion: "1.2.0", Known: true, IDMappedMounts: true},
	} {
		if strings.Contains(script, "something else") {
			script = "[ $1 = --version ] && echo something else && exit; exit 1"
		}
		write(script)
		if got, err := ProbeRuntime(t.Context(), path, nil); err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("%q: %v\n%s", script, err, cmp.Diff(want, got))
		}
	}
	write("sleep 1000 & wait")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := ProbeRuntime(ctx, path, nil); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("one that hangs: %v", err)
	}
	if _, err := ProbeRuntime(t.Context(), path+"-gone", nil); err == nil {
		t.Error("one that is not there")
	}
}

func FuzzVersionLine(f *testing.F) {
	for _, s := range []string{"runc version 1.5.2\n", "crun version 1.8.1", "runsc version release-20250407.0\nspec: 1.1.0-rc.1", "youki version: 0.5.4"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if m := versionLine.FindSubmatch(data); m != nil && (len(m[1]) > 32 || len(m[2]) > 64 || strings.ContainsAny(string(m[2]), " \n")) {
			t.Errorf("%q", m)
		}
	})
}
