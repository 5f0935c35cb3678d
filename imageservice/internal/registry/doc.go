// Package registry fetches manifests and blobs from OCI registries.
//
// Which hosts serve a name is said by hosts.toml files in containerd's form
// (hostsfile.go), read anew for each pull. Every request is made here, and
// bounded:
//
//   - a document, a token answer and an error have a largest size; a blob has
//     its own and not one byte more;
//   - waiting for one byte for as long as the progress timeout ends a
//     transfer, and so does less than 1 KiB/s over that time. Only time spent
//     waiting for the network counts, not that of a slow reader;
//   - 429, 408 and 5xx are tried again after a growing wait or Retry-After;
//     all waits of a request are together no longer than the progress timeout;
//   - a transfer that breaks off goes on with a Range request where it
//     stopped, at the same host or the next. Whether the parts belong together
//     is told by the digest and by nothing else: an ETag differs between equal
//     copies behind one name;
//   - at most 5 redirects, never from https to http, and never with
//     credentials or configured headers to another origin.
//
// Only HTTP/1.1 is spoken: its connections share nothing, so that one slow
// transfer slows no other.
//
// # Hosts
//
// Hosts are asked in the order of hosts.toml, the registry itself last. Any
// failure of one leads to the next; the last is tried longer. A host that has
// failed otherwise than by not having something is asked last for the rest of
// the pull, and so is one whose blob turned out to be something else (Doubt).
//
// # Credentials
//
// Those that a pull brings go to the registry of the image's name, or to none
// when their server_address is another; never to a mirror. Those of the Docker
// config file go to the host that they are listed for, mirrors too. The
// registry chooses its token server, as it could ask for the password itself;
// but that server has https unless the registry itself is without, and is not
// on this node or link-local unless the registry is. A token is asked for
// pulling this repository only, whatever the registry suggests, and is used
// for the host that asked for it.
//
// Errors and logs have no credentials and no query of a URL, which may be a
// signature.
//
// # Errors
//
// They have errdefs kinds: ErrNotFound, ErrUnauthenticated,
// ErrPermissionDenied, ErrResourceExhausted (429), ErrDataLoss (not what was
// asked for), ErrFailedPrecondition (configuration), ErrUnavailable
// (unreachable, time-out, 5xx, broken off).
//
// # Rationale
//
// containerd's remotes/docker was used at first. Its hosts.toml falls back to
// no configuration when a file is broken, its authorizer follows any realm and
// any scope, and its requests retry without bound; guarding all that from
// outside took more code than this.
package registry
