package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ImageStore lists the layers of the instance's image store, what containers have of it, what is being written (/tmp/)
// and what is being deleted (/trash/).
func (i *Instance) ImageStore() (list []string, err error) {
	root := filepath.Join(i.Dir, "root/images")
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile
		}
		relative := strings.TrimPrefix(path, root)
		if err != nil || !e.IsDir() || strings.Count(relative, "/") < 2 {
			return err
		}
		list = append(list, relative)
		return fs.SkipDir
	})
	return list, err
}

// imageStoreIs waits until the image store has what it had.
func (i *Instance) imageStoreIs(before []string) error {
	for deadline := time.Now().Add(settleTime); ; time.Sleep(20 * time.Millisecond) {
		now, err := i.ImageStore()
		if err != nil || slices.Equal(now, before) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the image store has\n  %s\nand had\n  %s", strings.Join(now, "\n  "), strings.Join(before, "\n  "))
		}
	}
}
