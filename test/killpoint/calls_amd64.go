package killpoint

import "golang.org/x/sys/unix"

// The calls that only older architectures have.
func init() {
	for nr, name := range map[uint64]string{
		unix.SYS_RENAME: "rename", unix.SYS_UNLINK: "unlink", unix.SYS_MKDIR: "mkdir", unix.SYS_RMDIR: "rmdir", unix.SYS_LINK: "link",
		unix.SYS_SYMLINK: "symlink", unix.SYS_MKNOD: "mknod", unix.SYS_CHMOD: "chmod", unix.SYS_CHOWN: "chown", unix.SYS_LCHOWN: "lchown",
	} {
		add(nr, name, path(0))
	}
	add(unix.SYS_FORK, "fork", always)
	add(unix.SYS_VFORK, "vfork", always)
}
