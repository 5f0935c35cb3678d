// Package peer is a server over TCP and UDP that tells whoever asks from which address he does, and the one who asks.
// The tests of the network have it in pods, by the guest program, and outside of them.
package peer
