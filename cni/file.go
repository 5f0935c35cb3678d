package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/journal"
)

// maxFile bounds what is read of a record or a configuration file.
const maxFile = 1 << 20

// writeFile replaces a file atomically, to survive a power cut too.
func writeFile(path string, data []byte) (err error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// readFile reads a regular file of at most maxFile bytes.
func readFile(path string) ([]byte, error) {
	data, _, err := read(path)
	return data, err
}

// readTrusted reads a file that only root can have written: who can write it runs programs as root.
func readTrusted(path string) ([]byte, error) {
	data, st, err := read(path)
	if err != nil {
		return nil, err
	}
	if st.Mode&0o002 != 0 || (st.Uid != 0 && int(st.Uid) != os.Geteuid()) {
		return nil, fmt.Errorf("file can be written by others (owner %d, mode %04o), chown it to root and chmod it to 0644", st.Uid, st.Mode&0o7777)
	}
	return data, nil
}

// read does not wait for the writer of a named pipe.
func read(path string) ([]byte, *syscall.Stat_t, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > maxFile {
		return nil, nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return data, info.Sys().(*syscall.Stat_t), nil
}

// setAside renames a file that cannot be used, so that it neither stops the daemon nor gets lost.
func setAside(ctx context.Context, path string, reason error) error {
	klog.FromContext(ctx).Error(reason, "Set aside a damaged record", "path", path)
	if err := journal.SetAside(path); err != nil {
		return fmt.Errorf("setting aside a damaged record: %w", err)
	}
	return nil
}
