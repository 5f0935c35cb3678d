// Package arch tests the repository's own rules: who may import whom, which outside modules are used at all, that
// every package says what it is, that the tables of docs/ are complete and name tests that exist. A rule here is a
// decision about the design; it is not changed to make a build pass. The package holds tests only.
package arch
