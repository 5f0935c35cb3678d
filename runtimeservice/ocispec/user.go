package ocispec

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxID is the largest user or group id that is accepted. The kernel takes
// nearly twice as many, but programs that keep ids in a signed int turn the
// rest into others, in the worst case 0 (CVE-2024-40635).
const maxID = math.MaxInt32

// maxGroups is the kernel's NGROUPS_MAX, setgroups(2).
const maxGroups = 65536

// passwdEntry is one line of passwd(5), its ids still as text.
type passwdEntry struct{ name, uid, gid string }

// groupEntry is one line of group(5).
type groupEntry struct {
	name, gid string
	members   []string
}

// ResolveUser finds who a container's first process runs as. run_as_user wins
// over run_as_username, and either over imageUser, the USER of the image
// ("", name, uid, name:group, uid:gid and their mixtures); passwd and group
// are the files of the image, nil when it has none.
//
// A number is a user id and never looked up as a name, and what merely looks
// like a number ("+0", "00", "0x0") is refused, so that no line of the image's
// passwd can turn an odd number into root (CVE-2026-46680). Without an
// explicit group the primary group is that of the passwd line with this uid,
// else 0. The groups of the result start with the primary one, for a process
// without it in the list escapes permissions that deny it (CVE-2023-25173);
// the policy Merge adds those of the image's group file, Strict does not.
func ResolveUser(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string, passwd, group []byte) (User, error) {
	asked := sc.GetRunAsUser() != nil || sc.GetRunAsUsername() != ""
	if sc.GetRunAsGroup() != nil && !asked {
		return User{}, fmt.Errorf("run_as_group %d without run_as_user or run_as_username: %w",
			sc.GetRunAsGroup().GetValue(), errdefs.ErrInvalidArgument)
	}
	who, err := whoAsked(sc, imageUser)
	if err != nil {
		return User{}, err
	}
	u, name, err := who.lookUp(passwd, group)
	if err != nil {
		return User{}, err
	}
	u.Groups = []uint32{u.GID}
	switch p := sc.GetSupplementalGroupsPolicy(); p {
	case runtimeapi.SupplementalGroupsPolicy_Merge:
		gids, err := memberships(group, name)
		if err != nil {
			return User{}, err
		}
		u.Groups = append(u.Groups, gids...)
	case runtimeapi.SupplementalGroupsPolicy_Strict:
	default:
		return User{}, fmt.Errorf("supplemental_groups_policy %d is unknown: %w", p, errdefs.ErrInvalidArgument)
	}
	for _, g := range sc.GetSupplementalGroups() {
		gid, err := checkID("supplemental_groups", g)
		if err != nil {
			return User{}, err
		}
		u.Groups = append(u.Groups, gid)
	}
	if u.Groups = unique(u.Groups); len(u.Groups) > maxGroups {
		return User{}, fmt.Errorf("supplemental_groups: %d groups, the kernel takes at most %d: %w",
			len(u.Groups), maxGroups, errdefs.ErrInvalidArgument)
	}
	return u, nil
}

// identity is a user as asked for: exactly one of uid and name, and a group
// by id, by name or not at all.
type identity struct {
	field     string // for errors
	uid       *uint32
	name      string
	gid       *uint32
	groupName string
}

func whoAsked(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string) (identity, error) {
	var who identity
	switch {
	case sc.GetRunAsUser() != nil:
		who.field = "run_as_user"
		uid, err := checkID(who.field, sc.GetRunAsUser().GetValue())
		if err != nil {
			return who, err
		}
		who.uid = &uid
	case sc.GetRunAsUsername() != "":
		who.field, who.name = "run_as_username", sc.GetRunAsUsername()
		if err := checkName(who.field, who.name); err != nil {
			return who, err
		}
	default:
		return parseUser(imageUser)
	}
	if g := sc.GetRunAsGroup(); g != nil {
		gid, err := checkID("run_as_group", g.GetValue())
		if err != nil {
			return who, err
		}
		who.gid = &gid
	}
	return who, nil
}

// parseUser reads the USER of an image: user or user:group, each a decimal
// number or a name. Nothing at all is user 0.
func parseUser(s string) (identity, error) {
	who := identity{field: "the image's USER"}
	user, group, _ := strings.Cut(s, ":")
	if s == "" {
		who.uid = new(uint32)
		return who, nil
	}
	if user == "" || strings.Contains(group, ":") {
		return who, fmt.Errorf("%s %.256q is not of the form user or user:group: %w", who.field, s, errdefs.ErrInvalidArgument)
	}
	var err error
	if who.uid, who.name, err = idOrName(who.field, user); err != nil {
		return who, err
	}
	if group == "" {
		return who, nil
	}
	who.gid, who.groupName, err = idOrName(who.field, group)
	return who, err
}

// idOrName tells a number from a name and refuses what could pass for either.
func idOrName(field, s string) (*uint32, string, error) {
	if strings.Trim(s, "0123456789") == "" {
		id, ok := parseID(s)
		if !ok {
			return nil, "", fmt.Errorf("%s: %.256q is not an id between 0 and %d in plain decimal: %w", field, s, maxID, errdefs.ErrInvalidArgument)
		}
		return &id, "", nil
	}
	return nil, s, checkName(field, s)
}

// parseID reads the one decimal form of an id, without sign or leading zeros.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxID || strconv.FormatUint(n, 10) != s {
		return 0, false
	}
	return uint32(n), true
}

func checkID(field string, id int64) (uint32, error) {
	if id < 0 || id > maxID {
		return 0, fmt.Errorf("%s %d is not between 0 and %d: %w", field, id, maxID, errdefs.ErrInvalidArgument)
	}
	return uint32(id), nil
}

