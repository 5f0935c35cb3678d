package apparmor

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestListed(t *testing.T) {
	list := []byte("/usr/bin/man (enforce)\ngantry-default (enforce)\ngantry-default//child (complain)\nwith (a bracket) (kill)\nno mode\ncut o")
	for name, want := range map[string]bool{
		"/usr/bin/man": true, "gantry-default": true, "with (a bracket)": true,
		"gantry": false, "gantry-default//": false, "": false, "no mode": false, "no": false, "cut": false, "with": false, "/usr/bin/man (enforce)": false,
	} {
		if got := listed(list, name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func FuzzListed(f *testing.F) {
	f.Add([]byte("a (enforce)\nb (complain)\n"), "a")
	f.Fuzz(func(t *testing.T, list []byte, name string) {
		if listed(list, name) && (name == "" || !strings.Contains("\n"+string(list), "\n"+name+" (")) {
			t.Fatalf("%q in %q", name, list)
		}
	})
}

// The profile compiles: with the kernel's features where it has AppArmor, with the parser's own otherwise.
func TestProfileCompiles(t *testing.T) {
	err := parse(t.Context(), text("/usr/bin/gantry"), "--skip-kernel-load")
	if errors.Is(err, errdefs.ErrNotFound) {
		if os.Getenv("CI") == "true" {
			t.Fatal("in CI this may not be skipped: ", err)
		}
		t.Skip(err)
	}
	if err != nil {
		t.Error(err)
	}
	if err := parse(t.Context(), strings.Replace(text(""), "umount,", "no such rule,", 1), "--skip-kernel-load"); err == nil || !strings.Contains(err.Error(), "apparmor_parser") {
		t.Errorf("a profile that does not compile: %v", err)
	}
}

func TestManagers(t *testing.T) {
	for own, want := range map[string]string{
		"": "peer={unconfined,runc,crun},", "unconfined": "peer={unconfined,runc,crun},", "/usr/bin/gantry": "peer={unconfined,runc,crun,/usr/bin/gantry},",
		"a//&b": "peer={unconfined,runc,crun},", "a b": "peer={unconfined,runc,crun},",
	} {
		if got := text(own); strings.Count(got, want) != 2 || strings.Contains(got, "NAME") || strings.Contains(got, "MANAGERS") {
			t.Errorf("label %q:\n%s", own, got)
		}
	}
}

// Where AppArmor is, the profile can be loaded, again too, and is then listed.
func TestLoad(t *testing.T) {
	if on, err := Enabled(); !on {
		t.Skipf("this machine does not run AppArmor (%v): make test-vm has it", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to load a profile")
	}
	for range 2 {
		if err := Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if loaded, err := Loaded(DefaultProfile); err != nil || !loaded {
			t.Errorf("loaded: %v, %v", loaded, err)
		}
	}
	if loaded, err := Loaded("no-such-profile"); err != nil || loaded {
		t.Errorf("loaded: %v, %v", loaded, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Load(ctx); err == nil {
		t.Error("no error when the caller has gone")
	}
}
