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
// directory, never following a link; only a directory whose descriptor was
// given up is opened anew by a path, which the kernel walks beneath another
// one's and without links. So nothing outside the root can be reached. Policy
// for entries:
//
//   - a leading slash is dropped; a `..` component in a name or in a hard
//     link's target is refused; the text of a symbolic link is kept as it is,
//     and as a parent it leads where it would lead inside the container;
//   - names are bytes: what is not UTF-8 or not printable stays as it is, and
//     is quoted in errors; a name that the file system cannot hold is refused;
//   - a later entry takes the place of an earlier one of the same name, but a
//     file never becomes a directory because something is put beneath it;
//   - `.wh.x` becomes a 0:0 character device, `.wh..wh..opq` and a directory
//     that takes the place of a whiteout or of another file the
//     trusted.overlay.opaque xattr, whatever the type of the entry and wherever
//     it stands: what the layer itself has stays; other AUFS `.wh..wh.*`
//     entries are skipped, and nothing else may have such a name;
//   - a 0:0 character device, a device number out of range, an id above
//     2^32-2, an unknown entry type and a trusted.* or user.overlay.* xattr are
//     refused;
//   - of xattrs user.* is kept, and security.capability of regular files;
//     others belong to the machine that made the image and are dropped, as are
//     those of symbolic links and devices, and LIBARCHIVE.xattr.* records;
//   - global PAX headers are ignored, as are names of users and groups;
//   - owners, modes with setuid, setgid and sticky bits, and times with
//     nanoseconds are set as the entry says; the umask has no influence. A time
//     before 1901 or after 2262 becomes 1970;
//   - sparse files, of all three forms, keep their holes;
//   - a file with more hard links than the file system gives becomes several;
//   - a tar without its end mark is complete, and what follows the mark is
//     read, hashed and ignored.
//
// Every refusal is errdefs.ErrInvalidArgument, a full disk ErrResourceExhausted
// and a blob other than its digest ErrDataLoss. Limits bound headers, bytes,
// memory and work (limits.go); whatever is left ends with the context.
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
