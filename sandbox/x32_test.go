package sandbox

import (
	"os"
	"runtime"
	"strings"
	"testing"
)

// The probe agrees with the kernel's own configuration, where that can be read.
func TestHasX32(t *testing.T) {
	h := &Host{runDir: t.TempDir()}
	got, err := h.HasX32(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOARCH != "amd64" {
		if got {
			t.Error("x32 on", runtime.GOARCH)
		}
		return
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile("/boot/config-" + strings.TrimSpace(string(release)))
	if err == nil && !strings.Contains(string(config), "\nCONFIG_X86_X32_ABI=y") && got {
		t.Error("the kernel was built without the x32 ABI, the probe finds it")
	}
}
