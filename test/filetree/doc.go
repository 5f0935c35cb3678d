// Package filetree reads everything that a file system knows of the files beneath a folder and tells two such trees
// apart: type, mode, owner, size, content, time of change with nanoseconds, link targets, which names are one file,
// device numbers and extended attributes.
package filetree
