package ocispec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SeccompPath is the host path of the seccomp profile that the container asks
// for, "" when it asks for none or for a built-in one. The caller reads it and
// hands the content to [Build]; a file that is not there must fail the request.
func SeccompPath(n Node, sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	p, err := seccompAsked(n, sc)
	if err != nil || p.ProfileType != runtimeapi.SecurityProfile_Localhost {
		return "", err
	}
	return p.LocalhostRef, nil
}

// seccompAsked joins the field and its deprecated form. No profile at all is
// unconfined, as is a privileged container.
func seccompAsked(n Node, sc *runtimeapi.LinuxContainerSecurityContext) (*runtimeapi.SecurityProfile, error) {
	unconfined := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	if sc.GetPrivileged() {
		return unconfined, nil
	}
	old, err := oldSeccomp(sc)
	if err != nil {
		return nil, err
	}
	if old != nil && old.LocalhostRef != "" && !path.IsAbs(old.LocalhostRef) && n.SeccompRoot != "" {
		if _, err := cleanPath("/" + old.LocalhostRef); err != nil {
			return nil, fmt.Errorf("seccomp_profile_path: %w", err)
		}
		old.LocalhostRef = path.Join(n.SeccompRoot, old.LocalhostRef)
	}
	p, err := oneProfile("seccomp", sc.GetSeccomp(), old)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return unconfined, nil
	}
	if p.ProfileType == runtimeapi.SecurityProfile_Localhost {
		clean, err := cleanPath(p.LocalhostRef)
		if err != nil {
			return nil, fmt.Errorf("seccomp.localhost_ref: %w", err)
		}
		return &runtimeapi.SecurityProfile{ProfileType: p.ProfileType, LocalhostRef: clean}, nil
	}
	return p, nil
}

// profileOfString reads the deprecated form of a profile: runtime/default,
// unconfined or localhost/REF. "" is nil.
func profileOfString(field, s string) (*runtimeapi.SecurityProfile, error) {
	ref, local := strings.CutPrefix(s, "localhost/")
	switch {
	case s == "":
		return nil, nil
	case s == "runtime/default", s == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case s == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case local && ref != "":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}, nil
	}
	return nil, fmt.Errorf("%s %q is none of runtime/default, unconfined and localhost/NAME: %w", field, s, errdefs.ErrInvalidArgument)
}

// oneProfile chooses between a profile field and its deprecated form, which
// may both be given if they say the same, and checks its type.
func oneProfile(field string, p, old *runtimeapi.SecurityProfile) (*runtimeapi.SecurityProfile, error) {
	if p == nil {
		p = old
	}
	if p == nil {
		return nil, nil
	}
	if old != nil && (p.ProfileType != old.ProfileType || p.LocalhostRef != old.LocalhostRef) {
		return nil, fmt.Errorf("%s: profile %s %q and its deprecated form %s %q contradict each other: %w",
			field, p.ProfileType, p.LocalhostRef, old.ProfileType, old.LocalhostRef, errdefs.ErrInvalidArgument)
	}
	switch p.ProfileType {
	case runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined:
	case runtimeapi.SecurityProfile_Localhost:
		// Without a name the container would run unconfined (CVE-2023-2431).
		if p.LocalhostRef == "" {
			return nil, fmt.Errorf("%s: profile type Localhost needs a localhost_ref: %w", field, errdefs.ErrInvalidArgument)
		}
	default:
		return nil, fmt.Errorf("%s: profile type %d is unknown: %w", field, p.ProfileType, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// seccompProfile is the filter of the container; nil is none. The default
// profile depends on the capabilities, so spec must have them already.
func seccompProfile(n Node, c Container, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	p, err := seccompAsked(n, c.Config.GetLinux().GetSecurityContext())
	if err != nil {
		return nil, err
	}
	switch p.ProfileType {
	case runtimeapi.SecurityProfile_Unconfined:
		return nil, nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return defaultSeccomp(n, spec)
	}
	profile, err := seccomp.LoadProfile(string(c.SeccompProfile), spec)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %q is not valid (%v): %w", p.LocalhostRef, err, errdefs.ErrInvalidArgument)
	}
	// A file such as {} would mean no filter at all.
	if profile == nil || profile.DefaultAction == "" {
		return nil, fmt.Errorf("seccomp profile %q has no defaultAction: %w", p.LocalhostRef, errdefs.ErrInvalidArgument)
	}
	actions := []specs.LinuxSeccompAction{profile.DefaultAction}
	for _, s := range profile.Syscalls {
		actions = append(actions, s.Action)
	}
	for _, a := range actions {
		if !slices.Contains(seccompActions, a) {
			return nil, fmt.Errorf("seccomp profile %q: %.64q is no action: %w", p.LocalhostRef, a, errdefs.ErrInvalidArgument)
		}
	}
	return profile, nil
}

// seccompActions are those of seccomp(2), but for NOTIFY: nobody would answer,
// and the container hang in its first system call.
var seccompActions = []specs.LinuxSeccompAction{
	specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap,
	specs.ActErrno, specs.ActTrace, specs.ActAllow, specs.ActLog,
}

func defaultSeccomp(n Node, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	profile, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		return nil, fmt.Errorf("making the default seccomp profile: %w", err)
	}
	if n.NoX32 {
		profile.Architectures = slices.DeleteFunc(profile.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	}
	return profile, nil
}
