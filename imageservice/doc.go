// Package imageservice is the ImageService of the CRI, and the root file
// systems of containers.
//
// # Road of a pull
//
// A reference is completed (docker.io, latest), asked of the registry, and led
// through indexes to the manifest for this platform (internal/registry,
// internal/manifest). The programs of Config.Verify must agree to what the
// reference leads to (internal/verify). All layers are then fetched at once,
// Config.MaxDownloads at a time over all pulls, which take turns (slots.go);
// each is one pipeline from the HTTP body to files (internal/layer) and
// becomes visible when all its digests were right. Meanwhile what was written
// goes to the disk already (durable.go). A pull ends with syncfs and one bbolt
// transaction (internal/meta), after which the image is in memory for all to
// see. An image that is unchanged at the registry costs one HEAD request, or,
// where programs are to agree to it, its manifests.
//
// A panic on what has come refuses that image only (internal/guard).
//
// An archive (Load, internal/archive) goes the same road: spooled to a file in
// tmp that has no name, it stands where the registry does.
//
// Whatever is under way is under way once (internal/flight): a reference with
// the same credentials, an image, a layer. A caller that gives up takes nothing
// from the others; the last one returns when everything is undone. A load and a
// pull that meet share what comes, but no failure.
//
// # Files
//
//	Root/preload.json            what was loaded from Config.PreloadDir (preload.go)
//	Root/meta.db                 images, names, layers, manifests, configs
//	Root/layers/<diffID>/fs      a layer in overlayfs' form
//	Root/layers/<chainID>.chain/fs  one that is right for one chain of layers only
//	Root/layers/<manifest>.artifact/fs  the files of an OCI artifact (artifact.go)
//	Root/layers/<manifest>.artifact/config  and its config, unless that is empty
//	Root/layers/<...>/blob       as it was fetched, with Config.KeepLayerBlobs
//	Root/containers/<id>/        upper, work and `layers`, which names the layers
//	Root/containers/<id>/volumes/<imageID>/  the same of an image volume (volume.go)
//	Root/tmp, Root/trash         being written, being deleted
//	Root/empty                   an empty layer
//	RunDir/<id>/rootfs           the mounted root of a container
//	RunDir/<id>/<imageID>        an image volume of it
//	RunDir/<id>/map              for a moment, while layers are idmapped (before Linux 6.15)
//
// # A layer's life
//
//	tmp ──digests right──▶ layers, in memory, held by its pull
//	    ──syncfs, record──▶ held by its image, and by each container mounted from it
//	    ──its pull failed──▶ held by nobody for 15 minutes, for a retry
//	    ──syncfs failed──▶ of no use to anybody, like all without a record (durable.go)
//	    ──last of them gone──▶ out of memory ──▶ record dropped ──▶ trash ──▶ deleted
//
// One that depends on the layers below it waits in tmp (kept.go), for them to
// be there or for a retry, and is then completed by one pull of its chain while
// others of the same chain wait. A layer is never waited for by one below it,
// so nobody waits in a circle.
//
// A crash at any point leaves a directory without a record or a record without
// a directory; Open deletes the former and drops the latter with the images
// that need it. recover.go has the assumptions.
//
// # Reading never waits
//
// Resolve, ListImages, ImageStatus, ImageFsInfo and Usage answer from memory
// under a lock that is never held over a disk access. Lock order: container.op,
// change, mu.
//
// # Rationale
//
// A layer is unpacked without those below it, so that all can be unpacked at
// once and equal layers are stored once. What a tar leaves to the layers below
// is made good afterwards (internal/layer), instead of unpacking such layers
// one after another through a mounted overlay: the whole of a large layer would
// wait for the few directories it does not list.
//
// The directories that pulls and containers make are spread over the disk on
// ext4 (internal/tree, Spread): a node deletes files by the ten thousand, and
// ext4 searches past each inode deleted nearby in the last five minutes before
// it gives out a new one.
//
// Credentials of a pull go to no mirror (internal/registry); an image that two
// callers may both see is not fetched twice, but each caller's credentials have
// fetched the manifest that leads to it.
package imageservice
