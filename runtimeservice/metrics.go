package runtimeservice

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni"
	"github.com/gantry-cri/gantry/imageservice"
	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// labelKeys are the labels of every series, those that the kubelet gives to the
// series of its cAdvisor: the cgroup, the container's id, its image and name,
// and its pod. A pod's own series have no image and no container; queries that
// add containers up leave those out by that.
var labelKeys = []string{"container", "id", "image", "name", "namespace", "pod"}

// descriptors are the same for the daemon's life: the kubelet asks once.
var descriptors = describe()

func describe() []*runtimeapi.MetricDescriptor {
	var all []*runtimeapi.MetricDescriptor
	for _, s := range series {
		keys := append(append([]string(nil), labelKeys...), s.labels...)
		all = append(all, &runtimeapi.MetricDescriptor{Name: s.name, Help: s.help, LabelKeys: keys})
	}
	return all
}

// ListMetricDescriptors tells the names and labels of all that ListPodSandboxMetrics may tell.
func (s *stats) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: descriptors}, nil
}

// ListPodSandboxMetrics tells what ready pods and their running containers use,
// as of now, in the series of cAdvisor, which the kubelet then shows instead
// of its own. Those that are not known are left out, as is what cannot be read.
func (s *stats) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	log := klog.FromContext(ctx)
	pods, err := s.selectedPods(nil)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, p := range pods {
		if p.own.Net {
			ids = append(ids, p.id)
		}
	}
	network, err := s.networks.Counters(ids)
	if err != nil {
		log.V(2).Info("Network counters of some pods could not be read", "err", err)
	}
	of := make(map[*pod][]*container, len(pods))
	for _, c := range s.index.allContainers(nil) {
		if c.getState() == lifecycle.ContainerRunning {
			of[c.pod] = append(of[c.pod], c)
		}
	}
	fs, err := s.images.Filesystem()
	if err != nil {
		log.V(2).Info("The file system of containers could not be looked at", "err", err)
	}
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	for _, p := range pods {
		m := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.id}
		f, err := s.podFacts(p)
		if err != nil {
			log.V(2).Info("Metrics of a pod could not be read", "podID", p.id, "err", err)
		}
		f.network = network[p.id]
		m.Metrics = f.metrics()
		for _, c := range of[p] {
			f, err := s.containerFacts(c, fs)
			if err != nil {
				log.V(2).Info("Metrics of a container could not be read", "container", c.id, "err", err)
				continue
			}
			m.ContainerMetrics = append(m.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.id, Metrics: f.metrics()})
		}
		resp.PodMetrics = append(resp.PodMetrics, m)
	}
	return resp, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in messages of a bounded size.
func (s *stats) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	all, err := s.ListPodSandboxMetrics(stream.Context(), nil)
	if err != nil {
		return err
	}
	return batches(stream.Context(), all.GetPodMetrics(), func(part []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}

// facts is what is known of one pod or container at one time.
type facts struct {
	labels []string // values of labelKeys
	now    time.Time
	began  int64 // creation of a pod, start of a container, ns

	used *usedNow // nil for a pod without a cgroup of its own

	// Of containers only.
	container bool
	limits    *runtimeapi.LinuxContainerResources
	written   imageservice.Usage      // At is zero while it is not known
	fs        imageservice.Filesystem // that it is written to

	network []cni.Interface // of pods only
}

// usedNow is what a cgroup has used.
type usedNow struct {
	cgroup.Stats
	cgroup.Details
}

func (s *stats) podFacts(p *pod) (facts, error) {
	m := p.config.GetMetadata()
	f := facts{now: time.Now(), began: p.createdAt, labels: []string{"", "", "", "", m.GetNamespace(), m.GetName()}}
	if p.config.GetLinux().GetCgroupParent() == "" { // then its cgroup is everybody's
		f.labels[1] = p.id
		return f, nil
	}
	path, err := cgroupDir(s.node, p.config, "")
	if err != nil {
		return f, err
	}
	f.labels[1] = path
	f.used, err = readUsed(&p.meter, path)
	return f, err
}

func (s *stats) containerFacts(c *container, fs imageservice.Filesystem) (facts, error) {
	cc, m := c.getConfig(), c.pod.config.GetMetadata()
	f := facts{
		now: time.Now(), container: true, limits: cc.GetLinux().GetResources(), fs: fs,
		labels: []string{cc.GetMetadata().GetName(), c.cgroup, c.imageName, c.id, m.GetNamespace(), m.GetName()},
	}
	c.mu.Lock()
	f.began = c.startedAt
	c.mu.Unlock()
	f.written, _ = s.images.Usage(c.id)
	var err error
	f.used, err = readUsed(&c.meter, c.cgroup)
	return f, err
}

func readUsed(m *meter, path string) (*usedNow, error) {
	r, err := m.read(path)
	if err != nil {
		return nil, err
	}
	d, err := cgroup.ReadDetails(path)
	if err != nil {
		return nil, err
	}
	return &usedNow{r.Stats, d}, nil
}

// metrics is the facts as series.
func (f *facts) metrics() []*runtimeapi.Metric {
	all := make([]*runtimeapi.Metric, 0, len(series))
	for i := range series {
		one := &series[i]
		one.values(f, func(value uint64, labels ...string) {
			m := &runtimeapi.Metric{Name: one.name, MetricType: one.kind, LabelValues: f.labels, Value: &runtimeapi.UInt64Value{Value: value}}
			if len(labels) > 0 {
				m.LabelValues = append(f.labels[:len(f.labels):len(f.labels)], labels...)
			}
			if one.remembered {
				m.Timestamp = f.written.At.UnixNano()
			}
			all = append(all, m)
		})
	}
	return all
}
