// Package hostwork is what is done with paths of the host by a process of its
// own (package hostpath), since they may lie on a file system that hangs and
// more is wanted of them than a descriptor: [Paths] is the daemon's side,
// [Works] the process'. Of each work with the same arguments there is one at
// a time. A process costs some milliseconds.
package hostwork
