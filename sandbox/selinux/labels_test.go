package selinux

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestWith(t *testing.T) {
	pod := Labels{"system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}
	for _, row := range []struct {
		o    Options
		want Labels
	}{
		{Options{}, pod},
		{Options{Type: "spc_t"}, Labels{"system_u:system_r:spc_t:s0:c1,c2", pod.Mount}},
		{Options{Role: "other_r"}, Labels{"system_u:other_r:container_t:s0:c1,c2", pod.Mount}},
		{Options{User: "u"}, Labels{"u:system_r:container_t:s0:c1,c2", "u:object_r:container_file_t:s0:c1,c2"}},
		{Options{Level: "s0-s0:c3.c9"}, Labels{"system_u:system_r:container_t:s0-s0:c3.c9", "system_u:object_r:container_file_t:s0-s0:c3.c9"}},
		{Options{"u", "r", "t", "s0"}, Labels{"u:r:t:s0", "u:object_r:container_file_t:s0"}},
	} {
		if got := pod.with(row.o); got != row.want {
			t.Errorf("%+v: %+v, want %+v", row.o, got, row.want)
		}
		if err := row.o.check(); err != nil {
			t.Errorf("%+v: %v", row.o, err)
		}
	}
	plain := Labels{"u:r:t", "u:object_r:f"} // a policy without levels
	if got := plain.with(Options{Level: "s0:c1"}); got != plain {
		t.Errorf("a level where there are none: %+v", got)
	}
}

func TestOptionsAreParts(t *testing.T) {
	for field, list := range map[string][]Options{
		"user":  {{User: "a:b"}, {User: `a"`}, {User: "a b"}, {User: strings.Repeat("a", 65)}, {User: "a\n"}},
		"role":  {{Role: "r\x00"}, {Role: "r,r"}},
		"type":  {{Type: "t:s0"}, {Type: `t",upperdir=/`}, {Type: "ü"}},
		"level": {{Level: "c1"}, {Level: "s0:"}, {Level: "s0:c1,"}, {Level: `s0:c1"`}, {Level: "s0\n"}, {Level: "s0:c12345"}, {Level: "s0:c1" + strings.Repeat(",c1", 50)}},
	} {
		for _, o := range list {
			_, err := Labels{}.With(o)
			if !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), field+" ") {
				t.Errorf("%+v: %v", o, err)
			}
			if _, err := New(o); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%+v: a new label: %v", o, err)
			}
		}
	}
}

// A label is one option of mounts, whatever the request says.
func FuzzOptions(f *testing.F) {
	f.Add("system_u", "system_r", "spc_t", "s0:c1,c2")
	f.Add("", `"`, ":", "s0")
	f.Fuzz(func(t *testing.T, user, role, kind, level string) {
		o := Options{user, role, kind, level}
		if o.check() != nil {
			return
		}
		l := Labels{"a:b:c:s0", "a:b:c:s0"}.with(o)
		for _, name := range []string{l.Process, l.Mount} {
			if len(name) > 255 || strings.ContainsAny(name, "\"\\'\n\x00 ") || strings.Count(strings.TrimSuffix(name, levelOf(Labels{Process: name})), ":") != 3 {
				t.Errorf("%+v: label %q", o, name)
			}
		}
	})
}

// A level that several pods were given is free when the last has gone.
func TestReserve(t *testing.T) {
	l := Labels{Process: "u:r:t:s0:c1,c2"}
	for range 2 {
		Reserve(l)
	}
	for want := range 2 {
		holders.Lock()
		n := holders.n["s0:c1,c2"]
		holders.Unlock()
		if n != 2-want {
			t.Errorf("after %d releases %d hold it", want, n)
		}
		Release(l)
	}
	Release(Labels{})
	if len(holders.n) != 0 {
		t.Errorf("left: %v", holders.n)
	}
}
