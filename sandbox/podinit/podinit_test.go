package podinit

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestImagesAreELF(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		img, err := image(arch)
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(strings.NewReader(string(img)))
		if err != nil {
			t.Fatalf("%s: %v", arch, err)
		}
		if f.Machine != machine || f.Type != elf.ET_EXEC || len(f.Progs) != 1 || f.Progs[0].Filesz != uint64(len(img)) {
			t.Errorf("%s: header %+v, program headers %v", arch, f.FileHeader, f.Progs)
		}
	}
	if _, err := image("vax"); err == nil {
		t.Error("an unknown architecture has a program")
	}
}

// It must stay alive, be asleep, and ignore SIGCHLD, which is what makes the kernel reap its orphans.
func TestRunsAndIgnoresSIGCHLD(t *testing.T) {
	dir, err := Install(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "init"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("ended with %v before it was killed", cmd.ProcessState)
		}
	}()
	const sigchld = uint64(1) << (17 - 1)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		var ignored uint64
		_, rest, _ := strings.Cut(string(b), "SigIgn:")
		if _, err := fmt.Sscanf(rest, "%x", &ignored); err != nil {
			t.Fatal(err)
		}
		if ignored&sigchld != 0 && strings.Contains(string(b), "State:\tS") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("does not sleep with SIGCHLD ignored:\n%s", b)
		}
	}
}
