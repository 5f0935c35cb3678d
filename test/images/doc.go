// Package images makes the container images that the tests, the demo and the benchmarks use, and serves them
// from memory over HTTP on a loopback port.
//
// Nothing is downloaded: the images are put together from the machine's static busybox (Debian's package
// busybox-static) and from guest, a small Go program that is compiled when the registry starts. They carry the
// names of the images that critest pulls, so a runtime whose hosts.toml directory points registry.k8s.io, gcr.io
// and k8s.gcr.io at the registry (see Registry.WriteMirrors) runs the suite unchanged and without the internet.
//
// The registry itself is github.com/google/go-containerregistry/pkg/registry: real protocol, no fake.
package images
