package meta

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantry-cri/gantry/test/disk"
)

// On a disk that is full, at whatever size the file has, every image can be removed.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system")
	}
	dir := t.TempDir()
	disk.New(t, "ext4", 32<<20).Mount(t, dir, "")
	s, _, _, err := Open(filepath.Join(dir, "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for n := range 12 {
		var images []Image
		for i := range 10 {
			config := []byte(fmt.Sprintf("%d-%d%01000d", n, i, 0))
			img := Image{ID: digest.FromBytes(config).String(), Manifest: digest.FromString(string(config) + "m")}
			images = append(images, img)
			content := map[digest.Digest][]byte{digest.FromBytes(config): config, img.Manifest: config}
			if err := s.Update(Change{PutImage: &img, Content: content, PutNames: map[string]string{img.ID + "-name": img.ID}}); err != nil {
				t.Fatal(err)
			}
		}
		disk.FillBytes(t, dir)
		for _, img := range images[:5] {
			if err := s.Update(Change{DropImage: &img, DropNames: []string{img.ID + "-name"}}); err != nil {
				t.Errorf("round %d: removing on a full disk: %v", n, err)
			}
		}
		disk.Free(t, dir)
	}
}
