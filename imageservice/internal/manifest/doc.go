// Package manifest reads the JSON documents of an image: index, manifest,
// config. It is pure.
//
// A document comes from a registry and is believed only as far as it is plain:
// one JSON value, no key twice (in any spelling that Go takes for the same),
// no nesting beyond 64, either an index or a manifest but not both, digests of
// sha256 only, sizes that can be, embedded data that is what its digest says,
// no URLs to fetch from. What Gantry does not run is refused with a message
// that says what it is: schema 1, foreign layers, encrypted layers.
//
// A manifest whose config is no image's config is an artifact: files that may
// be mounted, but not run.
package manifest
