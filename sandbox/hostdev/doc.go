// Package hostdev finds device nodes of the host and describes them for an OCI
// spec. It opens no device: a node is known by stat(2) alone. Nothing is kept,
// and what is found holds at that moment; a device that goes away meanwhile is
// left out. Directories are walked without following links, never across more
// than a bounded number of entries, and never in the root, procfs or sysfs.
package hostdev
