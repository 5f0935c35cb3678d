package cni

import (
	"testing"

	"github.com/containernetworking/cni/pkg/version"
)

// FuzzResult feeds what a plugin may print as ADD's result. What is let through must be readable in every version, and
// what a pod gets of it must be addresses.
func FuzzResult(f *testing.F) {
	for _, s := range []string{external, `{"cniVersion":"0.3.1","ips":[null],"routes":[null],"interfaces":[null]}`,
		`{"cniVersion":"0.4.0","ips":[{"version":"6","address":"fd00::2/64","gateway":"fd00::1","interface":1}],"routes":[{"dst":"::/0","gw":"fd00::1"}],"dns":{"nameservers":["fd00::3"]}}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.9.8.7/24","gateway":"10.9.8.1","routes":[{"dst":"0.0.0.0/0"}]},"ip6":{}}`,
		`{"cniVersion":"1.1.0","ips":[{"address":"::ffff:10.9.8.7/120"}],"interfaces":[{"name":"eth0","mac":"x","mtu":1,"sandbox":"/x","socketPath":"/y","pciID":"z"}],"routes":[{"dst":"0.0.0.0/0","mtu":1,"table":2,"scope":3}]}`,
		`{"code":7,"msg":"no luck","details":"as told"}`, `null`, `[]`} {
		f.Add([]byte(s))
	}
	confs := []string{`{"cniVersion":"0.2.0"}`, `{"cniVersion":"0.4.0"}`, `{"cniVersion":"1.1.0"}`}
	f.Fuzz(func(t *testing.T, stdout []byte) {
		for _, conf := range confs {
			if err := checkOutput("ADD", []byte(conf), stdout); err != nil {
				continue
			}
			raw, err := readResult([]byte(conf), stdout)
			if err != nil {
				t.Fatalf("checked, then: %v", err)
			}
			for _, v := range version.All.SupportedVersions() {
				_, _ = raw.GetAsVersion(v) // as the next plugin's prevResult
			}
			got, err := podResult(raw)
			if err == nil && len(got.IPs) == 0 {
				t.Error("no address and no error")
			}
			for _, ip := range got.IPs {
				if !ip.IsValid() || ip.Is4In6() || ip.IsUnspecified() || ip.IsMulticast() {
					t.Errorf("address %v", ip)
				}
			}
		}
	})
}
