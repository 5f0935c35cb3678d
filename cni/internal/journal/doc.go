// Package journal is a small map on disk that survives the daemon's death at any instruction.
//
// It is one file of JSON lines, {"k":key,"v":value} to put and {"k":key} to delete, the last line of a key counts;
// "d":true marks a record that was flushed, to survive a power cut too. A change is one write behind the end, so it
// costs microseconds. Files made and deleted per pod were tried first: ext4 does not give the inode of a deleted file
// out again for half a minute and searches past all of them, so that with many pods coming and going every new file
// cost as much as a network link.
//
// After a power cut the file is as it was at some moment since the last flushed record was put, and may end in the
// middle of a line or in zeros. So flushed records are there, but one that was deleted may be there again.
//
// On a full disk records can be deleted: Put has the room of the line that will delete its record set aside too, as blocks
// behind the end of the file. Where the file system cannot do that (btrfs writes elsewhere) Delete may need space.
//
// A line without its end was being written when the daemon was killed, and nobody acted on it: it is dropped. Other
// lines that cannot be read are dropped with a logged error and the file as it was is kept beside as <path>.damaged.
// The file is written anew, by rename, at Open, when most of it is garbage, and after a failed write. When that fails at
// Open, because the disk is full or read-only, the old file goes on serving; of one that cannot be written all changes fail
// until it can.
package journal
