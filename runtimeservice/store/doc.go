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
// Records are not flushed to the disk (fsync). They must survive the daemon,
// which the page cache does; after a power cut no container lives, and a
// record that is lost or damaged then costs only the memory of an exited
// container: whatever it owned is found by start-up as belonging to nobody and
// removed. An fsync would cost every pod more than all its namespaces.
package store
