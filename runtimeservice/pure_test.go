package runtimeservice

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
)

func TestSignals(t *testing.T) {
	for name, want := range map[string]int{
		"": 15, "SIGTERM": 15, "TERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMIN+3": 37, "SIGRTMAX": 64,
		"SIGRTMAX-1": 63, "SIGCLD": 17, "SIGIOT": 6, "SIGPOLL": 29,
	} {
		if got, err := stopSignal(0, name); err != nil || got != want {
			t.Errorf("image StopSignal %q: %d, %v; want %d", name, got, err, want)
		}
	}
	for _, name := range []string{"0", "-9", "+9", "65", "99", "SIGFOO", "SIGRTMIN+31", "SIGRTMIN+-1", "SIGRTMAX-31", "9 9", "99999999999999999999"} {
		if got, err := stopSignal(0, name); !errdefs.IsInvalidArgument(err) || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("%q", name)) {
			t.Errorf("image StopSignal %q: %d, %v; want a refusal that names it", name, got, err)
		}
	}
	for v, name := range runtimeapi.Signal_name {
		if v == 0 {
			continue
		}
		n, err := stopSignal(runtimeapi.Signal(v), "")
		if err != nil || n < 1 || n > 64 {
			t.Errorf("%s: %d, %v", name, n, err)
			continue
		}
		if shown, err := stopSignal(shownSignal(n), ""); err != nil || shown != n {
			t.Errorf("%s is shown as %v", name, shownSignal(n))
		}
	}
	if _, err := stopSignal(9999, ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("signal 9999: %v", err)
	}
}

func TestFindByPrefix(t *testing.T) {
	a, b := strings.Repeat("a", idLength), "ab"+strings.Repeat("0", idLength-2)
	m := map[string]int{a: 1, b: 2}
	for id, want := range map[string]int{a: 1, b: 2, "aa": 1, "ab": 2} {
		if got, err := find(m, "container", id); err != nil || got != want {
			t.Errorf("%q: %d, %v", id, got, err)
		}
	}
	if _, err := find(m, "container", "a"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("ambiguous prefix: %v", err)
	}
	for _, id := range []string{"", "b", a + "a"} {
		if _, err := find(m, "container", id); !errdefs.IsNotFound(err) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestFitTogether(t *testing.T) {
	for _, test := range []struct{ a, b, wantA, wantB int }{
		{3, 4, 3, 4}, {10, 0, 10, 0}, {11, 0, 10, 0}, {20, 3, 7, 3}, {3, 20, 3, 7}, {20, 20, 5, 5}, {6, 20, 5, 5},
	} {
		a, b := fitTogether(bytes.Repeat([]byte("a"), test.a), bytes.Repeat([]byte("b"), test.b), 10)
		if len(a) != test.wantA || len(b) != test.wantB || bytes.Contains(a, []byte("b")) {
			t.Errorf("%d and %d in 10: %q, %q", test.a, test.b, a, b)
		}
	}
}

func TestResolvConf(t *testing.T) {
	got, err := resolvConf(&runtimeapi.DNSConfig{Servers: []string{"10.0.0.1", "::1"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}})
	if want := "search a.b c\nnameserver 10.0.0.1\nnameserver ::1\noptions ndots:5\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := resolvConf(&runtimeapi.DNSConfig{}); err != nil || len(got) != 0 {
		t.Errorf("an empty DNSConfig gives %q, %v; want an empty file, not the host's", got, err)
	}
	for _, bad := range []string{"", "a b", "1.1.1.1\nnameserver 6.6.6.6", "\x00"} {
		if _, err := resolvConf(&runtimeapi.DNSConfig{Servers: []string{bad}}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("server %q: %v", bad, err)
		}
	}
}

func TestPortMappings(t *testing.T) {
	got, err := portMappings([]*runtimeapi.PortMapping{
		{ContainerPort: 80}, {ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"}, {Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: 5353},
	})
	if err != nil || len(got) != 2 || got[0].HostIP != netip.MustParseAddr("127.0.0.1") || got[0].Protocol != "tcp" || got[1].Protocol != "udp" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []*runtimeapi.PortMapping{
		{ContainerPort: 80, HostPort: 65536}, {ContainerPort: 80, HostPort: -1}, {HostPort: 80}, {ContainerPort: 65536, HostPort: 80},
		{ContainerPort: 80, HostPort: 80, HostIp: "localhost"}, {ContainerPort: 80, HostPort: 80, Protocol: 7},
	} {
		if got, err := portMappings([]*runtimeapi.PortMapping{bad}); !errdefs.IsInvalidArgument(err) || !strings.Contains(fmt.Sprint(err), "port_mappings[0].") {
			t.Errorf("%v: %v, %v", bad, got, err)
		}
	}
}

func TestOwnNamespaces(t *testing.T) {
	node, pod, ctr, target := runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET
	if own, _, err := ownNamespaces(nil); err != nil || !own.Net || !own.IPC || !own.UTS {
		t.Errorf("default: %+v, %v", own, err)
	}
	if own, _, err := ownNamespaces(&runtimeapi.NamespaceOption{Network: node, Ipc: pod}); err != nil || own.Net || !own.IPC || own.UTS {
		t.Errorf("host network: %+v, %v; the UTS namespace is the host's too", own, err)
	}
	for _, bad := range []*runtimeapi.NamespaceOption{
		{Network: ctr}, {Ipc: ctr}, {Pid: target}, {Network: target}, {Ipc: 17},
		{UsernsOptions: &runtimeapi.UserNamespace{Mode: pod}}, {UsernsOptions: &runtimeapi.UserNamespace{Mode: ctr}},
	} {
		if own, _, err := ownNamespaces(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %+v, %v", bad, own, err)
		}
	}
}

// What is asked for is reported as asked for; what is zero stays; the original is not touched.
func TestWithResources(t *testing.T) {
	cc := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{
		CpuShares: 2, MemoryLimitInBytes: 100, Unified: map[string]string{"memory.low": "1", "memory.high": "2"},
	}}}
	before := proto.CloneOf(cc)
	out, js, err := withResources(cc, &runtimeapi.LinuxContainerResources{CpuShares: 7, CpusetCpus: "0", Unified: map[string]string{"memory.high": "3"}})
	if err != nil {
		t.Fatal(err)
	}
	want := &runtimeapi.LinuxContainerResources{
		CpuShares: 7, CpusetCpus: "0", MemoryLimitInBytes: 100, Unified: map[string]string{"memory.low": "1", "memory.high": "3"},
	}
	if !proto.Equal(out.Linux.Resources, want) || !proto.Equal(cc, before) {
		t.Errorf("got %v, original %v", out.Linux.Resources, cc)
	}
	back := new(runtimeapi.ContainerConfig)
	if err := protojson.Unmarshal(js, back); err != nil || !proto.Equal(back, out) {
		t.Errorf("record %s: %v", js, err)
	}
	if out, _, err := withResources(&runtimeapi.ContainerConfig{}, want); err != nil || !proto.Equal(out.Linux.Resources, want) {
		t.Errorf("without resources: %v, %v", out, err)
	}
}

