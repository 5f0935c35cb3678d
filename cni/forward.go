package cni

import "github.com/gantry-cri/gantry/cni/internal/nft"

// ForwardDrop is a chain that drops packets from or to pods, and no part of Gantry.
type ForwardDrop = nft.ForwardDrop

// ForwardDrops lists the chains of this network namespace that drop what the node forwards from or to the pods on a
// bridge: no rule of Gantry's own table can overrule another table's drop.
func ForwardDrops(bridge string) ([]ForwardDrop, error) { return nft.ForwardDrops(bridge) }
