package ocispec

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// unsafeOfRunc is what runc 1.5's and crun's features name.
var unsafeOfRuntimes = []string{
	"bundle", "org.systemd.property.", "org.criu.config", "module.wasm.image/variant", "io.kubernetes.cri.container-type", "run.oci.",
}

// TestAnnotations: config.json has the annotations that the handler's list
// names, of the pod and over them of the container, and no other.
func TestAnnotations(t *testing.T) {
	pod := map[string]string{"a.example/x": "pod", "a.example/y": "pod", "other": "1", "b.example/z": "pod"}
	ctr := map[string]string{"a.example/y": "ctr", "b.example/w": "ctr", "b.examplex/w": "no"}
	for _, tt := range []struct {
		entries []string
		want    map[string]string
	}{
		{nil, nil},
		{[]string{"absent"}, nil},
		{[]string{"a.example/y"}, map[string]string{"a.example/y": "ctr"}},
		{[]string{"b.example/*", "other"}, map[string]string{"b.example/z": "pod", "b.example/w": "ctr", "other": "1"}},
	} {
		n, p, c := testNode(), testPod(), testContainer()
		var err error
		if n.Annotations, err = NewAnnotationFilter(tt.entries, nil); err != nil {
			t.Fatal(err)
		}
		p.Config.Annotations, c.Config.Annotations = pod, ctr
		c.Image.Labels = map[string]string{"a.example/x": "image", "other": "image", "b.example/image": "image"}
		spec, _, err := Build(n, p, c)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, spec.Annotations); diff != "" {
			t.Errorf("%q (-want +got)\n%s", tt.entries, diff)
		}
	}
}

func TestAnnotationsAreBounded(t *testing.T) {
	n, err := testNode(), error(nil)
	if n.Annotations, err = NewAnnotationFilter([]string{"a/*"}, nil); err != nil {
		t.Fatal(err)
	}
	half := strings.Repeat("x", maxAnnotationValue)
	for _, annotations := range []map[string]string{
		{"a/x": half + "x"}, {"a/x": "\x00"}, {"a/1": half, "a/2": half, "a/3": half, "a/4": half},
	} {
		p, c := testPod(), testContainer()
		p.Config.Annotations = annotations
		if _, _, err := Build(n, p, c); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "annotations: ") {
			t.Errorf("%d annotations: %.100v", len(annotations), err)
		}
	}
}

// TestSecurityAnnotations: what a pod may say to the OCI runtime is the node's to decide.
func TestSecurityAnnotations(t *testing.T) {
	filter := func(unsafe []string, entries ...string) AnnotationFilter {
		f, err := NewAnnotationFilter(entries, unsafe)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	t.Run("CVE-2023-6476", func(t *testing.T) {
		f := filter(nil, "foo.bar", "vendor.example/*")
		for key, want := range map[string]bool{
			"foo.bar": true, "foo.barX": false, "foo.bar/ctr": false, "foo.ba": false, "": false, "FOO.bar": false,
			"vendor.example/a": true, "vendor.example/a/b": true, "vendor.example/": false, "vendor.example": false, "vendor.examplex/a": false,
		} {
			if f.passes(key) != want {
				t.Errorf("%q passes: %v", key, !want)
			}
		}
	})
	t.Run("CVE-2024-3154", func(t *testing.T) {
		for _, entry := range []string{
			"bundle", "org.systemd.property.ExecStartPre", "org.systemd.property.", "org.criu.config", "run.oci.handler",
			"module.wasm.image/variant", "io.kubernetes.cri.container-type", "run.oci./*",
		} {
			if _, err := NewAnnotationFilter([]string{entry}, nil); !errdefs.IsInvalidArgument(err) {
				t.Errorf("the list may have %q: %v", entry, err)
			}
		}
		f := filter(append(unsafeOfRuntimes, "new.runtime/*danger", "new.runtime/root"), "new.runtime/*", "module.wasm.image/*")
		for key, want := range map[string]bool{"new.runtime/root": false, "new.runtime/harmless": true, "module.wasm.image/variant": false} {
			if f.passes(key) != want {
				t.Errorf("%q, which the runtime's features name unsafe or not, passes: %v", key, !want)
			}
		}
	})
}

func FuzzAnnotationFilter(f *testing.F) {
	for _, e := range []string{"a/b", "a/*", "*", "run.oci.x", "/*", "a.b."} {
		f.Add(e, "a/b")
	}
	f.Fuzz(func(t *testing.T, entry, key string) {
		filter, err := NewAnnotationFilter([]string{entry}, nil)
		if err != nil {
			return
		}
		prefix, wild := strings.CutSuffix(entry, "*")
		if want := !isUnsafe(unsafeAnnotations, key) && (key == entry && !wild || wild && key != prefix && strings.HasPrefix(key, prefix)); filter.passes(key) != want {
			t.Errorf("entry %q lets %q pass: %v", entry, key, !want)
		}
	})
}
