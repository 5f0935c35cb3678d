// Package layer turns the blob of one image layer into a directory in the
// form that overlayfs wants of a lower layer.
//
// # Stream
//
// Unpack runs one pipeline of four goroutines joined by a few pooled buffers:
// read and hash the blob, decompress, hash the tar, write the files. What the
// blob is compressed with (gzip, zstd, nothing) is told by its first bytes, so
// a wrong media type does no harm. Nothing is returned before the blob's
// digest and size and the tar's digest (diffID) have all been found right; on
// any error the caller deletes the directory.
//
// # Files
//
// The directory is empty at the start and nobody else writes to it, so every
// directory and symbolic link in it is known in memory (tree.go). A path is
// resolved there, symbolic links staying beneath the root, and each step on
// disk is one openat-like call with one name below the descriptor of its
// directory, never following a link. No path is ever walked by the kernel, so
// nothing outside the root can be reached. Policy for entries:
//
//   - a leading slash is dropped; a `..` component in a name or in a hard
//     link's target is refused; the text of a symbolic link is kept as it is;
//   - `.wh.x` becomes a 0:0 character device, `.wh..wh..opq` and a directory
//     that takes the place of a whiteout or of another file the
//     trusted.overlay.opaque xattr; other AUFS `.wh..wh.*` entries are skipped;
//   - a 0:0 character device, a device number out of range, an id above
//     2^32-2, an unknown entry type and a trusted.* or user.overlay.* xattr are
//     refused;
//   - of xattrs security.capability and user.* are kept, others belong to the
//     machine that made the image and are dropped;
//   - owners, modes with setuid, setgid and sticky bits, and times with
//     nanoseconds are set as the entry says; the umask has no influence.
//
// # What depends on the layers below
//
// A hard link to a file that the layer does not have, and a directory that the
// tar implies but does not list, cannot be made from the layer alone. Unpack
// remembers them; Result.Dependent is then true and Complete makes them good
// from a read-only view of the merged layers below: the file is copied with
// all its links, the directory gets the mode, owner and xattrs it has below,
// and when it is a symbolic link below, what was put into it moves to where
// the link leads. Such a layer is right for this one chain of layers only.
//
// The root directory is implied by almost every layer, yet is no such case:
// its mode and owner are not taken from a lower layer by overlayfs but from
// the upper one, so Result says whether the layer lists it.
package layer
