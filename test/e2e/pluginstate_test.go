package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// A plugin whose STATUS fails makes the network not ready in its own words, and one whose DEL fails is tried again
// without the kubelet.
func TestPluginThatIsNotReady(t *testing.T) {
	harness.Require(t)
	conf, bin := t.TempDir(), t.TempDir()
	script(t, filepath.Join(bin, "moody"), fmt.Sprintf(`cd %s
fail() { echo "{\"cniVersion\":\"1.1.0\",\"code\":$1,\"msg\":\"$2\"}"; exit 1; }
case $CNI_COMMAND in
ADD) touch added-$CNI_CONTAINERID
     echo '{"cniVersion":"1.1.0","ips":[{"address":"10.99.0.2/24"}]}';;
DEL) [ ! -e del-fails ] || fail 11 "the switch is away"
     rm -f added-$CNI_CONTAINERID;;
STATUS) [ ! -e status-fails ] || fail 50 "the agent is away";;
esac
`, bin))
	configure := func(more string) {
		text := `{"cniVersion":"1.1.0","name":"moody",` + more + `"plugins":[{"type":"moody"}]}`
		if err := os.WriteFile(filepath.Join(conf, "10-moody.conflist"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure("")
	n := &node{t: t, Instance: harness.New(t, harness.Config{CNIConf: conf, Flags: []string{"--cni-bin-dir", bin}})}
	ready := func() *runtimeapi.RuntimeCondition {
		resp, err := n.Runtime.Status(n.context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range resp.GetStatus().GetConditions() {
			if c.GetType() == runtimeapi.NetworkReady {
				return c
			}
		}
		t.Fatal("no condition NetworkReady")
		return nil
	}
	touch(t, filepath.Join(bin, "status-fails"))
	configure(`"disableCheck":true,`) // which is when it is asked
	n.eventually("the network is not ready", func() bool {
		c := ready()
		return !c.GetStatus() && c.GetReason() == "NetworkPluginNotReady" && strings.Contains(c.GetMessage(), "network moody is not ready: ") &&
			strings.Contains(c.GetMessage(), "the agent is away (code 50")
	})
	p := n.runPod("pod") // the plugin's ADD knows better
	touch(t, filepath.Join(bin, "del-fails"))
	if err := n.removePod(p.id); err == nil || !strings.Contains(err.Error(), "the switch is away") {
		t.Errorf("removing a pod whose network cannot be taken away: %v", err)
	}
	untouch(t, filepath.Join(bin, "status-fails"))
	untouch(t, filepath.Join(bin, "del-fails"))
	configure("")
	n.eventually("the network is ready", func() bool { return ready().GetStatus() })
	n.eventually("the network is taken away without being asked", func() bool {
		left, err := filepath.Glob(filepath.Join(bin, "added-*"))
		return err == nil && len(left) == 0
	})
	touch(t, filepath.Join(bin, "del-fails")) // nothing is left to do
	if err := n.removePod(p.id); err != nil {
		t.Errorf("removing a pod whose network is taken away: %v", err)
	}
}
