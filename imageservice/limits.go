package imageservice

import (
	"cmp"

	"github.com/gantry-cri/gantry/imageservice/internal/manifest"
	"github.com/gantry-cri/gantry/imageservice/internal/overlay"
)

// Limits bound what comes from a registry or an archive. A field of 0 means
// the one of DefaultLimits.
type Limits struct {
	// ManifestSize is of a manifest, an index or a config, in bytes.
	ManifestSize int64
	IndexDepth   int
	Layers       int
	LayerEntries int64 // files and directories of one layer
	LayerSize    int64 // of one layer's tar, in bytes
	LayerRatio   int64 // of tar to blob, above a tar of 1 GiB
}

// DefaultLimits are more than any image is known to need.
var DefaultLimits = Limits{
	ManifestSize: 4 << 20,
	IndexDepth:   3,
	Layers:       overlay.MaxLayers,
	LayerEntries: 4 << 20,
	LayerSize:    256 << 30,
	LayerRatio:   200,
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits
	return Limits{
		ManifestSize: cmp.Or(l.ManifestSize, d.ManifestSize),
		IndexDepth:   cmp.Or(l.IndexDepth, d.IndexDepth),
		Layers:       min(cmp.Or(l.Layers, d.Layers), overlay.MaxLayers),
		LayerEntries: cmp.Or(l.LayerEntries, d.LayerEntries),
		LayerSize:    cmp.Or(l.LayerSize, d.LayerSize),
		LayerRatio:   cmp.Or(l.LayerRatio, d.LayerRatio),
	}
}

func (s *Service) manifestLimits() manifest.Limits {
	return manifest.Limits{Size: s.cfg.Limits.ManifestSize, Layers: s.cfg.Limits.Layers}
}
