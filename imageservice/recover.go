package imageservice

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/platforms"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
	"github.com/gantry-cri/gantry/imageservice/internal/meta"
)

// recover brings disk and memory together at Open. It relies on this:
//
//   - A layer's directory is whole if its record exists: the record is written
//     after the data. One without a record is of an unfinished pull or removal.
//   - An image is there if its record, its config and all its layers are.
//     But one that a container is made of stays as long as that container does:
//     the records may be lost, and it runs.
//   - What is in tmp and trash belongs to nobody.
//   - A container's layers are in the file `layers`, written before all else,
//     and so are those of each of its volumes. Its mounts are there unless the
//     machine was restarted.
func (s *Service) recover() error {
	store, state, damaged, err := meta.Open(s.path("meta.db"))
	if err != nil {
		return fmt.Errorf("image metadata: %w", err)
	}
	s.meta = store
	if damaged != nil {
		s.log.Error(damaged, "Image metadata was damaged and set aside; images must be pulled again")
	}
	for _, err := range state.Bad {
		s.log.Error(err, "Damaged image record dropped")
	}
	repair := state.Drop
	for key, l := range state.Layers {
		if isMissing(s.path(layersDir, key, "fs")) {
			s.log.Error(nil, "Layer without its directory dropped", "layer", key)
			repair.DropLayers = append(repair.DropLayers, key)
			continue
		}
		stored := s.addLayer(l)
		stored.refs, stored.recorded = 0, true
	}
	if err := s.meta.Update(repair); err != nil {
		s.log.Error(err, "Damaged image records are still there")
	}
	s.recoverImages(state)
	if err := s.recoverContainers(); err != nil {
		return err
	}
	return s.sweep()
}

func (s *Service) recoverImages(state meta.State) {
	for id, record := range state.Images {
		img, err := s.load(record, state.Configs[id])
		if err == nil {
			s.images[id] = img
			for _, l := range img.layers {
				l.refs++
			}
			continue
		}
		s.log.Error(err, "Incomplete image dropped; pull it again", "imageID", id)
		change := meta.Change{DropImage: &record}
		for name, of := range state.Names {
			if of == id {
				change.DropNames = append(change.DropNames, name)
				delete(state.Names, name)
			}
		}
		if err := s.meta.Update(change); err != nil {
			s.log.Error(err, "Record of an incomplete image is still there", "imageID", id)
		}
	}
	s.names = state.Names
	for _, img := range s.images {
		s.put(img)
	}
}

func (s *Service) load(record meta.Image, raw []byte) (*image, error) {
	config := &manifest.Config{}
	if !record.Artifact {
		var err error
		if config, err = manifest.ParseConfig(raw, len(record.Layers), platforms.All); err != nil {
			return nil, err
		}
	}
	var layers []*storedLayer
	for _, key := range record.Layers {
		l := s.layers[key]
		if l == nil {
			return nil, fmt.Errorf("layer %s is missing", key)
		}
		layers = append(layers, l)
	}
	img, err := s.newImage(record.ID, raw, config, layers)
	if err != nil {
		return nil, err
	}
	img.record, img.artifact = record, record.Artifact
	return img, nil
}

func (s *Service) recoverContainers() error {
	mounts, err := mountpoints(s.cfg.RunDir)
	if err != nil {
		return err
	}
	s.old = oldMounts(mounts)
	for _, dir := range []string{s.path(containersDir), s.cfg.RunDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			id := e.Name()
			if !validID.MatchString(id) || s.containers[id] != nil || (dir == s.cfg.RunDir && !e.IsDir()) {
				continue
			}
			s.containers[id] = s.recoverContainer(id, mounts)
		}
	}
	wake(s.measure)
	return nil
}

func (s *Service) recoverContainer(id string, mounts map[string]bool) *container {
	c := &container{mounted: mounts[id+"/"+rootName] || len(s.old[id]) > 0, volumes: make(map[string]bool), measure: true}
	dir := s.path(containersDir, id)
	c.layers = s.readLayers(id, dir)
	volumes, err := os.ReadDir(filepath.Join(dir, volumesDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Error(err, "Volumes of a container not read, all layers are kept for them", "container", id)
		c.layers = append(c.layers, s.take(s.allKeys())...)
	}
	for _, v := range volumes {
		c.volumes[v.Name()] = mounts[id+"/"+v.Name()]
		c.layers = append(c.layers, s.readLayers(id, filepath.Join(dir, volumesDir, v.Name()))...)
	}
	return c
}

// readLayers takes a reference to each layer that writeLayers has named, or to all of them where that cannot be read.
func (s *Service) readLayers(id, dir string) []*storedLayer {
	list, err := os.ReadFile(filepath.Join(dir, "layers"))
	keys := strings.Split(string(list), "\n")[1:]
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Error(err, "Layers of a container not read, all layers are kept for it", "container", id)
		keys = s.allKeys()
	}
	return s.take(keys)
}

// take takes a reference to each layer of these keys that is known, and keeps the directories of the others.
func (s *Service) take(keys []string) (layers []*storedLayer) {
	for _, key := range keys {
		s.named[key] = true
		if l := s.layers[key]; l != nil {
			l.refs++
			layers = append(layers, l)
		}
	}
	return layers
}

// allKeys are those of all layers' directories. That they cannot be listed is sweep's error.
func (s *Service) allKeys() (keys []string) {
	entries, _ := os.ReadDir(s.path(layersDir))
	for _, e := range entries {
		key, _, _ := strings.Cut(e.Name(), asideMark)
		keys = append(keys, key)
	}
	return keys
}

// oldMounts are the mounts of containers that Gantry made before a container's
// mounts had a directory of their own, by container: <id>, the root, and
// <id>+<image>, its volumes. Such containers may still run.
func oldMounts(mounts map[string]bool) map[string][]string {
	old := make(map[string][]string)
	for name := range mounts {
		if id, _, _ := strings.Cut(name, "+"); validID.MatchString(id) {
			old[id] = append(old[id], name)
		}
	}
	return old
}

// mountpoints are the paths below dir at which something is mounted.
func mountpoints(dir string) (map[string]bool, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mounts := make(map[string]bool)
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if name, ok := strings.CutPrefix(unescape(fields[4]), real+"/"); ok {
			mounts[name] = true
		}
	}
	return mounts, lines.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// sweep moves what no record knows to the trash. What does not go there, on a
// read-only disk say, is in nobody's way until the next Open.
func (s *Service) sweep() error {
	tmp, err := os.ReadDir(s.path(tmpDir))
	if err != nil {
		return err
	}
	for _, e := range tmp {
		s.discardLogged(s.path(tmpDir, e.Name()))
	}
	layers, err := os.ReadDir(s.path(layersDir))
	if err != nil {
		return err
	}
	for _, e := range layers {
		key, _, _ := strings.Cut(e.Name(), asideMark)
		if s.layers[e.Name()] == nil && !s.named[key] {
			s.discardLogged(s.path(layersDir, e.Name()))
		}
	}
	for _, l := range s.layers {
		if l.refs == 0 {
			s.idle = append(s.idle, l)
		}
	}
	return nil
}
