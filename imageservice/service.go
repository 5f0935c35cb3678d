package imageservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/imageservice/internal/flight"
	"github.com/gantry-cri/gantry/imageservice/internal/meta"
	"github.com/gantry-cri/gantry/imageservice/internal/overlay"
	"github.com/gantry-cri/gantry/imageservice/internal/registry"
	"github.com/gantry-cri/gantry/imageservice/internal/tree"
	"github.com/gantry-cri/gantry/imageservice/internal/verify"
)

// Config is fixed for the life of a Service.
type Config struct {
	// Root holds everything durable: layers, metadata, writable layers. One
	// Service may have it open at a time. Created with mode 0700 if absent.
	Root string
	// RunDir is where container root file systems are mounted, below
	// RunDir/<containerID>, which is closed to others. Created if absent, with
	// mode 0711: the roots of user namespaces pass it.
	RunDir string
	// HostsDirs are directories in the certs.d convention; for each registry
	// host the first directory with an entry for it (or _default) is used.
	HostsDirs []string
	// MaxDownloads is how many layers are fetched and unpacked at a time,
	// over all pulls. 0 means 6.
	MaxDownloads int
	// ProgressTimeout fails a pull that waits this long for one byte of a
	// registry. 0 means one minute.
	ProgressTimeout time.Duration
	// KeepLayerBlobs keeps the compressed blob of every layer beside it.
	KeepLayerBlobs bool
	// LayerRanges is how many parts of one large layer are asked for at a
	// time. 0 means 1, a single stream.
	LayerRanges int
	// Pinned are patterns (`*` matches any text) of image tags reported as
	// pinned, which the kubelet never collects.
	Pinned []string
	// ShortNames is the registry of names without one; "none" refuses such
	// names, "" means docker.io.
	ShortNames string
	// DockerConfig is a file in the form of Docker's config.json, with
	// credentials for pulls that bring none and of mirrors. "" and an absent
	// file: none.
	DockerConfig string
	// Handlers are the names that ImageSpec.runtime_handler may have in a pull,
	// besides ""; all of them take the same images.
	Handlers []string
	// PreloadDir has image archives that Open loads. "" and absent: none.
	PreloadDir string
	Verify     Verify
	Limits     Limits
}

// Verify is the programs that must agree to an image before it is unpacked.
type Verify struct {
	// BinDir is where they are. "", absent and empty: every image is right.
	BinDir string
	// MaxPrograms refuses every image when there are more.
	MaxPrograms int
	// Timeout is of one program. 0 means ten seconds.
	Timeout time.Duration
}

// Image is an image on this node: all its layers are unpacked and verified.
type Image struct {
	// ID is the digest of the image config, `sha256:<hex>`.
	ID string
	// RepoTags and RepoDigests are the full names, sorted; docker.io is spelt.
	RepoTags, RepoDigests []string
	// Size is the disk space of the unpacked layers in bytes, never 0.
	Size uint64
	// Config is what the image says about its process. Not to be modified.
	Config ocispec.ImageConfig
	// Pinned says that a pattern of Config.Pinned matches one of its tags.
	Pinned bool
}

// Usage is what a container has written to its root file system.
type Usage struct {
	Bytes, Inodes uint64
	At            time.Time
}

// Service is the ImageService. All methods may be called concurrently.
type Service struct {
	runtimeapi.UnimplementedImageServiceServer
	cfg       Config
	log       klog.Logger
	meta      *meta.Store
	registry  registry.Client
	verifiers verify.Programs
	mounter   overlay.Mounter
	slots     slots // of MaxDownloads

	// What is under way: a reference with its credentials asked of the
	// registry, an image fetched (by id), a layer fetched (by diffID). Each
	// starts the next.
	pulls     flight.Group[*image]
	downloads flight.Group[*image]
	fetches   flight.Group[*storedLayer]
	progress  progress

	stop      context.Context // ends with Close; not one of a request
	cancel    context.CancelFunc
	work      sync.WaitGroup // pulls and the goroutines below
	reclaim   chan struct{}  // wakes the one that finds what nobody needs
	discarded chan struct{}  // wakes the one that deletes
	pulled    chan struct{}  // wakes the one that gives memory back
	measure   chan struct{}  // wakes the one that measures

	// change is held while metadata and layer directories change, through
	// disk writes. Taken before mu.
	change sync.Mutex

	// mu guards what is in memory and is never held over a disk access.
	mu         sync.RWMutex
	closed     bool
	images     map[string]*image
	names      map[string]string // tags and digests → image id
	layers     map[string]*storedLayer
	idle       []*storedLayer                  // have been at no references; may be again in use
	parked     map[digest.Digest]*fetched      // to be claimed, by diffID
	claims     map[digest.Digest]chan struct{} // being completed, by chainID
	waiting    int                             // bytes of memory of both
	containers map[string]*container
	old        map[string][]string // see oldMounts; written by recover alone
	named      map[string]bool     // keys that containers were found to be made of; the same
	used       Usage               // of all layers
	temps      uint64
}

