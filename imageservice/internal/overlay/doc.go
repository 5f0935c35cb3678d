// Package overlay mounts layers on one another with overlayfs.
//
// Where the kernel has it (6.7) the mount API of fsopen is used: one call per
// layer, no bound on the length of the options, and a read-only view needs no
// mount point at all. Else the layers are opened and named /proc/self/fd/N in
// the options of mount(2), so that 200 of them fit into the one page that the
// options may have, whatever the paths are.
//
// For a pod with a user namespace the lower layers are idmapped (5.19): each is
// cloned, mounted nowhere, and shows other owners, at no cost per file. Where
// that cannot be done the caller gives the files other owners (tree.Shift).
package overlay
