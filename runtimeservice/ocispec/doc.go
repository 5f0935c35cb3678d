// Package ocispec turns a CRI request into the OCI runtime spec of one
// container: the request, the image's config, facts about the node and what
// others have prepared (root file system, pinned namespaces, cgroup path) go
// in; a [specs.Spec], or an error that names the field at fault, comes out.
//
// The package is pure: no file is read, no clock is asked and nothing is
// logged. Equal input gives an equal spec, which golden files in testdata
// pin. What has to be read from the node (the image's /etc/passwd, a seccomp
// profile, mountinfo, device nodes) is read by the caller and handed in as
// bytes or values; functions such as [SeccompPath] and [ImageVolumes] say
// what to read. (The one exception hides in the seccomp default profile, whose
// library asks uname(2) for the kernel release once per process.)
//
// # What is refused
//
// A field that Gantry does not honour yet is an error that names it
// (errdefs.ErrNotImplemented), as is a value that makes no sense
// (errdefs.ErrInvalidArgument) or that this node cannot give
// (errdefs.ErrFailedPrecondition). Nothing is dropped in silence; what is
// ignored because it can have no effect (SELinux options without SELinux) is a
// warning in the result of [Build] that the caller logs. One thing is weakened
// without: an OOM score that the node forbids ([Node].MinOOMScoreAdj).
//
// # What never reaches the spec
//
// Labels; annotations of the image, and those of pod and container that the
// handler's list does not name ([AnnotationFilter]); hooks but those of CDI
// devices; sysctls (they belong to the pod's namespaces and are written there,
// see [Sysctls]); host paths or programs named by the image. The invariants
// that every spec meets, whatever was asked, are checked by one function at the
// end of Build, in invariants.go.
package ocispec