// checkName refuses names that cannot stand in a passwd file and those that
// some program might read as a number.
func checkName(field, name string) error {
	refuse := func(why string) error {
		return fmt.Errorf("%s: user or group name %.256q %s: %w", field, name, why, errdefs.ErrInvalidArgument)
	}
	if !utf8.ValidString(name) || len(name) > 256 {
		return refuse("is no valid text or longer than 256 bytes")
	}
	if i := strings.IndexFunc(name, func(r rune) bool {
		return r == ':' || r == ',' || r == '/' || unicode.IsSpace(r) || !unicode.IsPrint(r)
	}); i >= 0 {
		return refuse("holds a character that no name has")
	}
	if strings.ContainsRune("+-.", rune(name[0])) {
		return refuse("begins with a sign")
	}
	first, _ := utf8.DecodeRuneInString(name)
	if !unicode.IsNumber(first) {
		return nil
	}
	_, intErr := strconv.ParseInt(name, 0, 64)
	_, floatErr := strconv.ParseFloat(name, 64)
	if first >= utf8.RuneSelf || !isSyntax(intErr) || !isSyntax(floatErr) {
		return refuse("looks like a number; give a plain decimal id")
	}
	return nil
}

// isSyntax says that a number could not be parsed at all, rather than being out of range.
func isSyntax(err error) bool { return errors.Is(err, strconv.ErrSyntax) }

// lookUp completes an identity from the image's files. name is the user's
// name, "" when passwd does not know the uid.
func (who identity) lookUp(passwd, group []byte) (u User, name string, err error) {
	e, found := findUser(passwd, who)
	if who.uid != nil {
		u.UID = *who.uid
	} else {
		if !found {
			return u, "", fmt.Errorf("%s: user %q is not in the image's /etc/passwd: %w", who.field, who.name, errdefs.ErrInvalidArgument)
		}
		uid, ok := parseID(e.uid)
		if !ok {
			return u, "", fmt.Errorf("%s: user %q has the invalid uid %.64q in the image's /etc/passwd: %w", who.field, who.name, e.uid, errdefs.ErrInvalidArgument)
		}
		u.UID = uid
	}
	switch {
	case who.gid != nil:
		u.GID = *who.gid
	case who.groupName != "":
		u.GID, err = findGroup(group, who)
	case found:
		gid, ok := parseID(e.gid)
		if !ok {
			err = fmt.Errorf("%s: user %q has the invalid gid %.64q in the image's /etc/passwd: %w", who.field, e.name, e.gid, errdefs.ErrInvalidArgument)
		}
		u.GID = gid
	}
	return u, e.name, err
}

// findUser is the first line of passwd for the identity, as getpwnam(3) has it.
func findUser(passwd []byte, who identity) (passwdEntry, bool) {
	for line := range bytes.Lines(passwd) {
		e, ok := parsePasswd(line)
		if !ok {
			continue
		}
		if who.uid != nil {
			if uid, ok := parseID(e.uid); ok && uid == *who.uid {
				return e, true
			}
		} else if e.name == who.name {
			return e, true
		}
	}
	return passwdEntry{}, false
}

func findGroup(group []byte, who identity) (uint32, error) {
	for line := range bytes.Lines(group) {
		e, ok := parseGroup(line)
		if !ok || e.name != who.groupName {
			continue
		}
		gid, ok := parseID(e.gid)
		if !ok {
			return 0, fmt.Errorf("%s: group %q has the invalid gid %.64q in the image's /etc/group: %w", who.field, e.name, e.gid, errdefs.ErrInvalidArgument)
		}
		return gid, nil
	}
	return 0, fmt.Errorf("%s: group %q is not in the image's /etc/group: %w", who.field, who.groupName, errdefs.ErrInvalidArgument)
}

// memberships are the groups that list the user, in the file's order.
func memberships(group []byte, user string) ([]uint32, error) {
	if user == "" {
		return nil, nil
	}
	var gids []uint32
	for line := range bytes.Lines(group) {
		e, ok := parseGroup(line)
		if !ok || !slices.Contains(e.members, user) {
			continue
		}
		gid, ok := parseID(e.gid)
		if !ok {
			return nil, fmt.Errorf("group %q of user %q has the invalid gid %.64q in the image's /etc/group: %w", e.name, user, e.gid, errdefs.ErrInvalidArgument)
		}
		gids = append(gids, gid)
	}
	return gids, nil
}

// parsePasswd reads name:password:uid:gid:... ; lines of another form are no entries.
func parsePasswd(line []byte) (passwdEntry, bool) {
	f := strings.SplitN(strings.TrimRight(string(line), "\r\n"), ":", 5)
	if len(f) < 4 || f[0] == "" {
		return passwdEntry{}, false
	}
	return passwdEntry{name: f[0], uid: f[2], gid: f[3]}, true
}

// parseGroup reads name:password:gid:member,member.
func parseGroup(line []byte) (groupEntry, bool) {
	f := strings.SplitN(strings.TrimRight(string(line), "\r\n"), ":", 5)
	if len(f) < 3 || f[0] == "" {
		return groupEntry{}, false
	}
	e := groupEntry{name: f[0], gid: f[2]}
	if len(f) > 3 {
		e.members = strings.Split(f[3], ",")
	}
	return e, true
}

// unique drops repeated ids and keeps the order.
func unique(ids []uint32) []uint32 {
	seen := make(map[uint32]bool, len(ids))
	out := ids[:0]
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	return out
}
