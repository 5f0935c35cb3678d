package ocispec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const testPasswd = `# comment
root:x:0:0:root:/root:/bin/sh
alice:x:1000:1001:Alice:/home/alice:/bin/sh
alice:x:0:0:second line:/:/bin/sh
bob:x:1002:1002::/:
389ds:x:389:389::/:
broken
huge:x:4294967296:0::/:
wrap:x:2147483648:0::/:
neg:x:-1:0::/:
octal:x:010:0::/:
badgid:x:1003:+0::/:
99999999999:x:0:0::/:
0x0:x:0:0::/:
+0:x:0:0::/:
00:x:0:0::/:
:x:0:0::/:
`

const testGroup = `root:x:0:
staff:x:50:alice,bob
wheel:x:10:root
video:x:44:alice
users:x:100:alice
dup:x:50:alice
hugegroup:x:4294967296:
evil:x:+0:carol
short
`

func TestResolveUser(t *testing.T) {
	id := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	type sc = runtimeapi.LinuxContainerSecurityContext
	for _, tc := range []struct {
		name, image string
		sc          *sc
		want        User
		wantErr     string // part of the message
	}{
		{name: "nothing at all is root with root's groups", want: User{0, 0, []uint32{0, 10}}},
		{name: "nil context", sc: nil, image: "1234", want: User{1234, 0, []uint32{0}}},
		{name: "image name", image: "alice", want: User{1000, 1001, []uint32{1001, 50, 44, 100}}},
		{name: "image uid has the group of its line", image: "1002", want: User{1002, 1002, []uint32{1002, 50}}},
		{name: "image uid:gid", image: "1000:7", want: User{1000, 7, []uint32{7, 50, 44, 100}}},
		{name: "image name:group", image: "bob:video", want: User{1002, 44, []uint32{44, 50}}},
		{name: "image uid:group", image: "5:video", want: User{5, 44, []uint32{44}}},
		{name: "image 0:0", image: "0:0", want: User{0, 0, []uint32{0, 10}}},
		{name: "empty group", image: "1000:", want: User{1000, 1001, []uint32{1001, 50, 44, 100}}},
		{name: "a name that begins with digits", image: "389ds", want: User{389, 389, []uint32{389}}},
		{name: "largest id", image: "2147483647", want: User{2147483647, 0, []uint32{0}}},
		{name: "run_as_user wins over the image", sc: &sc{RunAsUser: id(7)}, image: "alice:video", want: User{7, 0, []uint32{0}}},
		{name: "run_as_user wins over the name", sc: &sc{RunAsUser: id(7), RunAsUsername: "alice"}, want: User{7, 0, []uint32{0}}},
		{name: "run_as_user 0 is asked for", sc: &sc{RunAsUser: id(0)}, image: "alice", want: User{0, 0, []uint32{0, 10}}},
		{name: "run_as_user and run_as_group", sc: &sc{RunAsUser: id(1000), RunAsGroup: id(8)}, want: User{1000, 8, []uint32{8, 50, 44, 100}}},
		{name: "run_as_username", sc: &sc{RunAsUsername: "bob", RunAsGroup: id(8)}, want: User{1002, 8, []uint32{8, 50}}},
		{name: "supplemental groups are merged", sc: &sc{RunAsUser: id(1000), SupplementalGroups: []int64{1234, 50, 1001}}, want: User{1000, 1001, []uint32{1001, 50, 44, 100, 1234}}},
		{name: "strict", sc: &sc{RunAsUser: id(1000), SupplementalGroups: []int64{1234, 1234}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict}, want: User{1000, 1001, []uint32{1001, 1234}}},

		{name: "group without user", sc: &sc{RunAsGroup: id(8)}, image: "alice", wantErr: "run_as_group 8 without"},
		{name: "unknown policy", sc: &sc{SupplementalGroupsPolicy: 9}, wantErr: "supplemental_groups_policy"},
		{name: "negative run_as_user", sc: &sc{RunAsUser: id(-1)}, wantErr: "run_as_user -1"},
		{name: "run_as_user 2^31", sc: &sc{RunAsUser: id(1 << 31)}, wantErr: "run_as_user"},
		{name: "run_as_user 2^32", sc: &sc{RunAsUser: id(1 << 32)}, wantErr: "run_as_user"},
		{name: "run_as_group 2^32", sc: &sc{RunAsUser: id(1), RunAsGroup: id(1 << 32)}, wantErr: "run_as_group"},
		{name: "supplemental group 2^32", sc: &sc{SupplementalGroups: []int64{1 << 32}}, wantErr: "supplemental_groups"},
		{name: "numeric run_as_username", sc: &sc{RunAsUsername: "00"}, wantErr: "run_as_username"},
		{name: "unknown run_as_username", sc: &sc{RunAsUsername: "carol"}, wantErr: `"carol" is not in`},
		{name: "CVE-2024-40635", image: "2147483648", wantErr: "2147483648"},
		{name: "CVE-2024-40635", image: "4294967295", wantErr: "4294967295"},
		{name: "CVE-2024-40635", image: "4294967296", wantErr: "4294967296"},
		{name: "CVE-2024-40635", image: "-1", wantErr: "-1"},
		{name: "CVE-2024-40635", image: "1000:4294967296", wantErr: "4294967296"},
		{name: "CVE-2026-46680", image: "99999999999", wantErr: "99999999999"},
		{name: "look-alike", image: "0x0", wantErr: "looks like a number"},
		{name: "look-alike", image: "+0", wantErr: "begins with a sign"},
		{name: "look-alike", image: "00", wantErr: "plain decimal"},
		{name: "look-alike", image: "1_000", wantErr: "looks like a number"},
		{name: "look-alike", image: "0b0", wantErr: "looks like a number"},
		{name: "look-alike", image: "1e3", wantErr: "looks like a number"},
		{name: "look-alike", image: "0xfffffffffffffffff", wantErr: "looks like a number"},
		{name: "look-alike", image: "１０", wantErr: "looks like a number"},
		{name: "look-alike", image: " 0", wantErr: "character"},
		{name: "look-alike", image: "alice\n", wantErr: "character"},
		{name: "look-alike", image: "ali\x00ce", wantErr: "character"},
		{name: "look-alike", image: "al\xffice", wantErr: "valid text"},
		{name: "form", image: ":", wantErr: "form"},
		{name: "form", image: ":staff", wantErr: "form"},
		{name: "form", image: "a:b:c", wantErr: "form"},
		{name: "missing user", image: "carol", wantErr: "not in the image's /etc/passwd"},
		{name: "missing group", image: "alice:nobody", wantErr: "not in the image's /etc/group"},
		{name: "uid of the line overflows", image: "huge", wantErr: "invalid uid"},
		{name: "uid of the line wraps", image: "wrap", wantErr: "invalid uid"},
		{name: "uid of the line is negative", image: "neg", wantErr: "invalid uid"},
		{name: "uid of the line is octal", image: "octal", wantErr: "invalid uid"},
		{name: "gid of the line", image: "badgid", wantErr: "invalid gid"},
		{name: "gid of the line of a uid", sc: &sc{RunAsUser: id(1003)}, wantErr: "invalid gid"},
		{name: "gid of a group", image: "alice:hugegroup", wantErr: "invalid gid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ResolveUser(tc.sc, tc.image, []byte(testPasswd), []byte(testGroup))
			if tc.wantErr != "" {
				if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("got %+v, error %v; want an invalid argument with %q", got, err, tc.wantErr)
				}
				return
			}
			if err != nil || got.UID != tc.want.UID || got.GID != tc.want.GID || !slices.Equal(got.Groups, tc.want.Groups) {
				t.Fatalf("got %+v, error %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestResolveUserWithoutFiles(t *testing.T) {
	if u, err := ResolveUser(nil, "", nil, nil); err != nil || u.UID != 0 || !slices.Equal(u.Groups, []uint32{0}) {
		t.Errorf("no files: %+v, %v", u, err)
	}
	if u, err := ResolveUser(nil, "12:34", nil, nil); err != nil || u.UID != 12 || u.GID != 34 {
		t.Errorf("no files, ids: %+v, %v", u, err)
	}
	if _, err := ResolveUser(nil, "root", nil, nil); err == nil {
		t.Error("no files, name: no error")
	}
}

func TestResolveUserGroupsBounded(t *testing.T) {
	var group strings.Builder
	for i := range maxGroups + 1 {
		fmt.Fprintf(&group, "g%d:x:%d:alice\n", i, i)
	}
	if _, err := ResolveUser(nil, "alice", []byte(testPasswd), []byte(group.String())); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("%d groups: %v", maxGroups+1, err)
	}
}

func FuzzResolveUser(f *testing.F) {
	for _, user := range []string{"", "alice", "1000:50", "99999999999", "0x0", "+0", "a:b:c"} {
		f.Add(user, []byte(testPasswd), []byte(testGroup))
	}
	f.Fuzz(func(t *testing.T, user string, passwd, group []byte) {
		u, err := ResolveUser(nil, user, passwd, group)
		if err != nil {
			return
		}
		if u.UID > maxID || u.GID > maxID || len(u.Groups) == 0 || u.Groups[0] != u.GID || len(u.Groups) > maxGroups {
			t.Fatalf("%q: %+v", user, u)
		}
		// Digits are the uid itself, whatever the files say.
		name, _, _ := strings.Cut(user, ":")
		if name != "" && strings.Trim(name, "0123456789") == "" && fmt.Sprint(u.UID) != name {
			t.Fatalf("%q became uid %d", user, u.UID)
		}
		// A name is root only by a line that says so.
		if u.UID == 0 && name != "" && name != "0" && !strings.Contains("\n"+string(passwd), "\n"+name+":") {
			t.Fatalf("%q became root", user)
		}
	})
}
