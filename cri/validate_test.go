package cri

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func goodPod() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web-0", Namespace: "default", Uid: "2f0c-1", Attempt: 3},
		Hostname:     "web-0",
		LogDirectory: "/var/log/pods/default_web-0_2f0c-1",
		Labels:       map[string]string{"any/../thing": "\x00\n"},
	}
}

func goodContainer() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "nginx"},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:abc"},
		LogPath:  "nginx/0.log",
	}
}

func TestValidate(t *testing.T) {
	pod := func(change func(*runtimeapi.PodSandboxConfig)) any {
		c := goodPod()
		change(c)
		return &runtimeapi.RunPodSandboxRequest{Config: c}
	}
	ctr := func(change func(*runtimeapi.ContainerConfig)) any {
		c := goodContainer()
		change(c)
		return &runtimeapi.CreateContainerRequest{PodSandboxId: "x", Config: c, SandboxConfig: goodPod()}
	}
	for _, tt := range []struct {
		req  any
		want []string // in the error; none: no error
	}{
		{pod(func(*runtimeapi.PodSandboxConfig) {}), nil},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid, c.Hostname, c.LogDirectory = "", "", "" }), nil},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "/var/log/" }), nil},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("a", 50) + ".some.domain" }), nil},
		{&runtimeapi.RunPodSandboxRequest{}, []string{"config is required"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }), []string{"config.metadata is required"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "" }), []string{"config.metadata.name is required"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "a/b" }), []string{"config.metadata.name", `"a/b"`}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "a\x00b" }), []string{"config.metadata.name", `"a\x00b"`}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "a\nb" }), []string{"config.metadata.name"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = ".." }), []string{"config.metadata.name", `".."`}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "-rf" }), []string{"config.metadata.name"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = strings.Repeat("x", 254) }), []string{"253 bytes"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = "ä" }), []string{"config.metadata.namespace", `"ä"`}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "../x" }), []string{"config.metadata.uid"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a_b..c" }), []string{"config.hostname"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 64) }), []string{"config.hostname", "63"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("x.", 40) + "x" }), []string{"config.hostname", "64"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a b" }), []string{"config.hostname"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "logs" }), []string{"config.log_directory", `"logs"`, "absolute"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "/var/../etc" }), []string{"config.log_directory"}},
		{pod(func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "/var//log" }), []string{`"/var/log"`}},
		{&runtimeapi.RunPodSandboxRequest{Config: goodPod(), RuntimeHandler: "../runc"}, []string{"runtime_handler"}},

		{ctr(func(*runtimeapi.ContainerConfig) {}), nil},
		{ctr(func(c *runtimeapi.ContainerConfig) { c.LogPath = "" }), nil},
		{ctr(func(c *runtimeapi.ContainerConfig) { c.LogPath = "a/../../b" }), []string{"config.log_path", `"a/../../b"`}},
		{ctr(func(c *runtimeapi.ContainerConfig) { c.LogPath = "/etc/passwd" }), []string{"config.log_path", "relative"}},
		{ctr(func(c *runtimeapi.ContainerConfig) { c.LogPath = "a/" }), []string{"config.log_path", "file"}},
		{ctr(func(c *runtimeapi.ContainerConfig) { c.LogPath = "." }), []string{"config.log_path", "file"}},
		{ctr(func(c *runtimeapi.ContainerConfig) { c.LogPath = "a\nb" }), []string{"config.log_path"}},
		{ctr(func(c *runtimeapi.ContainerConfig) { c.LogPath = strings.Repeat("x", 256) }), []string{"255"}},
		{ctr(func(c *runtimeapi.ContainerConfig) { c.Image = nil }), []string{"config.image.image is required"}},
		{ctr(func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }), []string{"config.metadata is required"}},
		{&runtimeapi.CreateContainerRequest{Config: goodContainer()}, []string{"pod_sandbox_id is required"}},
		{&runtimeapi.CreateContainerRequest{PodSandboxId: "x"}, []string{"config is required"}},
		{&runtimeapi.CreateContainerRequest{PodSandboxId: "x", Config: goodContainer()}, nil},

		{&runtimeapi.StopContainerRequest{ContainerId: "x", Timeout: -1}, []string{"timeout", "-1"}},
		{&runtimeapi.RemoveContainerRequest{ContainerId: strings.Repeat("x", 257)}, []string{"container_id", "256"}},
		{&runtimeapi.RemoveContainerRequest{ContainerId: "no/such"}, nil}, // NotFound is the service's answer
		{&runtimeapi.ExecSyncRequest{ContainerId: "x"}, []string{"cmd is required"}},
		{&runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"a", "b\x00"}}, []string{"cmd[1]", "NUL"}},
		{&runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"a", ""}}, nil},
		{&runtimeapi.ExecRequest{ContainerId: "x", Cmd: []string{"a"}}, []string{"stdin"}},
		{&runtimeapi.ExecRequest{ContainerId: "x", Cmd: []string{"a"}, Tty: true, Stderr: true}, []string{"tty"}},
		{&runtimeapi.AttachRequest{ContainerId: "x", Stdout: true}, nil},
		{&runtimeapi.PortForwardRequest{PodSandboxId: "x", Port: []int32{80, 0}}, []string{"port[1] 0"}},
		{&runtimeapi.CheckpointContainerRequest{ContainerId: "x", Location: "x.tar"}, []string{"location"}},
		{&runtimeapi.PullImageRequest{}, []string{"image.image is required"}},
		{&runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "busybox"}}, nil},
		{&runtimeapi.ListContainersRequest{}, nil},
		{&runtimeapi.VersionRequest{}, nil},
	} {
		err := validate(tt.req)
		if len(tt.want) == 0 {
			if err != nil {
				t.Errorf("%v: %v", tt.req, err)
			}
			continue
		}
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v, want invalid argument", tt.req, err)
			continue
		}
		for _, part := range tt.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("error %q does not say %q", err, part)
			}
		}
	}
}

