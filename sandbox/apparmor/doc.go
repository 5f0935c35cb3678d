// Package apparmor loads Gantry's default AppArmor profile into the kernel and
// tells which profiles are loaded.
//
// The profile is one for the whole machine and stays loaded when the daemon
// ends, for containers run on under it; instances of Gantry beside each other
// share it, and each start replaces it by what that build carries. It is
// compiled by apparmor_parser(8), which a machine with AppArmor has: the
// kernel takes compiled policy only.
package apparmor
