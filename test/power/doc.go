// Package power cuts the power of an image store, again and again, and looks at what is left.
//
// The store is on a file system of its own in a file (a loop device). A worker process pulls and removes images as
// fast as it can and says what it was answered. At a random moment the file system is shut down as xfstests' godown
// does it: what is not on the disk by then, data and unwritten journal alike, never gets there. Then the worker is
// killed, the file system unmounted and mounted again, which replays its journal, and the store opened. It must hold:
//
//   - every image that is listed is whole, file for file, in its layers and as a container would see it;
//   - an image whose pull was answered is there, one whose removal was answered is not;
//   - nothing stays in tmp, in trash or of layers that no image has, and the metadata was not damaged;
//   - all images can be pulled, and are whole afterwards.
//
// GANTRY_POWER_ROUNDS and GANTRY_POWER_SEED set how many cuts each file system gets and where they fall. The package
// holds tests only.
package power
