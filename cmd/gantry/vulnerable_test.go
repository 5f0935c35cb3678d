package main

import (
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	const trio = "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881"
	for _, tt := range []struct {
		program, version string
		open             bool
		names            string // in detail; "" = nothing to say
	}{
		{"runc", "1.1.4", true, "CVE-2023-25809"},
		{"runc", "1.1.5+ds1", true, "open to CVE-2024-21626, CVE-2024-45310, " + trio},
		{"runc", "1.1.12", true, "open to CVE-2024-45310, " + trio},
		{"runc", "1.2.0-rc.2", true, "CVE-2024-45310"},
		{"runc", "1.2.7", true, "open to " + trio},
		{"runc", "1.2.8", false, "CVE-2026-41579"},
		{"runc", "1.2.9-rc.1", false, "CVE-2026-41579"},
		{"runc", "1.3.0", true, trio},
		{"runc", "1.3", true, trio},
		{"runc", "1.3.2", true, trio},
		{"runc", "1.3.3", false, "install runc 1.3.6, 1.4.3, 1.5.0 or newer"},
		{"runc", "1.3.6", false, ""},
		{"runc", "1.4.0-rc.2", true, trio},
		{"runc", "1.4.0-rc2", true, trio},
		{"runc", "1.4.0~rc2", true, trio},
		{"runc", "1.4.0-rc.3", false, "CVE-2026-41579"},
		{"runc", "1.4.2", false, "CVE-2026-41579"},
		{"runc", "1.4.3", false, ""},
		{"runc", "1.5.2", false, ""},
		{"runc", "2.0.0", false, ""},
		{"runc", "unknown", false, ""},
		{"crun", "1.8.1", true, "CVE-2025-24965"},
		{"crun", "1.20", true, "CVE-2026-30892"},
		{"crun", "1.26", true, "CVE-2026-30892"},
		{"crun", "1.27", false, "CVE-2026-88264, CVE-2026-88265"},
		{"crun", "1.29.1", false, "CVE-2026-88264"},
		{"crun", "1.29.2", false, ""},
		{"crun", "1.30.1", false, ""},
		{"portmap", "0.7.4", true, "CVE-2019-9946"},
		{"portmap", "1.5.1", false, ""},
		{"portmap", "1.8.0", true, "portmap 1.8.0 open to CVE-2025-67499 (with its backend nftables); install portmap 1.9.0 or newer"},
		{"portmap", "1.9.0", false, ""},
		{"youki", "0.1.0", false, ""},
		{"", "", false, ""},
	} {
		got := judge(tt.program, tt.version)
		if got.open != tt.open || !strings.Contains(got.detail, tt.names) || tt.names == "" && got.detail != "" {
			t.Errorf("%s %s: %+v, want open %v and %q", tt.program, tt.version, got, tt.open, tt.names)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	for _, s := range []string{"1.5.2", "1.4.0-rc.3", "1.27", "1.1.5+ds1", "", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, ok := parseVersion(s); ok && (inRange(v, "", s) || inRange(v, "0.0.0-rc0", "0.0.0-rc1") && v != [4]int{}) {
			t.Errorf("%q is %v", s, v)
		}
		judge("runc", s)
	})
}