// requests are one of each that validate knows.
func requests() []proto.Message {
	return []proto.Message{
		&runtimeapi.RunPodSandboxRequest{}, &runtimeapi.StopPodSandboxRequest{}, &runtimeapi.CreateContainerRequest{},
		&runtimeapi.StopContainerRequest{}, &runtimeapi.ExecSyncRequest{}, &runtimeapi.ExecRequest{}, &runtimeapi.AttachRequest{},
		&runtimeapi.PortForwardRequest{}, &runtimeapi.CheckpointContainerRequest{}, &runtimeapi.CheckpointPodRequest{},
		&runtimeapi.RestorePodRequest{}, &runtimeapi.PullImageRequest{}, &runtimeapi.ImageStatusRequest{},
		&runtimeapi.UpdateContainerResourcesRequest{}, &runtimeapi.UpdatePodSandboxResourcesRequest{},
	}
}

// FuzzValidate takes what can come over the wire. What passes holds what the
// services rely on, what does not is refused in a short text.
func FuzzValidate(f *testing.F) {
	for i, m := range []proto.Message{
		&runtimeapi.RunPodSandboxRequest{Config: goodPod()},
		&runtimeapi.CreateContainerRequest{PodSandboxId: "x", Config: goodContainer()},
		&runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"true"}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8([]int{0, 2, 4}[i]), b)
	}
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		all := requests()
		req := all[int(kind)%len(all)]
		if proto.Unmarshal(raw, req) != nil {
			return
		}
		_ = subjects(req, nil)
		if err := validate(req); err != nil {
			if text := err.Error(); !errdefs.IsInvalidArgument(err) || len(text) > 2048 || !utf8.ValidString(text) || strings.ContainsAny(text, "\n\x00") {
				t.Errorf("error %q", text)
			}
			return
		}
		switch r := req.(type) {
		case *runtimeapi.RunPodSandboxRequest:
			m := r.GetConfig().GetMetadata()
			for _, s := range []string{m.GetName(), m.GetNamespace(), m.GetUid(), r.GetRuntimeHandler(), r.GetConfig().GetHostname()} {
				if strings.ContainsAny(s, "/\x00\n ") || strings.Contains(s, "..") {
					t.Errorf("name %q passes", s)
				}
			}
			if dir := r.GetConfig().GetLogDirectory(); dir != "" && (dir[0] != '/' || slices.Contains(strings.Split(dir, "/"), "..")) {
				t.Errorf("log_directory %q passes", dir)
			}
		case *runtimeapi.CreateContainerRequest:
			if p := r.GetConfig().GetLogPath(); strings.HasPrefix(p, "/") || slices.Contains(strings.Split(p, "/"), "..") || strings.ContainsRune(p, 0) {
				t.Errorf("log_path %q passes", p)
			}
		}
	})
}
