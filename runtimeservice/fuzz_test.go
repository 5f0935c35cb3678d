package runtimeservice

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
)

// fuzzNodes are the machines that configs are understood on.
var fuzzNodes = []ocispec.Node{
	{Cgroup2: true, OCIVersion: "1.2.0", MinOOMScoreAdj: -1000, Hugetlb: true, SwapAccounting: true, Pids: true, RecursiveReadOnly: true, AppArmor: true, AppArmorProfile: "gantry-default"},
	{Systemd: true, Cgroup2: true},
	{SELinux: true, SeccompRoot: "/profiles"},
	{},
}

// FuzzConfigs understands any PodSandboxConfig and ContainerConfig that can come over the wire: there is no panic, the
// same config is always understood the same way, and every error says whose fault it is.
func FuzzConfigs(f *testing.F) {
	for seed := range uint64(400) {
		f.Add(seed, []byte(nil), []byte(nil))
	}
	f.Add(uint64(0), []byte("\x0a\x00\x42\x00"), []byte("\x7a\x00"))
	f.Fuzz(func(t *testing.T, seed uint64, podRaw, containerRaw []byte) {
		pc, cc := &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}
		if proto.Unmarshal(podRaw, pc) != nil || proto.Unmarshal(containerRaw, cc) != nil {
			return
		}
		if seed != 0 {
			r := rand.New(rand.NewPCG(seed, 1))
			// Most configs are to be nearly right, or nothing behind the first checks is reached.
			scatter(r, pc.ProtoReflect(), r.IntN(3), 5)
			scatter(r, cc.ProtoReflect(), r.IntN(3), 5)
		}
		for _, n := range fuzzNodes {
			understand(t, n, pc, cc)
		}
	})
}

// TestNilMessages leaves out one message after the other, at each place where one can be.
func TestNilMessages(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for range 200 {
		pc, cc := &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}
		scatter(r, pc.ProtoReflect(), 40, 4)
		scatter(r, cc.ProtoReflect(), 40, 4)
		for _, m := range []proto.Message{pc, cc} {
			for _, f := range messageFields(m.ProtoReflect().Descriptor()) {
				kept := m.ProtoReflect().Get(f)
				m.ProtoReflect().Clear(f)
				understand(t, fuzzNodes[0], pc, cc)
				if kept.Message().IsValid() {
					m.ProtoReflect().Set(f, kept)
				}
			}
		}
	}
	understand(t, fuzzNodes[0], nil, nil)
	if plan, err := (&core{}).planPod(&runtimeapi.PodSandboxConfig{}); err != nil || !plan.sandbox.Namespaces.Net {
		t.Errorf("a config without anything is a pod with the defaults: %+v, %v", plan, err)
	}
}

func messageFields(d protoreflect.MessageDescriptor) (list []protoreflect.FieldDescriptor) {
	for i := range d.Fields().Len() {
		if f := d.Fields().Get(i); f.Message() != nil && !f.IsList() && !f.IsMap() {
			list = append(list, f)
		}
	}
	return list
}

// understand does what the requests do with their configs before anything is made.
func understand(t *testing.T, n ocispec.Node, pc *runtimeapi.PodSandboxConfig, cc *runtimeapi.ContainerConfig) {
	t.Helper()
	c := &core{node: n}
	plan, err := c.planPod(pc)
	again, errAgain := c.planPod(pc)
	if fmt.Sprint(err) != fmt.Sprint(errAgain) || !reflect.DeepEqual(plan, again) {
		t.Errorf("a pod is understood in two ways: %+v, %v; %+v, %v", plan, err, again, errAgain)
	}
	checkKind(t, err)
	_, err = stopSignal(cc.GetStopSignal(), "")
	checkKind(t, err)

	img := imagespec.ImageConfig{Entrypoint: []string{"/bin/server"}, Env: []string{"PATH=/bin"}, Volumes: map[string]struct{}{"/data": {}}}
	user, err := ocispec.ResolveUser(cc.GetLinux().GetSecurityContext(), "", []byte("root:x:0:0::/:\n"), nil)
	checkKind(t, err)
	in := ocispec.Container{ID: strings.Repeat("c", 64), Config: cc, Image: img, Rootfs: "/r", User: user, CgroupsPath: "/p/c", TargetPIDNS: "/proc/1/ns/pid",
		Volumes: map[string]string{"/data": "/r/data"}, SeccompProfile: []byte(`{"defaultAction": "SCMP_ACT_ERRNO"}`)}
	if in.CgroupsPath, err = ocispec.CgroupsPath(n, pc.GetLinux().GetCgroupParent(), in.ID); err != nil {
		checkKind(t, err)
		return
	}
	for _, m := range cc.GetMounts() {
		in.Mounts = append(in.Mounts, ocispec.Mount{CRI: m, Source: "/source", Shared: true})
	}
	p := ocispec.Pod{ID: strings.Repeat("a", 64), Config: pc, NetNS: "/net", IPCNS: "/ipc", UTSNS: "/uts", Hostname: pc.GetHostname()}
	spec, warnings, err := ocispec.Build(n, p, in)
	specAgain, warningsAgain, errAgain := ocispec.Build(n, p, in)
	checkKind(t, err)
	if fmt.Sprint(err) != fmt.Sprint(errAgain) || !reflect.DeepEqual(warnings, warningsAgain) || encoded(t, spec) != encoded(t, specAgain) {
		t.Errorf("a container is understood in two ways: %v, %v and %v, %v", warnings, err, warningsAgain, errAgain)
	}
}

