// Package archive reads and writes images as one stream, for nodes without a
// registry: what `docker save`, podman, skopeo, buildx, containerd and ko write.
//
// # Reading
//
// Read takes a tar, plain or in gzip or zstd, that cannot be sought in: an OCI
// image layout (oci-layout, index.json, blobs/sha256/*), or a docker-archive
// (manifest.json, which names a config and layers). Of an archive that is both,
// as Docker's and containerd's are, the layout counts. A docker-archive has no
// manifests; they are made here, so that afterwards both are the same.
//
// An archive is as little believed as a registry:
//
//   - All files go one after another into one file that has no name, so that
//     nothing from the archive is ever a path on disk, and nothing is left when
//     the daemon dies. Their digests are computed on the way; a blob that does
//     not have the digest that it is named after is refused.
//   - Only regular files and directories are taken, and symbolic links named
//     layer.tar to another .tar, as older Docker, podman and skopeo write them,
//     which are resolved in memory, one step. A name stands once, has no `..`
//     and 512 bytes at most.
//   - Bounded are the entries (65,536), the size of the uncompressed archive
//     (by the caller), of each JSON document before it is read, the depth of
//     indexes, and by package manifest the rest; it also reads the JSON.
//   - Whatever an image needs must be there with the right size before the
//     first one is handed out.
//
// Names of images are those that the archive says are names: RepoTags, and the
// annotations io.containerd.image.name and org.opencontainers.image.ref.name,
// where the latter is more than a tag. The caller reads and completes them.
//
// # Writing
//
// Writer makes an OCI image layout that is a docker-archive too. Layer makes
// the tar of an unpacked layer: names in order, nothing of the machine in it,
// so that equal directories give equal bytes.
package archive
