// Package selinux gives containers and their files SELinux labels. It draws a
// pod's labels with a level that no other pod has, derives those of containers
// from them, and labels files.
//
// Which labels containers have on this node is the policy's word
// (contexts/lxc_contexts, or container-selinux's). A label is
// USER:ROLE:TYPE[:LEVEL]; the level of a container is a pair of categories,
// and what has another pair can be neither read nor signalled.
package selinux
