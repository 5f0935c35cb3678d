package ocispec

import (
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestDefaultSeccompArchitectures(t *testing.T) {
	for _, noX32 := range []bool{false, true} {
		p, err := defaultSeccomp(Node{NoX32: noX32}, &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(p.Architectures, specs.ArchX32); got && noX32 {
			t.Errorf("NoX32 %v: architectures %v", noX32, p.Architectures)
		}
		if slices.Contains(p.Architectures, specs.ArchX86_64) && !slices.Contains(p.Architectures, specs.ArchX86) {
			t.Errorf("32-bit programs would be killed: %v", p.Architectures)
		}
	}
}
