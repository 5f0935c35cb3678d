package main

import (
	"testing"

	"github.com/gantry-cri/gantry/cmd/gantry/config"
	"github.com/gantry-cri/gantry/imageservice"
)

// TestDefaultLimits: what `gantry config --default` shows is what is in force
// where nothing is said.
func TestDefaultLimits(t *testing.T) {
	if got := imagesOf(config.Default()).Limits; got != imageservice.DefaultLimits {
		t.Errorf("the configuration has %+v, package imageservice %+v", got, imageservice.DefaultLimits)
	}
}