// Directories beneath Root.
const (
	layersDir     = "layers"     // <key>/fs, and <key>/blob if kept
	tmpDir        = "tmp"        // what pulls are writing
	trashDir      = "trash"      // what is being deleted
	containersDir = "containers" // <id>/{layers,upper,work}
	emptyDir      = "empty"      // stays empty
)

// Open makes the Service of cfg.Root and repairs what a crash has left there.
// A damaged record or metadata file is set aside and logged, never an error.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.MaxDownloads <= 0 {
		cfg.MaxDownloads = 6
	}
	if cfg.ProgressTimeout <= 0 {
		cfg.ProgressTimeout = time.Minute
	}
	cfg.Limits = cfg.Limits.orDefault()
	if err := checkShortNames(cfg.ShortNames); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(cfg.Root) || !filepath.IsAbs(cfg.RunDir) {
		return nil, fmt.Errorf("root %q and run directory %q of images must be absolute: %w", cfg.Root, cfg.RunDir, errdefs.ErrInvalidArgument)
	}
	for dir, mode := range map[string]os.FileMode{cfg.Root: 0o700, cfg.RunDir: 0o711} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making image directory: %w", err)
		}
		if err := restrict(dir, mode); err != nil { // layers have setuid files
			return nil, err
		}
	}
	for _, dir := range []string{layersDir, tmpDir, trashDir, containersDir, emptyDir} {
		if err := os.Mkdir(filepath.Join(cfg.Root, dir), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("making image directory: %w", err)
		}
	}
	if err := errors.Join(tree.Spread(filepath.Join(cfg.Root, tmpDir)), tree.Spread(filepath.Join(cfg.Root, containersDir))); err != nil {
		return nil, err
	}
	s := &Service{
		cfg:        cfg,
		log:        klog.FromContext(ctx),
		registry:   registry.Client{HostsDirs: cfg.HostsDirs, DockerConfig: cfg.DockerConfig, ProgressTimeout: cfg.ProgressTimeout, Ranges: cfg.LayerRanges},
		slots:      slots{free: cfg.MaxDownloads},
		reclaim:    make(chan struct{}, 1),
		discarded:  make(chan struct{}, 1),
		pulled:     make(chan struct{}, 1),
		progress:   progress{enough: make(chan struct{}, 1)},
		measure:    make(chan struct{}, 1),
		images:     make(map[string]*image),
		names:      make(map[string]string),
		layers:     make(map[string]*storedLayer),
		parked:     make(map[digest.Digest]*fetched),
		claims:     make(map[digest.Digest]chan struct{}),
		containers: make(map[string]*container),
		named:      make(map[string]bool),
	}
	s.verifiers = verify.Programs{Dir: cfg.Verify.BinDir, Max: cfg.Verify.MaxPrograms, Timeout: cmp.Or(cfg.Verify.Timeout, 10*time.Second)}
	s.fetches.Drop = s.dropFetched
	if err := s.recover(); err != nil {
		if s.meta != nil {
			err = errors.Join(err, s.meta.Close())
		}
		return nil, err
	}
	s.stop, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.work.Go(s.reclaimLoop)
	s.work.Go(s.trashLoop)
	s.work.Go(s.writeBackLoop)
	s.work.Go(s.afterPulls)
	s.work.Go(s.measureLoop)
	s.work.Go(s.preload)
	wake(s.reclaim)
	wake(s.discarded)
	return s, nil
}

// Close stops pulls and background work, and waits for them. Mounted root
// file systems stay mounted.
func (s *Service) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	s.cancel()
	s.work.Wait()
	return s.meta.Close()
}

// begin ties a piece of work to the life of the Service. ctx ends with Close,
// which waits for done to be called.
func (s *Service) begin(ctx context.Context) (_ context.Context, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, fmt.Errorf("image service is shutting down: %w", errdefs.ErrUnavailable)
	}
	s.work.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	detach := context.AfterFunc(s.stop, func() {
		cancel(fmt.Errorf("image service is shutting down: %w", errdefs.ErrUnavailable))
	})
	return ctx, func() { detach(); cancel(nil); s.work.Done() }, nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is awake already
	}
}

// Mountpoint is the directory of the file system that usage figures are of.
func (s *Service) Mountpoint() string { return s.cfg.Root }

func (s *Service) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Root}, parts...)...)
}

// restrict is chmod, which a read-only disk refuses even if it changes nothing.
func restrict(dir string, mode os.FileMode) error {
	if info, err := os.Stat(dir); err == nil && info.Mode().Perm() == mode {
		return nil
	}
	return os.Chmod(dir, mode)
}

// unique names something that is in tmp or trash for a while.
func (s *Service) unique() string {
	s.mu.Lock()
	s.temps++
	n := s.temps
	s.mu.Unlock()
	return fmt.Sprintf("%d-%d", time.Now().UnixNano(), n)
}

// discard moves a directory out of the way at once and has it deleted later.
// Absent is nil.
func (s *Service) discard(path string) error {
	err := os.Rename(path, s.path(trashDir, s.unique()))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("discarding: %w", err)
	}
	wake(s.discarded)
	return nil
}
