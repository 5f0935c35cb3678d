package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

const (
	maxSocketPath    = 107 // unix(7), sun_path
	maxNonMasquerade = 256 // what gantry-bridge takes
)

var (
	linkName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`)
	tableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
)

// Validate checks what `gantry serve` needs. It joins all errors, each of which
// names the key, its value and what to do. That the program of another runtime
// than the default one is missing is not among them: see [Config.Missing].
func (c Config) Validate() error {
	return errors.Join(slices.Concat(
		c.checkPaths(), c.checkRuntimes(), c.Network.check(), c.Streaming.check(), c.Images.check(), c.checkValues())...)
}

func wrong(key string, value any, format string, args ...any) error {
	if s, ok := value.(string); ok {
		value = fmt.Sprintf("%q", s)
	}
	return fmt.Errorf("%s = %v: %s", key, value, fmt.Sprintf(format, args...))
}

func (c Config) checkPaths() (errs []error) {
	absolute := func(key, path string) {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			errs = append(errs, wrong(key, path, "give a clean absolute path"))
		}
	}
	absolute("root", c.Root)
	absolute("run", c.Run)
	absolute("socket", c.Socket)
	absolute("seccomp_dir", c.SeccompDir)
	absolute("cni.conf_dir", c.CNI.ConfDir)
	for i, dir := range c.CNI.BinDirs {
		absolute(fmt.Sprintf("cni.bin_dirs[%d]", i), dir)
	}
	for i, dir := range c.CDISpecDirs {
		absolute(fmt.Sprintf("cdi_spec_dirs[%d]", i), dir)
	}
	for i, dir := range c.RegistryConfigDirs {
		absolute(fmt.Sprintf("registry_config_dirs[%d]", i), dir)
	}
	for _, p := range []struct{ key, path string }{
		{"images.docker_config", c.Images.DockerConfig}, {"images.preload_dir", c.Images.PreloadDir}, {"images.verify.bin_dir", c.Images.Verify.BinDir},
	} {
		absolute(p.key, p.path)
	}
	if c.Root == c.Run {
		errs = append(errs, wrong("run", c.Run, "is root too; give each a directory of its own"))
	}
	if len(c.Socket) > maxSocketPath {
		errs = append(errs, wrong("socket", c.Socket, "has %d bytes, the kernel takes %d; give a shorter path", len(c.Socket), maxSocketPath))
	}
	if c.Supervisor == "" {
		errs = append(errs, wrong("supervisor", c.Supervisor, "gantry-supervisor is neither beside gantry nor in PATH; install it or give its path"))
	} else if err := program(c.Supervisor); err != nil {
		errs = append(errs, wrong("supervisor", c.Supervisor, "%v; give the path of gantry-supervisor", err))
	}
	return errs
}

func program(path string) error {
	if !filepath.IsAbs(path) {
		return errors.New("is no absolute path")
	}
	return executable(path)
}

func (n Network) check() (errs []error) {
	if n.Default != NetworkBridge && n.Default != NetworkNone {
		errs = append(errs, wrong("network.default", n.Default, "give %q or %q", NetworkBridge, NetworkNone))
	}
	if !linkName.MatchString(n.Bridge) {
		errs = append(errs, wrong("network.bridge", n.Bridge, "give a name of at most 15 letters, digits, \".\", \"_\" and \"-\""))
	}
	if !tableName.MatchString(n.Table) {
		errs = append(errs, wrong("network.table", n.Table, "give a name of letters, digits and \"_\""))
	}
	if len(n.Subnets) == 0 || len(n.Subnets) > 2 || len(n.Subnets) == 2 && n.Subnets[0].Addr().Is4() == n.Subnets[1].Addr().Is4() {
		errs = append(errs, wrong("network.subnets", n.Subnets, "give one prefix, or one of IPv4 and one of IPv6"))
	}
	for _, p := range n.Subnets {
		switch {
		case !p.IsValid() || p.Addr().Is4In6():
			errs = append(errs, wrong("network.subnets", n.Subnets, "give prefixes such as 10.86.0.0/16"))
		case p != p.Masked():
			errs = append(errs, wrong("network.subnets", p, "has bits behind the prefix; write %v", p.Masked()))
		case !roomy(p):
			errs = append(errs, wrong("network.subnets", p, "has no room for pods; give a wider prefix"))
		}
	}
	if len(n.NonMasqueradeCIDRs) > maxNonMasquerade {
		errs = append(errs, wrong("network.non_masquerade_cidrs", len(n.NonMasqueradeCIDRs), "give at most %d prefixes", maxNonMasquerade))
	}
	for _, p := range n.NonMasqueradeCIDRs {
		if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() {
			errs = append(errs, wrong("network.non_masquerade_cidrs", p, "give prefixes without bits behind them, such as 192.168.0.0/16"))
		}
	}
	return errs
}

// roomy is whether a prefix has addresses for a bridge and a pod.
func roomy(p netip.Prefix) bool { return p.Addr().BitLen()-p.Bits() >= 2 }

func (s Streaming) check() (errs []error) {
	addr, err := netip.ParseAddrPort(s.Address)
	switch {
	case err != nil:
		errs = append(errs, wrong("streaming.address", s.Address, "give an IP address and a port, such as 127.0.0.1:0 or [::1]:0"))
	case !addr.Addr().IsLoopback() && s.TLSCert == "":
		errs = append(errs, wrong("streaming.address", s.Address, "other machines reach it; give streaming.tls_cert and tls_key, or a loopback address"))
	}
	if t := time.Duration(s.IdleTimeout); t < time.Second || t > 7*24*time.Hour {
		errs = append(errs, wrong("streaming.idle_timeout", t.String(), "give \"1s\" to \"168h\""))
	}
	if t := time.Duration(s.CreationTimeout); t < time.Second || t > time.Hour {
		errs = append(errs, wrong("streaming.creation_timeout", t.String(), "give \"1s\" to \"1h\""))
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		errs = append(errs, wrong("streaming.tls_key", s.TLSKey, "give tls_cert and tls_key, or neither"))
	}
	if s.TLSClientCA != "" && s.TLSCert == "" {
		errs = append(errs, wrong("streaming.tls_client_ca", s.TLSClientCA, "takes tls_cert and tls_key"))
	}
	for _, f := range []struct{ key, path string }{{"tls_cert", s.TLSCert}, {"tls_key", s.TLSKey}, {"tls_client_ca", s.TLSClientCA}} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			errs = append(errs, wrong("streaming."+f.key, f.path, "give an absolute path"))
		}
	}
	return errs
}

func (i Images) check() (errs []error) {
	if i.MaxDownloads < 1 || i.MaxDownloads > 64 {
		errs = append(errs, wrong("images.max_downloads", i.MaxDownloads, "give 1 to 64"))
	}
	if t := time.Duration(i.PullProgressTimeout); t < time.Second || t > time.Hour {
		errs = append(errs, wrong("images.pull_progress_timeout", t.String(), "give \"1s\" to \"1h\""))
	}
	if i.LayerRanges < 1 || i.LayerRanges > 16 {
		errs = append(errs, wrong("images.layer_ranges", i.LayerRanges, "give 1 to 16"))
	}
	if slices.Contains(i.Pinned, "") {
		errs = append(errs, wrong("images.pinned", i.Pinned, "has an empty entry; remove it"))
	}
	if i.ShortNames == "" {
		errs = append(errs, wrong("images.short_names", i.ShortNames, "give a registry's host, or \"none\""))
	}
	return slices.Concat(errs, i.Verify.check(), i.Limits.check())
}

func (v Verify) check() (errs []error) {
	if v.MaxPrograms < 0 {
		errs = append(errs, wrong("images.verify.max_programs", v.MaxPrograms, "give 0 or more"))
	}
	if t := time.Duration(v.Timeout); t < time.Second || t > time.Hour {
		errs = append(errs, wrong("images.verify.timeout", t.String(), "give \"1s\" to \"1h\""))
	}
	return errs
}

func (l ImageLimits) check() (errs []error) {
	for _, v := range []struct {
		key           string
		value, lo, hi int64
	}{
		{"manifest_size", int64(l.ManifestSize), 64 << 10, 64 << 20},
		{"index_depth", int64(l.IndexDepth), 1, 16},
		{"layers", int64(l.Layers), 1, 500},
		{"layer_entries", l.LayerEntries, 1000, 1 << 40},
		{"layer_size", int64(l.LayerSize), 1 << 20, 1 << 50},
		{"layer_ratio", l.LayerRatio, 10, 1 << 30},
	} {
		if v.value < v.lo || v.value > v.hi {
			errs = append(errs, wrong("images.limits."+v.key, v.value, "give %d to %d", v.lo, v.hi))
		}
	}
	return errs
}

// minLogSize is of some lines of the greatest length.
const minLogSize = 64 << 10

func (c Config) checkValues() (errs []error) {
	if c.CgroupDriver != CgroupFS && c.CgroupDriver != Systemd {
		errs = append(errs, wrong("cgroup_driver", c.CgroupDriver, "give %q or %q, the same as the kubelet's cgroupDriver", CgroupFS, Systemd))
	}
	if c.LogLevel < 0 || c.LogLevel > 10 {
		errs = append(errs, wrong("log_level", c.LogLevel, "give 0 to 10"))
	}
	if c.Logs.MaxSize != 0 && c.Logs.MaxSize < minLogSize {
		errs = append(errs, wrong("logs.max_size", int64(c.Logs.MaxSize), "give at least %d bytes, or \"0\" for no limit", minLogSize))
	}
	if c.ShmSize < 4096 {
		errs = append(errs, wrong("shm_size", int64(c.ShmSize), "give at least 4096 bytes"))
	}
	return errs
}
