package kubelet

import (
	"strings"
	"testing"
)

func init() {
	cases["emptyDir and hostPath"] = volumes
	cases["downward API"] = downward
	cases["image volumes"] = imageVolumes
	cases["names and hosts"] = hosts
}

func volumes(t *testing.T, n *node) {
	p := n.run(t, "volumes", `
restartPolicy: Never
volumes:
- {name: disk, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
- {name: host, hostPath: {path: DIR}}
- {name: file, hostPath: {path: DIR/made, type: FileOrCreate}}
initContainers:
- name: writer
  image: BUSYBOX
  command: [sh, -c, "echo disk >/disk/f; echo memory >/memory/f; mkdir -p /disk/sub/deep; echo sub >/disk/sub/deep/f; echo file >/file"]
  volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}, {name: file, mountPath: /file}]
containers:
- name: reader
  image: BUSYBOX
  env: [{name: WHICH, value: deep}]
  command:
  - sh
  - -c
  - |
    cat /disk/f /memory/f /sub/f /expr/f
    awk '$5 == "/memory" {print $9, $10}' /proc/self/mountinfo | cut -d' ' -f1
    df -k /memory | awk 'END {print $2}'
    touch /disk/no 2>/dev/null || echo read-only
    echo done >/host/result
  volumeMounts:
  - {name: disk, mountPath: /disk, readOnly: true}
  - {name: memory, mountPath: /memory}
  - {name: disk, mountPath: /sub, subPath: sub/deep}
  - {name: disk, mountPath: /expr, subPathExpr: sub/$(WHICH)}
  - {name: host, mountPath: /host}
`)
	p.untilDone("Succeeded")
	p.wantLog("reader", "disk\nmemory\nsub\nsub\ntmpfs\n1024\nread-only\n")
	if got := p.file("result") + p.file("made"); got != "done\nfile\n" {
		t.Errorf("the files on the host are %q", got)
	}
}

func downward(t *testing.T, n *node) {
	p := n.run(t, "downward", `
restartPolicy: Never
volumes:
- name: info
  downwardAPI:
    items:
    - {path: labels, fieldRef: {fieldPath: metadata.labels}}
    - {path: memory, resourceFieldRef: {containerName: a, resource: limits.memory, divisor: 1Mi}}
    - {path: mode, mode: 0400, fieldRef: {fieldPath: metadata.name}}
containers:
- name: a
  image: BUSYBOX
  resources: {limits: {memory: 64Mi, cpu: 250m}}
  env:
  - {name: PLAIN, value: "with 'quotes' $(NAME) $$(NAME) ü"}
  - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: AFTER, value: "is $(NAME)"}
  - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
  - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: COLOUR, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['colour']"}}}
  - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
  - {name: EMPTY, value: ""}
  workingDir: /made/by/the/runtime
  command: [sh, -c]
  args:
  - |
    printf '%s\n' "$PLAIN" "$AFTER" "$NAMESPACE" "$NODE" "$COLOUR" "$CPU" "${EMPTY-unset}" "$PWD" "$0"
    cat /info/labels; echo; cat /info/memory; echo; stat -c %a -L /info/mode
    ip -4 addr show eth0 | grep -q "inet $IP/" && echo own address
  - zero
  volumeMounts: [{name: info, mountPath: /info}]
`, "labels: {app: gantry, tier: test}", "annotations: {colour: blue}")
	p.untilDone("Succeeded")
	p.wantLog("a", strings.Join([]string{"with 'quotes' $(NAME) $(NAME) ü", "is downward-node", "default", nodeName, "blue", "250", "", "/made/by/the/runtime",
		"zero", "app=\"gantry\"\ntier=\"test\"", "64", "400", "own address", ""}, "\n"))
}

// An image is a volume: its files are there, read-only, whole or from a folder on.
func imageVolumes(t *testing.T, n *node) {
	p := n.run(t, "imagevolume", `
volumes: [{name: v, image: {reference: USERS}}]
containers:
- name: a
  image: BUSYBOX
  command: [sh, -c, "grep default-user /v/etc/passwd; grep -c default-user /etc2/group; touch /v/x 2>/dev/null || echo read-only; sleep 1000"]
  volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /etc2, subPath: etc}]
terminationGracePeriodSeconds: 1
`)
	p.untilReady()
	p.wantLog("a", "default-user:x:1000:1000::/home/default-user:/bin/sh\n2\nread-only\n")
}

// The kubelet writes /etc/hosts and passes DNS on; the runtime writes /etc/hostname and /etc/resolv.conf.
func hosts(t *testing.T, n *node) {
	p := n.run(t, "hosts", `
restartPolicy: Never
hostname: chosen
hostAliases: [{ip: 192.0.2.7, hostnames: [alias.example]}]
dnsPolicy: None
dnsConfig: {nameservers: [192.0.2.53], searches: [a.example, b.example], options: [{name: ndots, value: "3"}]}
containers:
- name: a
  image: BUSYBOX
  command: [sh, -c, "hostname; cat /etc/hostname; grep -c 192.0.2.7.alias.example /etc/hosts; grep -c chosen /etc/hosts; cat /etc/resolv.conf"]
`)
	p.untilDone("Succeeded")
	p.wantLog("a", "chosen\nchosen\n1\n1\nsearch a.example b.example\nnameserver 192.0.2.53\noptions ndots:3\n")
}
