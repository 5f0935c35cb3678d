package supervisor_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// crun's delete removes the files of its state in the order of the directory. Killed between them it leaves a status
// without config.json, with which it refuses to delete the rest.
func TestHalfDeletedByCrun(t *testing.T) {
	crun, err := exec.LookPath("crun")
	if err != nil {
		skip(t, "crun is not installed: hack/install-deps.sh test")
	}
	w := newWorld(t)
	w.runtime.Path = crun
	req := w.container("sleep", "1000")
	w.run(req)
	state := filepath.Join(w.runtime.Root, req.ID)
	w.must(os.Remove(filepath.Join(state, "config.json")))
	if err := exec.Command(crun, "--root", w.runtime.Root, "delete", "--force", req.ID).Run(); err == nil {
		t.Error("crun deletes it all the same: the supervisor need not")
	}
	w.delete(req.ID)
	if _, err := os.Stat(state); err == nil {
		t.Errorf("%s is left", state)
	}
}
