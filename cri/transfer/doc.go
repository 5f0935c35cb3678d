// Package transfer is a gRPC service beside the CRI on the same socket, for
// what the CRI has no call for: images in and out as archives, and how far
// pulls are. `gantry image` is its client.
//
// # Protocol
//
// The service is gantry.v1.Transfer; its messages are protobuf's well-known
// types, so that there is nothing to generate and any gRPC client can speak it.
//
//	Load(stream BytesValue) → stream Struct
//	     The archive in pieces of 1 MiB at most. A struct {id, tags} comes for
//	     each image that is there; the status says how it ended.
//	Save(Struct {images, gzip}) → stream BytesValue
//	     The archive. The trailer `gantry-changed` has "ID NEW-ID" of each image
//	     that has another id in the archive.
//	Pulls(Empty) → ListValue
//	     A struct {image, started, layers, layersDone, bytes, bytesDone} for
//	     each pull under way; started is RFC 3339.
//
// The interceptors of package cri are around these calls too. A client that
// goes away cancels its call; the next one finds nothing of it.
package transfer
