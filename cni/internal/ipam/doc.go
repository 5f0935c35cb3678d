// Package ipam hands out the addresses of one network and never hands one out twice.
//
// A lease is a record of a journal, address -> pod id. It is written before the address is returned and deleted before
// the address is free again, so a daemon that is killed at any instruction leaves at most a lease too many; Sweep
// releases those at start. Nothing is flushed to the disk: after a power cut no pod lives.
//
// All leases are read once at Open; from then on memory answers. Addresses go round the range, so that an address
// that was just freed is not given to the next pod while the old pod's interface may still answer.
package ipam
