# What failed, of the output of go test, of hack/test-vm.sh (each line behind its package's name) or of another program,
# in at most 12 lines: CI shows little more than the end of a log. First what says that a process died, then each failed
# test with its own messages; without any, the last lines that do not tell of success.
#
# A test that passed when it was run again (hack/gotest.sh) is not of them.
#
# With -v messages come before the line that says that a test failed, else behind it.

function cut(s) { return length(s) > 240 ? substr(s, 1, 240) "..." : s }
function message(s) { return s ~ /^ +[A-Za-z0-9_]+_test\.go:[0-9]+: / }

# note keeps a message of test n: the first three, and the last.
function note(n, s) {
	if (notes[n] < 4) notes[n]++
	text[n, notes[n]] = s
}

/^(once|FLAKY): / { next }

{
	line = $0
	sub(/\r$/, "", line)
	prefix = ""
	if (match(line, /^[a-z][a-z0-9\/-]*: /)) {
		prefix = substr(line, 1, RLENGTH)
		line = substr(line, RLENGTH + 1)
	}
	# A line of the guest's tests begins with the package's folder; another program's own name is no prefix.
	if (prefix == "panic: " || prefix == "fatal error: ") { line = prefix line; prefix = "" }
	full = prefix line
}

line ~ /^=== (RUN|NAME|CONT)/ || line ~ /^ *--- PASS: / { verbose[prefix] = 1 }
line ~ /^=== RUN/ || line ~ /^--- (PASS|SKIP): / { held[prefix] = 0; current[prefix] = 0 }

line ~ /^ *--- FAIL: / {
	failed++
	fail[failed] = prefix line
	if (line ~ /^--- /) { # a test's own and its subtests' messages, if they came before
		for (i = 1; i <= held[prefix]; i++) note(failed, hold[prefix, i])
		held[prefix] = 0
	}
	current[prefix] = verbose[prefix] || prefix != "" ? 0 : failed
	next
}

message(line) {
	if (current[prefix]) note(current[prefix], full)
	else hold[prefix, ++held[prefix]] = full
	next
}

# A process that died; a program of ours or the compiler that gave up; the guest's own words.
line ~ /^(panic: |fatal error: |WARNING: DATA RACE|\t\tTest[^ ]* \([0-9ms.]+\)$|FAIL\t.*\[(build|setup) failed\])/ ||
	full ~ /^[a-z-]+\.sh: / || full ~ /^[A-Za-z0-9_\/.-]+\.go:[0-9]+(:[0-9]+)?: / || full ~ /Kernel panic|^@@ .*exit status ([2-9]|1[0-9])/ {
	if (died < 6) dead[++died] = full
	crashed = crashed || full !~ /^[a-z-]+\.sh: / # which says no more than that something failed
	next
}

full !~ /^ *$|^(ok|PASS|FAIL|\?|=== |--- |@@)|--- PASS|--- SKIP|no test files|^\[ *[0-9]+\.[0-9]+\] / { rest[++others % 12] = full }

END {
	room = 12 - died
	if (!failed && !crashed) for (i = (others > room ? others - room : 0) + 1; i <= others; i++) print cut(rest[i % 12])
	for (i = 1; i <= died; i++) print cut(dead[i])
	shown = failed < room ? failed : room
	for (each = 4; each > 0; each--) { # as many messages of each as there is room for
		sum = 0
		for (n = 1; n <= shown; n++) sum += notes[n] < each ? notes[n] : each
		if (sum <= room - shown) break
	}
	for (n = 1; n <= shown; n++) {
		print cut(fail[n])
		for (i = 1; i < each && i < notes[n]; i++) print cut(text[n, i])
		if (each && notes[n]) print cut(text[n, notes[n]]) # the last one always
	}
	if (failed > shown) print "and " failed - shown " more"
}
