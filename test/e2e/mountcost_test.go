package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkMounts is CreateContainer with 8 host paths: as the kubelet has just left them, in the
// kernel's cache, and when the kernel has let go of them.
func BenchmarkMounts(b *testing.B) {
	n := newNode(b)
	p := n.runPod("pod")
	dir := b.TempDir()
	var list []*runtimeapi.Mount
	for i := range 8 {
		name := strconv.Itoa(i)
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			b.Fatal(err)
		}
		list = append(list, &runtimeapi.Mount{ContainerPath: "/mnt/" + name, HostPath: filepath.Join(dir, name)})
	}
	for name, cold := range map[string]bool{"cached": false, "cold": true} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if cold {
					b.StopTimer()
					if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
				c := p.create(fmt.Sprint("c", i), forever, mounts(list...))
				b.StopTimer()
				c.remove()
				b.StartTimer()
			}
		})
	}
}
