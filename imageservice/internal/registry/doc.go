// Package registry fetches manifests and blobs from OCI registries.
//
// Which hosts serve a name, with which certificates, and how they want to be
// authorized is containerd's remotes/docker: hosts.toml directories, basic and
// token authentication. The requests are made here, so that each is bounded:
//
//   - a document has a largest size, a token answer too; a blob has its size;
//   - waiting for one byte longer than the progress timeout fails;
//   - a broken transfer goes on with a Range request, three times without
//     progress per host, then at the next host; 429 and 5xx are tried again;
//   - a redirect never goes from https to http and takes no credentials and no
//     configured header to another origin.
//
// Credentials of a request go to the one host that they name, or to the
// registry of the image's name when they name none; never to its mirrors. They
// appear in no error and no log: URLs are reported without their query.
//
// Errors have errdefs kinds: ErrNotFound, ErrPermissionDenied,
// ErrResourceExhausted (429), ErrDataLoss (not what was asked for),
// ErrUnavailable (unreachable, time-out, 5xx, broken off).
package registry
