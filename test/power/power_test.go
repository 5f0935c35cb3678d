package power

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2/ktesting"

	"github.com/gantry-cri/gantry/imageservice"
	"github.com/gantry-cri/gantry/test/disk"
	"github.com/gantry-cri/gantry/test/filetree"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

func TestMain(m *testing.M) {
	if arguments := os.Getenv(workerEnv); arguments != "" {
		fmt.Fprintln(os.Stderr, "power: the worker ended:", work(arguments))
		os.Exit(1)
	}
	harness.Main(m)
}

// whole is what an undisturbed pull of all images makes.
type whole struct {
	registry *images.Registry
	layers   map[string]filetree.Tree // by key
	of       [][]string               // keys of each image
	roots    []filetree.Tree          // as containers see them
}

func TestPowerCut(t *testing.T) {
	harness.Require(t)
	rounds, seed := number(t, "GANTRY_POWER_ROUNDS", 6), number(t, "GANTRY_POWER_SEED", uint64(time.Now().UnixNano()))
	want := &whole{registry: serve(t), layers: map[string]filetree.Tree{}}
	want.pull(t)
	for _, c := range []struct {
		kind    string
		options []string // of mount, in turn; ext4 writes its journal every 5 s unless told otherwise
	}{{"ext4", []string{"", "commit=1"}}, {"xfs", []string{""}}} {
		t.Run(c.kind, func(t *testing.T) {
			t.Logf("GANTRY_POWER_SEED=%d GANTRY_POWER_ROUNDS=%d", seed, rounds)
			d := disk.New(t, c.kind, 1<<30)
			dir := t.TempDir()
			state := slices.Repeat([]known{absent}, imageCount)
			for round := range rounds {
				random := rand.New(rand.NewPCG(seed, round))
				d.Mount(t, dir, c.options[round%uint64(len(c.options))])
				want.storm(t, d, state, random)
				d.Unmount(t)
				d.Mount(t, dir, "")
				want.check(t, d, state, random)
				d.Unmount(t)
				if t.Failed() {
					t.Fatalf("round %d", round)
				}
			}
		})
	}
}

func number(t *testing.T, env string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(env)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	must(t, err)
	return n
}

// storm lets a worker change the store and cuts the power: right after some pull was answered, or anywhere.
func (w *whole) storm(t *testing.T, d *disk.Disk, state []known, random *rand.Rand) {
	t.Helper()
	var names []string
	for i := range imageCount {
		names = append(names, name(w.registry, i))
	}
	pulls, after := 1+random.IntN(imageCount), time.Minute
	if random.IntN(2) == 0 {
		pulls, after = -1, time.Duration(random.Int64N(int64(time.Second)))
	}
	s := startStorm(t, filepath.Join(d.At(), "images"), filepath.Join(t.TempDir(), "run"), random.Uint64(), state, names, pulls)
	select {
	case <-s.enough:
	case <-s.read: // it has ended, and says why
	case <-time.After(after):
	}
	s.expectFailure()
	must(t, d.Cut())
	s.kill()
	for _, line := range s.failed {
		t.Errorf("with the power on: %s", line)
	}
	t.Logf("cut after %d pulls", s.pulled)
}

// check opens the store after a cut.
func (w *whole) check(t *testing.T, d *disk.Disk, state []known, random *rand.Rand) {
	t.Helper()
	root := filepath.Join(d.At(), "images")
	s := open(t, root)
	defer func() { must(t, s.Close()) }()
	if damaged, _ := filepath.Glob(filepath.Join(root, "meta.db.damaged*")); len(damaged) > 0 {
		t.Errorf("the metadata did not survive: %s", damaged)
	}
	for i, k := range state {
		listed := w.status(t, s, i) != nil
		if k == present && !listed {
			t.Errorf("image %d: its pull was answered and it is not there", i)
		}
		if k == absent && listed {
			t.Errorf("image %d: its removal was answered and it is there", i)
		}
	}
	w.settled(t, s, root)
	w.compare(t, s, root)
	for i := range state {
		w.fetch(t, s, i)
		state[i] = present
	}
	w.compare(t, s, root)
	for i := range state {
		if random.IntN(2) == 0 {
			_, err := s.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name(w.registry, i)}})
			must(t, err)
			state[i] = absent
		}
	}
}

