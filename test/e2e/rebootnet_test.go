package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// leasing is a CNI plugin, a script, that leases the pod its address in a folder beside it, and says of every DEL which
// namespace it got and whether it got the result of the ADD.
const leasing = `#!/bin/sh
cd "${0%/*}" || exit 1
config=$(cat)
case $CNI_COMMAND in
ADD) mkdir "leases/$CNI_CONTAINERID" && echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.99.0.2/24","interface":0}]}';;
DEL) case $config in *prevResult*) with=with;; *) with=without;; esac
	echo "namespace=$CNI_NETNS $with result" >>dels
	[ ! -d "leases/$CNI_CONTAINERID" ] || rmdir "leases/$CNI_CONTAINERID";;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';;
esac
`

// A plugin's address outlives the machine's restart, for it may be leased elsewhere: it is freed by the DEL of a pod
// whose namespace is gone, from the records that were flushed, though the cached results were not.
func TestRebootFreesAddressOfPlugin(t *testing.T) {
	for name, cacheLost := range map[string]bool{"restart": false, "power cut": true} {
		t.Run(name, func(t *testing.T) {
			harness.Require(t)
			conf, bin := t.TempDir(), t.TempDir()
			for path, body := range map[string]string{
				filepath.Join(bin, "leasing"):            leasing,
				filepath.Join(conf, "10-lease.conflist"): `{"cniVersion":"1.0.0","name":"lease","plugins":[{"type":"leasing"}]}`,
			} {
				if err := os.WriteFile(path, []byte(body), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			leases := filepath.Join(bin, "leases")
			if err := os.Mkdir(leases, 0o700); err != nil {
				t.Fatal(err)
			}
			n := &node{Instance: harness.New(t, harness.Config{CNIConf: conf, Flags: []string{"--cni-bin-dir", bin}}), t: t}
			p := n.runPod("pod")
			if got := p.status().GetNetwork().GetIp(); got != "10.99.0.2" {
				t.Errorf("the pod has address %q", got)
			}
			n.end(true)
			n.rewrite("pods", `"bootID":"[^"]*"`, `"bootID":"before"`)
			if cacheLost {
				if err := os.RemoveAll(filepath.Join(n.Dir, "root/cni/results")); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.StartDaemon(context.Background()); err != nil {
				t.Fatal(err)
			}
			if s := p.status(); s.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || s.GetNetwork().GetIp() != "" {
				t.Errorf("the pod is %v", s)
			}
			if left, err := os.ReadDir(leases); err != nil || len(left) > 0 {
				t.Errorf("leases: %v, %v", left, err)
			}
			want := "namespace= with result\n"
			if cacheLost {
				want = "namespace= without result\n"
			}
			if dels, err := os.ReadFile(filepath.Join(bin, "dels")); err != nil || !strings.HasPrefix(string(dels), want) {
				t.Errorf("DELs: %q, %v", dels, err)
			}
			n.runPod("again")
		})
	}
}
