package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestManyAtOnce makes 200 pods by 16 workers. Each has a few at a time and some stay to the end, in subnets with little
// more room than for those: no address is two pods' at once. When all are removed nothing is left; the instance's audit,
// at the end of the test, looks at links, elements of nftables, namespaces, mounts and records.
func TestManyAtOnce(t *testing.T) {
	const pods, workers, each, staying = 200, 16, 3, 10
	n := newNode(t, harness.Config{Subnets: "10.212.0.0/26,fd00:212::/122"}) // 61 addresses of each family for 58 pods
	lives := owners{pod: map[netip.Addr]string{}}
	var stay []*pod
	for i := range staying {
		stay = append(stay, n.one(i, &lives))
	}
	queue := make(chan int, pods)
	for i := staying; i < pods; i++ {
		queue <- i
	}
	close(queue)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				var mine []*pod
				for i := range queue {
					if mine = append(mine, n.one(i, &lives)); len(mine) == each {
						break
					}
				}
				if len(mine) == 0 {
					return
				}
				lives.remove(mine)
			}
		})
	}
	wg.Wait()
	lives.remove(stay)
	if len(lives.pod) > 0 {
		t.Errorf("addresses of pods that could not be looked at: %v", lives.pod)
	}
	if lives.made != 2*pods {
		t.Errorf("%d addresses were given to %d pods", lives.made, pods)
	}
	for _, journal := range []string{"attachments", "ports", "networks/*/leases"} {
		found, err := filepath.Glob(filepath.Join(n.Dir, "root/cni", journal))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v", journal, found, err)
		}
		if kept := records(t, found[0]); len(kept) > 0 {
			t.Errorf("%d records are left in %s: %v", len(kept), journal, kept)
		}
	}
}

// one makes the pod with a number, and two host ports if it is a tenth one. It runs beside the test's goroutine.
func (n *node) one(i int, lives *owners) *pod {
	var change []podChange
	if i%10 == 0 {
		change = append(change, ports(port(tcp, int32(20000+i), 80, ""), port(udp, int32(20000+i), 53, "")))
	}
	p, err := n.try(fmt.Sprint("pod-", i), change...)
	if err == nil {
		err = lives.begin(p)
	}
	if err != nil {
		n.t.Error(err)
		return nil
	}
	return p
}

// remove removes pods that one has made.
func (o *owners) remove(pods []*pod) {
	for _, p := range pods {
		if p == nil {
			continue
		}
		if err := errors.Join(o.end(p), p.remove()); err != nil {
			p.t.Error(err)
		}
	}
}

// owners knows whose an address is.
type owners struct {
	mu   sync.Mutex
	pod  map[netip.Addr]string
	made int
}

func (o *owners) begin(p *pod) (err error) {
	ips := p.ips()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, ip := range ips {
		if other := o.pod[ip]; other != "" {
			err = errors.Join(err, fmt.Errorf("%s is given to pod %s and is pod %s's", ip, p.id, other))
		}
		o.pod[ip] = p.id
		o.made++
	}
	return err
}

// end is called before the pod is stopped: from then on others may have its addresses.
func (o *owners) end(p *pod) (err error) {
	ips := p.ips()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(ips) != 2 || !ips[0].Is4() || !ips[1].Is6() {
		err = fmt.Errorf("pod %s has the addresses %v, want one of each family", p.id, ips)
	}
	for _, ip := range ips {
		if o.pod[ip] != p.id {
			err = errors.Join(err, fmt.Errorf("%s of pod %s is pod %s's", ip, p.id, o.pod[ip]))
		}
		delete(o.pod, ip)
	}
	return err
}

// records reads a journal (package cni/internal/journal): lines with a key and a value, or no value when it is deleted.
func records(t *testing.T, path string) (keys []string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for text := range bytes.Lines(data) {
		var l struct {
			Key   string          `json:"k"`
			Value json.RawMessage `json:"v"`
		}
		if err := json.Unmarshal(text, &l); err != nil || l.Key == "" {
			t.Fatalf("%s: %q: %v", path, text, err)
		}
		lines++
		keys = slices.DeleteFunc(keys, func(k string) bool { return k == l.Key })
		if l.Value != nil {
			keys = append(keys, l.Key)
		}
	}
	if lines == 0 {
		t.Errorf("%s has never had a record", path)
	}
	return keys
}
