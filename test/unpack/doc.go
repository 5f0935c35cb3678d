// Package unpack compares the file systems that Gantry makes of images with those that two other tools make of the
// same layers, file for file (see filetree): umoci, and GNU tar with a small applier of whiteouts beside it, which
// shares no code with the other two.
//
// Not compared is what no two tools agree on: the time of the root and of directories that no layer lists. A hard
// link to a lower file that has several names there is in no test: overlay file systems, on which containerd and
// Gantry build, copy such a file and so part it from its other names; umoci and tar, which have but one file system,
// do not. What Gantry refuses, or drops on purpose (xattrs of the machine where the image was made), is tested in
// imageservice/internal/layer.
//
// GANTRY_TEST_DEBOOTSTRAP names a root file system to compare besides: the tests have no network to make one, so
//
//	debootstrap --variant=minbase bookworm /tmp/debian
//	GANTRY_TEST_DEBOOTSTRAP=/tmp/debian go test ./test/unpack -run Debian
//
// The package holds tests only.
package unpack
