package main

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// hole is a published vulnerability of an OCI runtime or a CNI plugin: in the versions from
// since, "" for the first, to before fixed.
type hole struct {
	program, since, fixed string
	ids                   string
	// closed says why a container of Gantry's cannot use it; "" if it can.
	closed string
}

const (
	ownDev   = "every container of Gantry's has a /dev of its own, and no image one that is a link"
	execFile = "Gantry never uses `exec --user`"
	noKrun   = "Gantry passes on no annotation that chooses another handler"
)

var holes = []hole{
	{"runc", "", "1.1.5", "CVE-2023-25809, CVE-2023-27561", ""},
	{"runc", "1.0.0-rc93", "1.1.12", "CVE-2024-21626", ""},
	{"runc", "", "1.1.14", "CVE-2024-45310", ""},
	{"runc", "1.2.0-rc.1", "1.2.0-rc.3", "CVE-2024-45310", ""},
	{"runc", "", "1.2.8", "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881", ""},
	{"runc", "1.3.0-rc.1", "1.3.3", "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881", ""},
	{"runc", "1.4.0-rc.1", "1.4.0-rc.3", "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881", ""},
	{"runc", "", "1.3.6", "CVE-2026-41579", ownDev},
	{"runc", "1.4.0-rc.1", "1.4.3", "CVE-2026-41579", ownDev},
	{"crun", "", "1.20", "CVE-2025-24965", noKrun},
	{"crun", "1.19", "1.27", "CVE-2026-30892", execFile},
	{"crun", "", "1.29.2", "CVE-2026-88264, CVE-2026-88265", ownDev},
	{"portmap", "", "0.7.5", "CVE-2019-9946", ""},
	{"portmap", "1.6.0", "1.9.0", "CVE-2025-67499 (with its backend nftables)", ""},
}

// oldest are the versions below which a runtime is not to be used even though
// no single hole of it is open here, and newest those without any known hole.
var (
	oldest = map[string]string{"crun": "1.27"}
	newest = map[string]string{"runc": "1.3.6, 1.4.3, 1.5.0 or newer", "crun": "1.29.2 or newer", "portmap": "1.9.0 or newer"}
)

// verdict is what is known of a version of such a program.
type verdict struct {
	open   bool   // there are holes that a container could use, or the version is too old
	detail string // "" if nothing is known against it
}

// judge looks a version up. It knows nothing of what a distribution has mended.
func judge(program, version string) verdict {
	v, ok := parseVersion(version)
	if !ok {
		return verdict{}
	}
	var ids, closed []string
	for _, h := range holes {
		if h.program != program || !inRange(v, h.since, h.fixed) {
			continue
		}
		if h.closed == "" {
			ids = append(ids, h.ids)
		} else {
			closed = append(closed, fmt.Sprintf("%s (%s)", h.ids, h.closed))
		}
	}
	tooOld := oldest[program] != "" && inRange(v, "", oldest[program])
	if len(ids)+len(closed) == 0 && !tooOld {
		return verdict{}
	}
	var parts []string
	if len(ids) > 0 {
		parts = append(parts, "open to "+strings.Join(ids, ", "))
	}
	if len(closed) > 0 {
		parts = append(parts, "has "+strings.Join(closed, ", "))
	}
	return verdict{
		open: len(ids) > 0 || tooOld,
		detail: fmt.Sprintf("%s %s %s; install %s %s, unless your distribution has mended this one",
			program, version, strings.Join(parts, "; "), program, newest[program]),
	}
}

var versionNumber = regexp.MustCompile(`^(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(?:[-~]rc\.?(\d{1,6}))?`)

// parseVersion gives major, minor, patch and release candidate, the last of
// which is above all candidates in a release.
func parseVersion(s string) (v [4]int, ok bool) {
	m := versionNumber.FindStringSubmatch(s)
	if m == nil {
		return v, false
	}
	for i := range v {
		v[i], _ = strconv.Atoi(m[i+1]) // digits or nothing
	}
	if m[4] == "" {
		v[3] = math.MaxInt
	}
	return v, true
}

// inRange is since <= v < fixed.
func inRange(v [4]int, since, fixed string) bool {
	from, ok := parseVersion(since)
	to, _ := parseVersion(fixed)
	return (!ok || slices.Compare(v[:], from[:]) >= 0) && slices.Compare(v[:], to[:]) < 0
}
