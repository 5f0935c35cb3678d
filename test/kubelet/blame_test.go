package kubelet

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// blame matches the lines of a kubelet's log in which the runtime has failed it.
var blame = regexp.MustCompile(`rpc error|PLEG is not healthy|[Rr]untime (is down|network not ready|service failed)|context deadline exceeded|Unimplemented`)

// excused are those that the kubelet or the case brought about itself.
var excused = []struct{ line, reason string }{
	{`code = Canceled`, "it has hung up on a probe of a pod that ends, or on itself"},
	{`(ContainerStatus|PodSandboxStatus) from runtime.*code = NotFound|("DeleteContainer returned error"|"Failed to remove container"|"Failed to get container status").*code = NotFound`, "another part of it has just removed it"},
	{`no/such|pod="default/cannot-node"`, "the case of what cannot start"},
	{`/d/hung|pod="default/liveness-node"`, "the case of a probe that hangs"},
	{`pleg has yet to be successful`, "the first list has not been made when the kubelet starts"},
}

// unread is what the kubelet has logged since its log was last looked through.
func (n *node) unread(t testing.TB) string {
	t.Helper()
	body, err := os.ReadFile(n.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(body[n.read:])
}

// blamesNobody requires that the kubelet has had nothing to complain of since the last look.
func (n *node) blamesNobody(t *testing.T) { n.complaints(t, excused) }

// forgiveUnavailable is blamesNobody after gantry was away.
func (n *node) forgiveUnavailable(t *testing.T) {
	n.complaints(t, append(excused[:len(excused):len(excused)], struct{ line, reason string }{`code = Unavailable|error reading from server`, "gantry was away"}))
}

func (n *node) complaints(t *testing.T, excused []struct{ line, reason string }) {
	t.Helper()
	log := n.unread(t)
	n.read += len(log)
	for line := range strings.Lines(log) {
		if !blame.MatchString(line) {
			continue
		}
		excuse := false
		for _, e := range excused {
			excuse = excuse || regexp.MustCompile(e.line).MatchString(line)
		}
		if !excuse {
			t.Errorf("the kubelet blames the runtime: %s", strings.TrimSpace(line))
		}
	}
}
