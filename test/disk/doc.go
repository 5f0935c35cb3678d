// Package disk makes small file systems for tests that fill them, take them away, or cut them off.
package disk
