package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

func (c *container) checkpoint(location string, timeout int64) error {
	_, err := c.Runtime.CheckpointContainer(c.context(), &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: location, Timeout: timeout})
	return err
}

// wantNothingLeft is that neither an archive nor what it is made of is there.
func (c *container) wantNothingLeft(dir string, want ...string) {
	c.t.Helper()
	got := names(c.t, dir)
	if !slices.Equal(got, want) {
		c.t.Errorf("the folder of archives has %q, want %q", got, want)
	}
	if left := names(c.t, filepath.Join(c.Dir, "root", "checkpoints")); len(left) > 0 {
		c.t.Errorf("left in the state directory: %q", left)
	}
}

func names(t testing.TB, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// canCheckpoint says whether CRIU is there and finds that it can work on this kernel.
func canCheckpoint() bool { return exec.Command("criu", "check").Run() == nil }

func TestCheckpointContainer(t *testing.T) {
	n := configured(t, "max_checkpoint = \"256MiB\"\n")
	p := n.runPod("pod")
	dir := t.TempDir()
	location := filepath.Join(dir, "c.tar")
	c := p.create("c", "echo new > /root-file; ln -s /etc/shadow /link; rm /etc/passwd; i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.1; done",
		func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "MARK", Value: []byte("kept")}}
		})
	wantError(t, c.checkpoint(location, 0), codes.FailedPrecondition, "created")
	c.start()
	ticks := func() int { return strings.Count(c.logged("stdout"), "tick") }
	runsOn := func(when string) {
		t.Helper()
		before := ticks()
		n.eventually("the container runs on "+when, func() bool { return ticks() > before+2 })
	}
	runsOn("at the start")

	wantError(t, c.checkpoint(filepath.Join(dir, "none", "c.tar"), 0), codes.InvalidArgument, "location", "none")
	wantError(t, c.checkpoint("c.tar", 0), codes.InvalidArgument, "location")
	if err := os.Symlink("/nowhere", location+".link"); err != nil {
		t.Fatal(err)
	}
	wantError(t, c.checkpoint(location+".link", 0), codes.AlreadyExists, "location")
	if err := os.Remove(location + ".link"); err != nil {
		t.Fatal(err)
	}
	c.wantNothingLeft(dir)

	_, err := p.tryCreate(p.containerConfig("restored", forever, func(c *runtimeapi.ContainerConfig) { c.Image.Image = location }))
	wantError(t, err, codes.InvalidArgument, "restoring")

	if !canCheckpoint() {
		t.Log("there is no CRIU that works on this machine: only the refusal is tested")
		wantError(t, c.checkpoint(location, 0), codes.FailedPrecondition, "checkpoint")
		c.wantNothingLeft(dir)
		runsOn("after the refusal")
		return
	}
	if err := c.checkpoint(location, 30); err != nil {
		t.Fatal(err)
	}
	runsOn("after its checkpoint")
	c.wantNothingLeft(dir, "c.tar")
	c.wantArchive(location)
	wantError(t, c.checkpoint(location, 30), codes.AlreadyExists, "location")

	// A second may or may not come to its end within a second.
	archives := []string{"c.tar"}
	if err := c.checkpoint(location+"2", 1); err == nil {
		archives = append(archives, "c.tar2")
	} else {
		t.Logf("a checkpoint within a second: %v", err)
		wantError(t, err, codes.DeadlineExceeded, "checkpoint")
	}
	runsOn("after its second checkpoint")
	if err := c.checkpoint(location+"3", 0); err != nil {
		t.Error(err)
	}
	archives = append(archives, "c.tar3")
	runsOn("after its third checkpoint")
	c.stop(0)
	wantError(t, c.checkpoint(location+"4", 0), codes.FailedPrecondition, "exited")
	c.wantNothingLeft(dir, archives...)
}

