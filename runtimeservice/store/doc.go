// Package store keeps the durable records of pods and containers: one small
// JSON file each, replaced by rename, under the state directory:
//
//	<root>/pods/<id>.json
//	<root>/containers/<id>.json
//	<root>/{pods,containers}/<id>.tmp             the version before, exchanged for the next
//	<root>/{pods,containers}/spare-<n>            empty files for new records, some of them deleted ones'; not kept at start
//	<root>/quarantine/<kind>-<id>.json-<time>   records that could not be read
//
// FORMAT.md describes the files. A record is written before the first change
// that it announces and again when the change is complete.
//
// A record has its room from the first version on, on a full disk too: that of
// the file and of its shadow, each filled up with spaces to whole blocks, at least
// 1 KiB, and never made smaller. Writing over them takes no block and no inode on
// ext4, XFS and tmpfs. So a pod can be stopped and removed, which is how a node gets
// space back. btrfs writes elsewhere, and has to be given room first.
//
// A record that is damaged is set aside. One that cannot be read, because the disk
// answers nothing or descriptors are out, is an error of Load: the daemon must
// not start and take what runs for nobody's.
//
// Records are not flushed to the disk (fsync). They must survive the daemon,
// which the page cache does; after a power cut no container lives, and a
// record that is lost or damaged then costs only the memory of an exited
// container: whatever it owned is found by start-up as belonging to nobody and
// removed. It may be empty, or another record that had the file before, which
// is why a record has its id in it (seen on ext4 and XFS by test/reset). An
// fsync would cost every pod more than all its namespaces.
package store
