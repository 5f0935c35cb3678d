// Guards shows that every security test can fail: it takes one guard after the other out of the product and demands
// that the test that is there for it notices.
//
// The records are the *.txt files here, blocks of five lines with an empty line between them:
//
//	id: 2.1-symlink-parent
//	file: imageservice/internal/layer/tree.go
//	old: <part of one source line, found once in the file>
//	new: <what takes its place, such that it still compiles>
//	test: ./imageservice/internal/layer TestSecurity/2.1-symlink-parent
//
// A line of # is a comment. Nothing is written to the tree: the changed file is laid over the real one by go test's
// -overlay. It is not part of make test, since every record compiles packages anew; run it as root with
//
//	go run ./test/guards [part of an id]...
//
// TestRecords, which is part of make test, keeps the records from going out of date.
package main
