package cni

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// ifName is the pod's interface: Kubernetes knows no other.
const ifName = "eth0"

// check refuses what cannot be passed to a plugin as it is meant.
func (p Pod) check() error {
	if err := utils.ValidateContainerID(p.ID); err != nil || len(p.ID) > 128 {
		return fmt.Errorf("pod id %q is empty, too long or has other characters than letters, digits, _ . -: %w", p.ID, errdefs.ErrInvalidArgument)
	}
	for _, f := range []struct{ name, value string }{{"name", p.Name}, {"namespace", p.Namespace}, {"uid", p.UID}} {
		if strings.ContainsAny(f.value, ";=") || strings.ContainsFunc(f.value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("pod %s %q has one of ; = or a control character: %w", f.name, f.value, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// cniArgs is CNI_ARGS as Kubernetes sets it; plugins find the pod by it.
func (p Pod) cniArgs() [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", p.Namespace},
		{"K8S_POD_NAME", p.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
		{"K8S_POD_UID", p.UID},
	}
}

// Annotations that Kubernetes and the CRI have no field for.
const (
	macAnnotation     = "cni.gantry.dev/mac"     // the hardware address of eth0
	aliasesAnnotation = "cni.gantry.dev/aliases" // names of the pod for plugins that serve names, comma separated
	maxAliases        = 32
	ipsAnnotation     = "cni.gantry.dev/ips" // addresses that the pod wants of plugins that let it choose, comma separated
	maxIPs            = 8
)

// capabilities are the capability arguments of the pod (https://www.cni.dev/docs/conventions/) that a plugin of the
// list serves. What the pod itself asks for and none serves is logged, not refused: some networks, Cilium's for one,
// read it from the Kubernetes API.
func (p Pod) capabilities(ctx context.Context, list *libcni.NetworkConfigList, podCIDR []netip.Prefix) (map[string]any, error) {
	caps, err := p.requests()
	if err != nil {
		return nil, err
	}
	for name := range caps {
		if !has(list, name) {
			klog.FromContext(ctx).Info("Pod asks for what no plugin of its network serves", "pod", klog.KRef(p.Namespace, p.Name),
				"network", list.Name, "capability", name)
		}
	}
	if len(p.DNSServers)+len(p.DNSSearches)+len(p.DNSOptions) > 0 {
		caps["dns"] = map[string][]string{"servers": p.DNSServers, "searches": p.DNSSearches, "options": p.DNSOptions}
	}
	if p.CgroupParent != "" {
		caps["cgroupPath"] = p.CgroupParent
	}
	if len(p.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = p.Annotations
	}
	if len(podCIDR) > 0 {
		var sets [][]map[string]string
		for _, subnet := range podCIDR {
			sets = append(sets, []map[string]string{{"subnet": subnet.String()}})
		}
		caps["ipRanges"] = sets
	}
	maps.DeleteFunc(caps, func(name string, _ any) bool { return !has(list, name) }) // libcni would, but they are recorded too
	return caps, nil
}

// requests are the capability arguments that the pod's author asked for.
func (p Pod) requests() (map[string]any, error) {
	caps := map[string]any{}
	var ports []map[string]any
	for _, m := range p.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		entry := map[string]any{"hostPort": m.HostPort, "containerPort": m.ContainerPort, "protocol": strings.ToLower(m.Protocol)}
		if m.HostIP.IsValid() {
			entry["hostIP"] = m.HostIP.String()
		}
		ports = append(ports, entry)
	}
	if len(ports) > 0 {
		caps["portMappings"] = ports
	}
	limits, err := bandwidth(p.Annotations)
	if err != nil {
		return nil, err
	}
	if limits != nil {
		caps["bandwidth"] = limits
	}
	if value, ok := p.Annotations[macAnnotation]; ok {
		mac, err := net.ParseMAC(value)
		if err != nil || len(mac) != 6 || len(value) != len("02:00:5e:10:00:01") || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) {
			return nil, fmt.Errorf("annotation %s=%.64q is no hardware address of one interface, such as 02:00:5e:10:00:01: %w",
				macAnnotation, value, errdefs.ErrInvalidArgument)
		}
		caps["mac"] = mac.String()
	}
	if value, ok := p.Annotations[aliasesAnnotation]; ok {
		names := strings.SplitN(value, ",", maxAliases+1)
		for _, name := range names {
			if !isDNSName(name) || len(names) > maxAliases {
				return nil, fmt.Errorf("annotation %s=%.64q is no list of at most %d DNS names with commas between: %w",
					aliasesAnnotation, value, maxAliases, errdefs.ErrInvalidArgument)
			}
		}
		caps["aliases"] = names
	}
	if value, ok := p.Annotations[ipsAnnotation]; ok {
		ips := strings.SplitN(value, ",", maxIPs+1)
		for _, ip := range ips {
			if !isUnicast(ip) || len(ips) > maxIPs {
				return nil, fmt.Errorf("annotation %s=%.64q is no list of at most %d addresses, with or without the length of their subnet, with commas between: %w",
					ipsAnnotation, value, maxIPs, errdefs.ErrInvalidArgument)
			}
		}
		caps["ips"] = ips
	}
	return caps, nil
}

// isUnicast tells 10.86.0.9 and 10.86.0.9/16 from what is no interface's address.
func isUnicast(s string) bool {
	addr, err := netip.ParseAddr(s)
	if strings.Contains(s, "/") {
		var p netip.Prefix
		p, err = netip.ParsePrefix(s)
		addr = p.Addr()
	}
	return err == nil && addr.Zone() == "" && !addr.Is4In6() && !addr.IsUnspecified() && !addr.IsLoopback() && !addr.IsMulticast()
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// isDNSName tells a name as Kubernetes has them (RFC 1123, in small letters).
func isDNSName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if !dnsLabel.MatchString(label) {
			return false
		}
	}
	return len(name) <= 253
}

// bandwidth is the capability of the same name, from the annotations of Kubernetes; nil when there are none.
//
// The burst is what 10 ms of the rate carry, and no less than bridge.MinBurst, so that the
// limit holds for short transfers too. The kubelet's plugins had and containerd has 2³¹ bits, 256 MiB, before the
// first byte is held up. That is more than the reference plugin bandwidth can pass on besides: for rates below 8
// Mbit/s it overflows the kernel's 32 bits of scheduler ticks there, this one only below 2.4 kbit/s.
func bandwidth(annotations map[string]string) (map[string]uint64, error) {
	limits := map[string]uint64{}
	for annotation, direction := range map[string]string{
		"kubernetes.io/ingress-bandwidth": "ingress", "kubernetes.io/egress-bandwidth": "egress"} {
		value, ok := annotations[annotation]
		if !ok {
			continue
		}
		rate, err := parseQuantity(value)
		if err != nil || rate < 1e3 || rate > 1e15 { // Kubernetes' bounds
			return nil, fmt.Errorf("annotation %s=%.64q is no rate of 1k to 1P bits per second: %w", annotation, value, errdefs.ErrInvalidArgument)
		}
		limits[direction+"Rate"] = rate
		limits[direction+"Burst"] = max(bridge.MinBurst, min(rate/100, math.MaxInt32))
	}
	if len(limits) == 0 {
		return nil, nil
	}
	return limits, nil
}

// parseQuantity reads a Kubernetes quantity as a whole number, rounded up: 10M, 1.5Gi, 1e6.
// https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
func parseQuantity(s string) (uint64, error) {
	number := s
	scale := 1.0
	for _, suffix := range []struct {
		name  string
		scale float64
	}{{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"Pi", 1 << 50}, {"Ei", 1 << 60},
		{"m", 1e-3}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"P", 1e15}, {"E", 1e18}} {
		if n, ok := strings.CutSuffix(s, suffix.name); ok {
			number, scale = n, suffix.scale
			break
		}
	}
	if number == "" || strings.Trim(number, "0123456789.eE+-") != "" || (scale != 1 && strings.ContainsAny(number, "eE")) {
		return 0, fmt.Errorf("quantity %.64q: %w", s, errdefs.ErrInvalidArgument)
	}
	f, err := strconv.ParseFloat(number, 64)
	if f = math.Ceil(f * scale); err != nil || f < 0 || f >= 1<<63 {
		return 0, fmt.Errorf("quantity %.64q: %w", s, errdefs.ErrInvalidArgument)
	}
	return uint64(f), nil
}
