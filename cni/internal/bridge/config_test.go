package bridge

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/cni/internal/ipam"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ conf, want string }{
		{`"subnets":["10.0.0.0/8"]`, ""},
		{`"mtu":100,"subnets":["10.0.0.0/8"]`, "mtu 100"},
		{`"bridge":"a b","subnets":["10.0.0.0/8"]`, `bridge "a b"`},
		{`"subnets":["10.0.0.0/8","fd00::/64","10.1.0.0/16"]`, "overlaps"},
		{`"ranges":[[]]`, "empty set"},
		{`"ranges":[[{"subnet":"10.0.0.0/8"},{"subnet":"fd00::/64"}]]`, "another family"},
		{`"ranges":[[{"subnet":"10.0.0.0/8","rangeStart":"x"}]]`, `rangeStart "x"`},
		{`"subnets":["10.0.0.0/8"],"routes":[{"dst":"x"}]`, `route dst "x"`},
		{`"subnets":["10.0.0.0/8"],"routes":[{"dst":"1.0.0.0/8","gw":"fd00::1"}]`, `route gw "fd00::1"`},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":1}]}`, "70000"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"hostIP":"x"}]}`, `hostIP "x"`},
		{`"subnets":"x"`, "parsing"},
		{`"subnets":["10.0.0.0/8"],"unknown":1`, ""},
		{`"capabilities":{"ipRanges":true}`, ""},
		{`"capabilities":{"ipRanges":false}`, "0 sets"},
		{`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/8"}]]}`, ""},
		{`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/31"}]]}`, "10.0.0.0/31"},
		{`"subnets":["fd00::/64"],"mtu":1279`, "mtu 1279"},
		{`"subnets":["fd00::/64"],"mtu":1280`, ""},
		{`"subnets":["10.0.0.0/8"],"isGateway":false,"isDefaultGateway":true`, "isDefaultGateway"},
		{`"subnets":["10.0.0.0/8"],"routes":[{"dst":"1.0.0.0/8","mtu":67}]`, "mtu 67"},
		{`"subnets":["10.0.0.0/8"],"routes":[{"dst":"fd00::/8","mtu":1279}]`, "mtu 1279"},
		{`"subnets":["10.0.0.0/8"],"routes":[{"dst":"1.0.0.0/8","advmss":-1}]`, "advmss -1"},
		{`"subnets":["10.0.0.0/8"],"routes":[{"dst":"1.0.0.0/8","priority":4294967296}]`, "priority 4294967296"},
		{`"subnets":["10.0.0.0/8"],"routes":[{"dst":"1.0.0.0/8","table":-1}]`, "table -1"},
		{`"subnets":["10.0.0.0/8"],"routes":[{"dst":"1.0.0.0/8","scope":255}]`, "scope 255"},
		{`"subnets":["10.0.0.0/8"],"routes":[{"dst":"1.0.0.0/8","scope":253,"gw":"10.0.0.9"}]`, "scope 253"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"mac":"x"}`, `mac "x"`},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"mac":"01:00:5e:00:00:01"}`, "mac 01:00:5e:00:00:01"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"mac":"00:00:00:00:00:00"}`, "mac 00:00:00:00:00:00"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"mac":"0a:58:0a:00:00:02"}`, "mac 0a:58:0a:00:00:02"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"mac":"02:58:0a:00:00:02"}`, ""},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"bandwidth":{"ingressRate":8,"ingressBurst":655360}}`, ""},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"bandwidth":{"ingressRate":7,"ingressBurst":655360}}`, "ingressRate 7"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"bandwidth":{"egressRate":1000000000000001,"egressBurst":655360}}`, "egressRate 1000000000000001"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"bandwidth":{"egressRate":1000}}`, "egressBurst 0"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"bandwidth":{"egressBurst":655360}}`, "egressRate 0"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"bandwidth":{"egressRate":1000,"egressBurst":655359}}`, "egressBurst 655359"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"bandwidth":{"egressRate":1000,"egressBurst":34359738368}}`, "egressBurst 34359738368"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"hostIP":"::1"}]}`, "route_localnet"},
		{`"subnets":["10.0.0.0/8"],"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"hostIP":"ff02::1"}]}`, "no address of a node"},
		{`"subnets":["10.0.0.0/8"],"nonMasqueradeCIDRs":["192.168.0.0/16","::/0"]`, ""},
		{`"subnets":["10.0.0.0/8"],"nonMasqueradeCIDRs":["192.168.0.1"]`, `"192.168.0.1"`},
		{`"subnets":["10.0.0.0/8"],"nonMasqueradeCIDRs":["::ffff:10.0.0.0/104"]`, "no prefix"},
	} {
		_, err := Parse([]byte(`{"cniVersion":"1.1.0","name":"x",` + c.conf + `}`))
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.conf, err, c.want)
		}
	}
}

// TestCheckKeys names keys that only look like one.
func TestCheckKeys(t *testing.T) {
	for conf, want := range map[string]string{
		`"subnets":["10.0.0.0/8"],"isGateway":true,"capabilities":{"x":true},"args":{},"prevResult":{},"runtimeConfig":{}`: "",
		`"subnet":["10.0.0.0/8"]`:             `"subnet"`,
		`"hairpin":true`:                      `"hairpin"`,
		`"ranges":[[{"rangestartt":"x"}]]`:    `"rangestartt"`,
		`"routes":[{"dst":"x","metric":"1"}]`: `"metric"`,
	} {
		err := CheckKeys([]byte(`{"cniVersion":"1.1.0","name":"x","type":"gantry-bridge",` + conf + `}`))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", conf, err, want)
		}
	}
}

// TestHostPorts maps ports onto the addresses that a pod got.
func TestHostPorts(t *testing.T) {
	v4 := ipam.Address{Prefix: netip.MustParsePrefix("10.0.0.2/8")}
	v6 := ipam.Address{Prefix: netip.MustParsePrefix("fd00::2/64")}
	for _, c := range []struct {
		hostIP string
		addrs  []ipam.Address
		want   string
	}{
		{"", []ipam.Address{v4, v6}, "0.0.0.0:80/tcp=10.0.0.2:8 [::]:80/tcp=[fd00::2]:8"},
		{"", []ipam.Address{v6}, "[::]:80/tcp=[fd00::2]:8"},
		{"0.0.0.0", []ipam.Address{v4, v6}, "0.0.0.0:80/tcp=10.0.0.2:8"},
		{"::", []ipam.Address{v4, v6}, "[::]:80/tcp=[fd00::2]:8"},
		{"192.0.2.1", []ipam.Address{v4, v6}, "192.0.2.1:80/tcp=10.0.0.2:8"},
		{"::ffff:192.0.2.1", []ipam.Address{v4}, "192.0.2.1:80/tcp=10.0.0.2:8"},
		{"192.0.2.1", []ipam.Address{v6}, "error"},
	} {
		cfg, err := Parse([]byte(`{"name":"x","subnets":["10.0.0.0/8"],"runtimeConfig":{"portMappings":[
			{"hostPort":80,"containerPort":8,"hostIP":"` + c.hostIP + `"},{"hostPort":0,"containerPort":9}]}}`))
		if err != nil {
			t.Fatal(err)
		}
		ports, err := cfg.hostPorts(c.addrs)
		got := []string{}
		for _, p := range ports {
			got = append(got, p.String()+"="+p.Target.String())
		}
		if err != nil {
			got = []string{"error"}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("hostIP %q: %s, want %s", c.hostIP, s, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	name := HostLink("0123")
	if len(name) != 13 || !isPodLink(name) || name != HostLink("0123") || name == HostLink("0124") {
		t.Errorf("host link %s", name)
	}
	for _, other := range []string{"gt0", "eth0", "gt0123456789z", "gt0123456789ab", "gtt12345"} {
		if isPodLink(other) {
			t.Errorf("%s is taken for a pod's link", other)
		}
	}
	if got := mac(netip.MustParseAddr("10.1.2.3")).String(); got != "0a:58:0a:01:02:03" {
		t.Errorf("mac %s", got)
	}
	if got := broadcast(netip.MustParsePrefix("10.1.2.3/20")); got.String() != "10.1.15.255" {
		t.Errorf("broadcast %s", got)
	}
}

// FuzzParse feeds configurations. What is accepted has a usable range in every set.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"x","bridge":"b","mtu":1400,"subnets":["10.0.0.0/8","fd00::/64"],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.9"}],
		"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8,"protocol":"UDP","hostIP":"::1"}]}}`))
	f.Add([]byte(`{"name":"x","routes":[{"dst":"0.0.0.0/0","mtu":1400,"table":7,"scope":253}],"isDefaultGateway":true,"runtimeConfig":{"mac":"02:00:00:00:00:01",
		"ipRanges":[[{"subnet":"10.0.0.0/24"}]],"bandwidth":{"ingressRate":1000,"ingressBurst":655360,"egressRate":1000000000000000,"egressBurst":2147483647}}}`))
	f.Add([]byte(`{"name":"x","ranges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.10","gateway":"10.0.0.2"}]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := Parse(data)
		if err != nil {
			return
		}
		var addrs []ipam.Address
		for _, set := range cfg.Ranges {
			r := set[0]
			if !r.Subnet.Contains(r.First) || !r.Subnet.Contains(r.Last) || !r.Subnet.Contains(r.Gateway) || r.Last.Less(r.First) {
				t.Errorf("range %+v", r)
			}
			addrs = append(addrs, ipam.Address{Prefix: netip.PrefixFrom(r.First, r.Subnet.Bits()), Gateway: r.Gateway})
		}
		_, _ = cfg.hostPorts(addrs)
		for _, r := range cfg.podRoutes(addrs) {
			r.add(1).Serialize()
		}
		reqs, _ := (&shaping{cfg.Bandwidth, "x"}).requests(1, 2)
		for _, r := range reqs {
			r.Serialize()
		}
		if len(addrs) > 0 && cfg.podMAC(addrs)[0]&1 != 0 {
			t.Errorf("mac %s", cfg.podMAC(addrs))
		}
		for _, g := range cfg.gateways() {
			addAddress(1, g).Serialize()
		}
	})
}
