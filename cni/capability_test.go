package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// declaring is a list of one test plugin with capabilities.
func (n *node) declaring(capabilities ...string) string {
	declared := map[string]bool{}
	for _, c := range capabilities {
		declared[c] = true
	}
	data, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "x" + fmt.Sprint(len(capabilities)), "plugins": []any{map[string]any{
		"type": "testplugin", "log": n.log(), "result": json.RawMessage(external), "capabilities": declared}}})
	if err != nil {
		n.t.Fatal(err)
	}
	return string(data)
}

// TestCapabilities passes to plugins what they declare, with the pod's values, and neither passes nor records the rest.
func TestCapabilities(t *testing.T) {
	n := newNode(t)
	n.install("testplugin")
	asks := func() Pod {
		pod := n.pod(PortMapping{Protocol: "TCP", HostPort: 8080, ContainerPort: 80})
		pod.DNSServers, pod.CgroupParent = []string{"192.0.2.53"}, "/kubepods/pod7"
		pod.Annotations = map[string]string{egress: "1G", macAnnotation: "02:00:5E:10:00:01", aliasesAnnotation: "web,db.internal", ipsAnnotation: "10.9.8.7/24,fd00::7"}
		return pod
	}
	want := map[string]string{
		"portMappings": `"portMappings":[{"containerPort":80,"hostPort":8080,"protocol":"tcp"}]`,
		"bandwidth":    `"bandwidth":{"egressBurst":10000000,"egressRate":1000000000}`,
		"mac":          `"mac":"02:00:5e:10:00:01"`,
		"aliases":      `"aliases":["web","db.internal"]`,
		"ips":          `"ips":["10.9.8.7/24","fd00::7"]`,
		"dns":          `"dns":{"options":null,"searches":null,"servers":["192.0.2.53"]}`,
		"cgroupPath":   `"cgroupPath":"/kubepods/pod7"`,
		"ipRanges":     `"ipRanges":[[{"subnet":"10.214.0.0/24"}],[{"subnet":"fd00:214::/64"}]]`,
		"io.kubernetes.cri.pod-annotations": `"io.kubernetes.cri.pod-annotations":{"cni.gantry.dev/aliases":"web,db.internal",` +
			`"cni.gantry.dev/ips":"10.9.8.7/24,fd00::7","cni.gantry.dev/mac":"02:00:5E:10:00:01","kubernetes.io/egress-bandwidth":"1G"}`,
	}
	var all []string
	for name := range want {
		all = append(all, name)
	}
	n.write("10-x.conflist", n.declaring(all...))
	n.uses("x9")
	n.attach(asks())
	if line := n.calls()[0].line; strings.Contains(line, "ipRanges\":[") {
		t.Errorf("ipRanges are passed before the node has any: %s", line)
	}
	if err := n.SetPodCIDR("10.214.0.0/24,fd00:214::/64"); err != nil {
		t.Fatal(err)
	}
	n.attach(asks())
	for name, w := range want {
		if line := n.calls()[1].line; !strings.Contains(line, w) {
			t.Errorf("%s: ADD has no %s: %s", name, w, line)
		}
	}
	n.write("05-x.conflist", n.declaring())
	n.uses("x0")
	pod := asks()
	n.attach(pod)
	if line := n.calls()[2].line; strings.Contains(line, "runtimeConfig") {
		t.Errorf("a plugin gets what it does not declare: %s", line)
	}
	if caps := n.records.get(pod.ID).Capabilities; len(caps) > 0 {
		t.Errorf("recorded: %v", caps)
	}
}

// TestBadAnnotations refuses values with an error that names the annotation and the value, whether a plugin declares
// the capability or not.
func TestBadAnnotations(t *testing.T) {
	n := newNode(t)
	long := strings.Repeat("a", 64)
	for _, c := range []struct{ annotation, value string }{
		{macAnnotation, ""}, {macAnnotation, "x"}, {macAnnotation, "01:00:5e:00:00:01"}, {macAnnotation, "00:00:00:00:00:00"},
		{macAnnotation, "ff:ff:ff:ff:ff:ff"}, {macAnnotation, "0200.5e10.0001"}, {macAnnotation, "02:00:5e:10:00:00:00:01"},
		{aliasesAnnotation, ""}, {aliasesAnnotation, "a,"}, {aliasesAnnotation, "a, b"}, {aliasesAnnotation, "A"}, {aliasesAnnotation, "a..b"},
		{aliasesAnnotation, "-a"}, {aliasesAnnotation, "a\n"}, {aliasesAnnotation, long}, {aliasesAnnotation, strings.Repeat("a,", maxAliases) + "a"},
		{ipsAnnotation, ""}, {ipsAnnotation, "10.0.0.1,"}, {ipsAnnotation, "10.0.0.1/33"}, {ipsAnnotation, "fe80::1%eth0"}, {ipsAnnotation, "::ffff:10.0.0.1"},
		{ipsAnnotation, "127.0.0.1/8"}, {ipsAnnotation, "224.0.0.1"}, {ipsAnnotation, "0.0.0.0"}, {ipsAnnotation, strings.Repeat("10.0.0.1,", maxIPs) + "10.0.0.2"},
		{aliasesAnnotation, strings.Repeat("a.", 127)}, {ingress, "999"}, {ingress, "1.001P"}, {egress, "10 M"}, {egress, ""}, {egress, "-1M"},
	} {
		pod := n.pod()
		pod.Annotations = map[string]string{c.annotation: c.value}
		_, err := n.Attach(n.ctx, pod)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), fmt.Sprintf("annotation %s=%.64q", c.annotation, c.value)) {
			t.Errorf("%s=%q: %v, want invalid argument with both", c.annotation, c.value, err)
		}
	}
}