func encoded(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// checkKind wants of an error that it is somebody's fault and of a size that fits a log.
func checkKind(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if !errors.Is(err, errdefs.ErrInvalidArgument) && !errors.Is(err, errdefs.ErrFailedPrecondition) && !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("the error is of no kind: %v", err)
	}
	if text := err.Error(); len(text) > 32<<10 || strings.ContainsAny(text, "\n\x00") {
		t.Errorf("the error's text: %.300q (%d bytes)", text, len(text))
	}
}

// What fields are filled with: right values, wrong ones, and those that have been holes somewhere.
var (
	fuzzStrings = []string{
		"", "a", "web-0", "/", "/data", "/proc", "/proc/self/fd/7", "/dev/null", "/sys/fs/cgroup", "..", "/a/../b", "a/../..", "relative", "/kubepods/pod1",
		"kubepods-pod1.slice", "-x", "a\nb", "a\x00b", "0", "-1", "4294967296", "0-3", "0-4294967295", "net.ipv4.ip_forward", "kernel.core_pattern", "1+kernel.core_pattern=|/x",
		"memory.high", "../memory.max", "2MB", "1GB", "ALL", "NET_ADMIN", "CAP_SYS_ADMIN", "no_such", "runtime/default", "unconfined", "localhost/profile", "localhost/../../etc/passwd",
		"noexec", "nosuid", "suid", "vendor.com/gpu=0", "vendor.com/../x=y", "cdi.k8s.io/x", "io.kubernetes.cri.container-type", "org.systemd.property.ExecStart", "rwm", "rwx",
		"10.0.0.1", "::1", "256.0.0.1", "sha256:" + strings.Repeat("a", 64), strings.Repeat("x", 300), strings.Repeat("/x", 3000), "ü", "s0:c1,c2", "%s%n",
	}
	fuzzNumbers = []int64{0, 1, -1, 2, 100, 1000, 65535, 65536, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, -1 << 63}
)

// scatter fills some fields of m, often of 40 of them, and most messages, down to a depth.
func scatter(r *rand.Rand, m protoreflect.Message, often, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if depth == 0 || r.IntN(40) > often && (f.Message() == nil || f.IsList() || f.IsMap() || r.IntN(3) == 0) {
			continue
		}
		switch {
		case f.IsMap():
			for range r.IntN(3) {
				m.Mutable(f).Map().Set(protoreflect.ValueOfString(pick(r, fuzzStrings)).MapKey(), someValue(r, f.MapValue()))
			}
		case f.IsList() && f.Message() != nil:
			for range r.IntN(3) {
				scatter(r, m.Mutable(f).List().AppendMutable().Message(), 10, depth-1)
			}
		case f.IsList():
			for range r.IntN(4) {
				m.Mutable(f).List().Append(someValue(r, f))
			}
		case f.Message() != nil:
			scatter(r, m.Mutable(f).Message(), often, depth-1)
		default:
			m.Set(f, someValue(r, f))
		}
	}
}

func someValue(r *rand.Rand, f protoreflect.FieldDescriptor) protoreflect.Value {
	switch n := pick(r, fuzzNumbers); f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(r.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(r.IntN(5)))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(pick(r, fuzzStrings)))
	default:
		return protoreflect.ValueOfString(pick(r, fuzzStrings))
	}
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }
