// Package reset presses the reset button of a machine whose Gantry serves a storm of requests, again and again, and looks
// at what its next start makes of the disk.
//
// The machine is qemu's, without KVM: Debian's kernel on an ext4 or XFS with its journal, Gantry's root on that and its run
// directory on a tmpfs. The registry and the client, who is a kubelet to it, are outside, in the test's own process, so
// what was asked for and what was answered is known whatever the disk says. QMP's system_reset falls anywhere: into pulls
// and removals of images, pods and containers being made, started, ending, removed; some also into the start that repairs
// what the reset before has left.
//
// What a reset takes is all that the guest's kernel had not written out: pages and the file system's journal alike. What
// has reached the virtual disk stays, in the cache of a machine that goes on, so a disk that loses its own cache is not
// what is tested here: against that both file systems flush, and Gantry has no part in it.
//
// # What is required of the next start
//
//   - It serves. Every pod is one that was asked for, once, and not ready; every container has exited, with its own code
//     if it can have ended by itself, else with 255, or another if it never ran, and a reason.
//   - What the guest's kernel was made to write out (sync) after it was answered is as it was answered: pods, containers
//     and exit codes are there, removed ones are not. What came later may be lost, or be there again.
//   - An image whose pull was answered is there, one whose removal was answered is not; every layer of each image there is
//     is byte for byte what it should be, and there is no other layer.
//   - Pods and containers can be removed. Then the machine is as it was before the first: mounts, links, nftables, cgroups,
//     files of both directories. What could not be read is in quarantine/; the test says how much that was.
//   - The same pods, with the same host ports, can be started again, from images that were there.
//
// GANTRY_RESET_SEED sets what is done and when the resets fall, as far as time can be set; GANTRY_RESET_ROUNDS how many
// there are for each file system. The package holds tests only, and agent, the guest's way in.
package reset