// wantArchive is that the archive has what tools look for.
func (c *container) wantArchive(location string) {
	c.t.Helper()
	if info, err := os.Lstat(location); err != nil || info.Mode() != 0o600 {
		c.t.Errorf("the archive is %v, %v, want mode 0600", info, err)
	}
	files := untar(c.t, location)
	for _, name := range []string{"dump.log", "stats-dump", "checkpoint/inventory.img", "checkpoint/pstree.img", "bind.mounts"} {
		if len(files[name]) == 0 {
			c.t.Errorf("%s is missing or empty", name)
		}
	}
	var config struct {
		ID, Name, RootfsImageName, Runtime string
		CheckpointedTime                   string
	}
	var spec struct {
		Process struct{ Env []string }
	}
	var deleted []string
	for name, v := range map[string]any{"config.dump": &config, "spec.dump": &spec, "deleted.files": &deleted} {
		if err := json.Unmarshal(files[name], v); err != nil {
			c.t.Errorf("%s: %v", name, err)
		}
	}
	if config.ID != c.id || config.Name != "c" || !strings.Contains(config.RootfsImageName, "busybox") || config.Runtime != "runc" || config.CheckpointedTime < "2020" {
		c.t.Errorf("config.dump: %+v", config)
	}
	if !slices.Contains(spec.Process.Env, "MARK=kept") {
		c.t.Errorf("spec.dump has the environment %q", spec.Process.Env)
	}
	if !slices.Equal(deleted, []string{"/etc/passwd"}) {
		c.t.Errorf("deleted.files: %q", deleted)
	}
	diff := filepath.Join(c.t.TempDir(), "diff.tar")
	if err := os.WriteFile(diff, files["rootfs-diff.tar"], 0o600); err != nil {
		c.t.Fatal(err)
	}
	changed := untar(c.t, diff)
	if string(changed["root-file"]) != "new\n" {
		c.t.Errorf("root-file of rootfs-diff.tar has %q", changed["root-file"])
	}
	if string(changed["link"]) != "-> /etc/shadow" {
		c.t.Errorf("link of rootfs-diff.tar: %q", changed["link"])
	}
}

func untar(t testing.TB, file string) map[string][]byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if hdr.Typeflag == tar.TypeSymlink {
			content = []byte("-> " + hdr.Linkname)
		}
		files[hdr.Name] = content
	}
}

// TestSecurityCheckpoints: none is made unless the configuration says how large one may get.
func TestSecurityCheckpoints(t *testing.T) {
	t.Run("CVE-2025-0426-off", func(t *testing.T) {
		dir := t.TempDir()
		c := newNode(t).runPod("pod").run("c", forever)
		wantError(t, c.checkpoint(filepath.Join(dir, "c.tar"), 0), codes.FailedPrecondition, "max_checkpoint")
		c.wantNothingLeft(dir)
	})
	t.Run("CVE-2025-0426-size", func(t *testing.T) {
		dir := t.TempDir()
		c := configured(t, "max_checkpoint = \"16KiB\"\n").runPod("pod").run("c", "a=$(head -c 200000 /dev/zero | tr '\\0' x); while :; do sleep 1; done")
		c.eventually("the shell has grown", func() bool {
			resp, err := c.Runtime.ContainerStats(c.context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
			return err == nil && resp.GetStats().GetMemory().GetRssBytes().GetValue() > 100<<10
		})
		wantError(t, c.checkpoint(filepath.Join(dir, "c.tar"), 0), codes.ResourceExhausted, "max_checkpoint", "16384")
		c.wantNothingLeft(dir)
	})
}

// TestCheckpointCutOff is of a checkpoint that takes longer than its time, and
// of one during which the daemon dies. The runtime's part is a script's that
// does as CRIU: it writes images, with no pause, until it cannot.
func TestCheckpointCutOff(t *testing.T) {
	dir := t.TempDir()
	slow := filepath.Join(dir, "slow")
	script := `#!/bin/sh
case "$*" in
*" checkpoint "*)
	for a; do [ "$last" = --image-path ] && images=$a; last=$a; done
	touch ` + dir + `/began
	while echo image >"$images/pages-1.img"; do :; done
	touch ` + dir + `/ended
	exit 1 ;;
esac
exec ` + runc(t) + ` "$@"
`
	if err := os.WriteFile(slow, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, Instance: harness.New(t, harness.Config{Registry: harness.Registry(t), TOML: fmt.Sprintf("max_checkpoint = \"1GiB\"\n[runtimes.slow]\npath = %q\n", slow)})}
	n.pull(images.Busybox)
	p, err := n.podOf("pod", "slow")
	if err != nil {
		t.Fatal(err)
	}
	c := p.run("c", forever)
	archives := t.TempDir()
	comes := func(name string) {
		t.Helper()
		n.eventually("the checkpoint has "+name, func() bool { return os.Remove(filepath.Join(dir, name)) == nil })
	}
	running := func() {
		t.Helper()
		if s := c.status().GetState(); s != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container is %v", s)
		}
		if got := c.exec("echo", "alive"); got != "alive\n" {
			t.Errorf("the container answers %q", got)
		}
	}
	wantError(t, c.checkpoint(filepath.Join(archives, "a"), 1), codes.DeadlineExceeded, "checkpoint")
	comes("began")
	comes("ended")
	c.wantNothingLeft(archives)
	running()

	done := make(chan error, 1)
	go func() { done <- c.checkpoint(filepath.Join(archives, "b"), 0) }()
	comes("began")
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the checkpoint was made without the daemon")
	}
	if err := n.StartDaemon(n.context()); err != nil {
		t.Fatal(err)
	}
	comes("ended")
	c.wantNothingLeft(archives)
	running()
}