// settled requires that start-up leaves nothing but what the images need.
func (w *whole) settled(t *testing.T, s *imageservice.Service, root string) {
	t.Helper()
	var need []string
	for i := range imageCount {
		if w.status(t, s, i) != nil {
			need = append(need, w.of[i]...)
		}
	}
	slices.Sort(need)
	need = slices.Compact(need)
	var left string
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		tmp, trash, layers := names(t, root, "tmp"), names(t, root, "trash"), names(t, root, "layers")
		if len(tmp)+len(trash) == 0 && slices.Equal(layers, need) {
			return
		}
		left = fmt.Sprintf("tmp %s, trash %s, layers %s of which %s are of images", tmp, trash, layers, need)
	}
	t.Errorf("left after start-up: %s", left)
}

func names(t *testing.T, parts ...string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(parts...))
	must(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// compare requires that every image that is listed is what it should be.
func (w *whole) compare(t *testing.T, s *imageservice.Service, root string) {
	t.Helper()
	seen := map[string]bool{}
	for i := range imageCount {
		if w.status(t, s, i) == nil {
			continue
		}
		for _, key := range w.of[i] {
			if !seen[key] {
				seen[key] = true
				same(t, "layer "+key, read(t, filepath.Join(root, "layers", key, "fs")), w.layers[key])
			}
		}
		same(t, fmt.Sprint("image ", i), w.mounted(t, s, i), w.roots[i])
	}
}

func same(t *testing.T, what string, got, want filetree.Tree) {
	t.Helper()
	if diff := filetree.Diff(got, want); len(diff) > 0 {
		t.Errorf("%s has %d wrong files of %d, among them\n%s", what, len(diff), len(want), strings.Join(diff[:min(len(diff), 3)], "\n"))
	}
}

func read(t *testing.T, dir string) filetree.Tree {
	t.Helper()
	tree, err := filetree.Read(dir)
	must(t, err)
	for path, f := range tree {
		if f.Device == "0:0" { // a whiteout, of which the image says no time
			f.Mtime = ""
			tree[path] = f
		}
	}
	return tree
}

// pull fills in what is expected, from a store whose power stays on.
func (w *whole) pull(t *testing.T) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "images")
	s := open(t, root)
	defer func() { must(t, s.Close()) }()
	for i := range imageCount {
		w.fetch(t, s, i)
		keys := w.status(t, s, i)
		w.of = append(w.of, keys)
		for _, key := range keys {
			w.layers[key] = read(t, filepath.Join(root, "layers", key, "fs"))
		}
		w.roots = append(w.roots, w.mounted(t, s, i))
	}
}

func open(t *testing.T, root string) *imageservice.Service {
	t.Helper()
	_, ctx := ktesting.NewTestContext(t)
	s, err := imageservice.Open(ctx, imageservice.Config{Root: root, RunDir: filepath.Join(t.TempDir(), "run")})
	must(t, err)
	return s
}

func (w *whole) fetch(t *testing.T, s *imageservice.Service, i int) {
	t.Helper()
	_, err := s.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name(w.registry, i)}})
	must(t, err)
}

// status returns the keys of the image's layers, nil when it is not there.
func (w *whole) status(t *testing.T, s *imageservice.Service, i int) []string {
	t.Helper()
	resp, err := s.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name(w.registry, i)}, Verbose: true})
	must(t, err)
	if resp.GetImage() == nil {
		return nil
	}
	var info struct{ Layers []string }
	must(t, json.Unmarshal([]byte(resp.GetInfo()["info"]), &info))
	if len(info.Layers) == 0 {
		t.Fatalf("no layers in the status: %s", resp.GetInfo()["info"])
	}
	return info.Layers
}

// mounted reads the image as a container would see it.
func (w *whole) mounted(t *testing.T, s *imageservice.Service, i int) filetree.Tree {
	t.Helper()
	resp, err := s.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name(w.registry, i)}})
	must(t, err)
	dir, err := s.Mount(t.Context(), "check", resp.GetImage().GetId())
	must(t, err)
	defer func() { must(t, s.Unmount(context.WithoutCancel(t.Context()), "check")) }()
	tree := read(t, dir)
	delete(tree, ".") // the container's own directory
	return tree
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
