# Which tests of a failed run may run once more: of what go test or one test program printed, a line "PACKAGE TEST" for
# each test that failed ("-" where a program does not name its package). The exit status is 1, and nothing is printed,
# if more went wrong than that one to three tests said that they failed: a data race, a package that does not build, a
# process that ended before its tests had.

{ sub(/\r$/, "") }
/DATA RACE/ { wrong = 1 }
/^--- FAIL: / && !seen[$3]++ { test[++tests] = $3 }
/^(ok  |FAIL)\t/ { # the end of a package; FAIL alone is what the testing package itself says when all tests have ended
	if ($1 == "FAIL" && (last != "FAIL" || !tests)) wrong = 1
	take($2)
}
{ last = $0 }

function take(package, i) {
	for (i = 1; i <= tests; i++) again[++count] = package " " test[i]
	tests = 0
	split("", seen)
}

END {
	take("-")
	if (wrong || last != "FAIL" || !count || count > 3) exit 1
	for (i = 1; i <= count; i++) print again[i]
}
