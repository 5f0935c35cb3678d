// Package hostile makes images that want out: tars with names, links, devices, attributes and sizes that no honest
// builder writes, for tests of everything that reads layers.
//
// Cases lists what SECURITY.md's section 2.1 and the rows of published vulnerabilities ask for, as layers of a few
// kilobytes each; Canary is the tree beside the layer's directory that they aim at and that must not change. What is
// dangerous by its size alone (bombs.go) is made while it is read.
package hostile