// Memory and swap are one limit to the kernel: a change of one is written with the other, as is nothing else.
func TestWritten(t *testing.T) {
	cc := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{
		CpuShares: 2, MemoryLimitInBytes: 200, MemorySwapLimitInBytes: 300,
	}}}
	for _, tc := range []struct {
		change, want *runtimeapi.LinuxContainerResources
	}{
		{&runtimeapi.LinuxContainerResources{CpusetCpus: "0"}, &runtimeapi.LinuxContainerResources{CpusetCpus: "0"}},
		{&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 200}, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 200, MemorySwapLimitInBytes: 300}},
		{&runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 300}, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 200, MemorySwapLimitInBytes: 300}},
	} {
		before := proto.CloneOf(tc.change)
		if got := written(cc, tc.change); !proto.Equal(got, tc.want) || !proto.Equal(tc.change, before) {
			t.Errorf("%v: got %v, want %v", before, got, tc.want)
		}
	}
}

// UNKNOWN would have the kubelet stop a container that is well.
func TestNoStateIsUnknown(t *testing.T) {
	shown := 0
	for s := lifecycle.ContainerGone; s <= lifecycle.ContainerRemoving; s++ {
		state, ok := shownContainer(s)
		if ok && state == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
			t.Errorf("%v is shown as %v", s, state)
		}
		if ok {
			shown++
		}
	}
	if shown != 5 { // all but Gone and Creating
		t.Errorf("%d states are shown", shown)
	}
}

// The kubelet takes NotFound for the end of the pod or container that it asked about.
func TestPartMissingIsNotNotFound(t *testing.T) {
	err := partMissing(fmt.Errorf("plugin portmap: %w", errdefs.ErrNotFound))
	if errdefs.IsNotFound(err) || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "plugin portmap") {
		t.Errorf("%v", err)
	}
	if err := partMissing(errdefs.ErrUnavailable); !errdefs.IsUnavailable(err) {
		t.Errorf("another kind became %v", err)
	}
	if partMissing(nil) != nil {
		t.Error("nil became an error")
	}
}
