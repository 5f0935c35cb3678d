// Package config is Gantry's configuration: one TOML file, drop-ins beside it,
// flags over both.
//
//	/etc/gantry/config.toml        may be missing; a file named by --config may not
//	/etc/gantry/config.toml.d/     *.toml in the order of their names, each over what came before
//
// A later file changes the keys that it has: tables are merged, lists are
// replaced. An unknown key is an error with its file and line. Keys that stay
// unset follow others: socket from run, supervisor from the place of gantry's
// own binary, runtimes from what is installed. [Load] settles all of them, so
// that what [Config.Print] writes, read again, is the same configuration.
package config