// TestMAC gives a pod the hardware address of its annotation, where the configuration has the capability, and the
// node knows of it at once although the address was another's.
func TestMAC(t *testing.T) {
	n := newNode(t)
	const want = "02:00:5e:10:00:01"
	macOf := func(pod Pod) (hw string) {
		inNS(t, pod.NetNS, func() error {
			l, err := netlink.LinkByName("eth0")
			if err == nil {
				hw = l.Attrs().HardwareAddr.String()
			}
			return err
		})
		return hw
	}
	pod := n.pod()
	pod.Annotations = map[string]string{macAnnotation: want}
	n.attach(pod)
	if got := macOf(pod); got == want {
		t.Error("a pod chooses its hardware address on the default network")
	}
	n.write("10-x.conflist", `{"cniVersion":"1.1.0","name":"macs","plugins":[{"type":"gantry-bridge","ranges":[[{"subnet":"10.213.9.0/30"}],
		[{"subnet":"fd00:2139::/126","rangeStart":"fd00:2139::2","rangeEnd":"fd00:2139::2"}]],"bridge":"`+n.cfg.Bridge+`","capabilities":{"mac":true}}]}`)
	n.uses("macs")
	first := n.pod()
	ip := n.attach(first)
	listen(t, first.NetNS, "tcp", "[::]:80")
	six := netip.MustParseAddr("fd00:2139::2")
	reaches(t, "", "tcp", at(ip, 80), netip.Addr{})
	reaches(t, "", "tcp", at(six, 80), netip.Addr{})
	n.detach(first)
	second := n.pod()
	second.Annotations = pod.Annotations
	if got := n.attach(second); got != ip || macOf(second) != want {
		t.Errorf("%s has %s, want %s with %s", got, macOf(second), ip, want)
	}
	eventually(t, "the node knows the pod's new hardware address", func() bool {
		entries, err := netlink.NeighList(0, 0)
		known := 0
		for _, e := range entries {
			if a, _ := netip.AddrFromSlice(e.IP); (a.Unmap() == ip || a == six) && e.HardwareAddr.String() == want {
				known++
			}
		}
		return err == nil && known == 2
	})
	n.detach(second)
	for _, taken := range []string{"0a:58:0a:d5:00:09", "0a:58:0a:d5:09:01"} { // another pod's, the bridge's
		third := n.pod()
		third.Annotations = map[string]string{macAnnotation: taken}
		if _, err := n.Attach(n.ctx, third); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), taken) {
			t.Errorf("%s: %v, want invalid argument", taken, err)
		}
	}
	link, err := netlink.LinkByName(n.cfg.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	own, _ := net.ParseMAC(want)
	if err := netlink.LinkSetHardwareAddr(link, own); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.uses("macs")
	third := n.pod()
	third.Annotations = pod.Annotations
	if _, err := n.Attach(n.ctx, third); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "is that of bridge") {
		t.Errorf("%v, want invalid argument", err)
	}
}

// TestIPRanges serves the node's pod CIDR by gantry-bridge in a conflist, in place of its subnets.
func TestIPRanges(t *testing.T) {
	n := newNode(t)
	conflist := func(name, more string) string {
		return `{"cniVersion":"1.1.0","name":"` + name + `","plugins":[{"type":"gantry-bridge","bridge":"` + n.cfg.Bridge + `",` + more + `"capabilities":{"ipRanges":true}}]}`
	}
	n.write("20-x.conflist", conflist("none", ""))
	n.uses("none")
	if _, err := n.Attach(n.ctx, n.pod()); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "pod CIDR") {
		t.Errorf("%v, want unavailable", err)
	}
	eventually(t, "the network is not ready for want of a pod CIDR", func() bool {
		err := n.Status()
		return errors.Is(err, errdefs.ErrUnavailable) && strings.Contains(err.Error(), "pod CIDR")
	})
	if err := n.SetPodCIDR("10.214.0.0/24"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the network is ready", func() bool { return n.Status() == nil })
	pod := n.pod()
	if ip := n.attach(pod); ip != netip.MustParseAddr("10.214.0.2") {
		t.Errorf("%s is not of the pod CIDR", ip)
	}
	n.write("10-x.conflist", conflist("some", `"subnets":["10.213.5.0/24"],`))
	n.uses("some")
	result, err := n.Attach(n.ctx, n.named("other"))
	if err != nil {
		t.Fatal(err)
	}
	n.detach(n.named("other"))
	if len(result.IPs) != 1 || result.IPs[0] != netip.MustParseAddr("10.214.0.3") { // the first is in use under the other name
		t.Errorf("got %v", result.IPs)
	}
}

// TestRecordsBeforeBurst detaches a pod whose record has the burst of an earlier version.
func TestRecordsBeforeBurst(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	pod.Annotations = map[string]string{egress: "1M"}
	n.attach(pod)
	path := filepath.Join(n.cfg.StateDir, "attachments")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(string(data), fmt.Sprint(`"egressBurst":`, bridge.MinBurst), `"egressBurst":2147483647`, 1)
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil || old == string(data) {
		t.Fatalf("%v, record %s", err, data)
	}
	n.restart()
	n.detach(pod)
	eventually(t, "the pod's link is gone", func() bool { return len(n.ifbs()) == 0 })
}
