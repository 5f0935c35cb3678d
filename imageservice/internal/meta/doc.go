// Package meta keeps what the image service must not forget in one bbolt file.
//
// Buckets: "images" (id → JSON of Image), "names" (full tag or digest name →
// id), "layers" (directory name → JSON of Layer), "content" (digest → bytes of
// a manifest or config). All but manifests is read once, at Open; after that
// the file is written, one transaction for each change, which is durable when
// Update returns. Manifests are read when an image is saved.
//
// A file that bbolt cannot read is set aside as meta.db.damaged-<time> and a
// new one begun. A single record that cannot be read is left out and reported.
package meta
