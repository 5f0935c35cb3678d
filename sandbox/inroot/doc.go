// Package inroot reads and makes files beneath the root file system of a
// container, whose every name and link an image has chosen. Paths are resolved
// by the kernel with the root as theirs (openat2(2), RESOLVE_IN_ROOT), so a
// symbolic link, absolute or with "..", leads where it would lead inside the
// container and never out of it, also when it is swapped meanwhile. Links of
// procfs that jump elsewhere are not followed at all.
//
// What cannot be resolved because of the image (a loop of links, a file where
// a directory should be) is errdefs.ErrInvalidArgument beside its errno.
//
// Needs Linux 5.6. The package keeps nothing and may be used concurrently.
package inroot
