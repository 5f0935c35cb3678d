package cni

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkPod is one pod's way in and out, with its median beside the mean: the kernel's own tear-down of earlier
// namespaces makes some calls wait. Making and dropping the namespace is not counted.
func BenchmarkPod(b *testing.B) {
	for _, c := range []struct {
		name     string
		attached int
		ports    []PortMapping
		limits   map[string]string
	}{
		{"pods=0", 0, nil, nil},
		{"pods=200", 200, nil, nil},
		{"hostport", 0, []PortMapping{{Protocol: "tcp", HostPort: 18200, ContainerPort: 80}}, nil},
		{"ingress", 0, nil, map[string]string{ingress: "8M"}},
		{"limits", 0, nil, map[string]string{ingress: "8M", egress: "8M"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			n := newNode(b)
			for range c.attached + 1 { // the first makes the bridge
				n.attach(n.pod())
			}
			var in, out []time.Duration
			for b.Loop() {
				pod := n.pod(c.ports...)
				pod.Annotations = c.limits
				start := time.Now()
				if _, err := n.Attach(n.ctx, pod); err != nil {
					b.Fatal(err)
				}
				in = append(in, time.Since(start))
				start = time.Now()
				n.detach(pod)
				out = append(out, time.Since(start))
				dropNS(b, pod.NetNS)
			}
			for name, times := range map[string][]time.Duration{"attach": in, "detach": out} {
				slices.Sort(times)
				b.ReportMetric(float64(times[len(times)/2].Microseconds()), fmt.Sprintf("%s-p50-µs", name))
				b.ReportMetric(float64(times[len(times)*9/10].Microseconds()), fmt.Sprintf("%s-p90-µs", name))
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
