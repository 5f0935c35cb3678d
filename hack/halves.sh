#!/usr/bin/env bash
# halves.sh PROGRAM ARGUMENT...: go test's -exec for tests that wait more than they compute: one process runs every second
# test of the program, and another one beside it all the others. With -run there is one process.
#
# What they print comes when both have ended, a failure behind a success. Other ends than a FAIL are said behind all, so
# that again.awk sees them.
set -uo pipefail
program=$1
shift
[[ " $*" != *" -test.run="* ]] || exec "$program" "$@"

tmp=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$tmp"' EXIT
tests=$("$program" -test.list='^Test') || exit 1
half="^($(awk '/^Test/ && n++ % 2 {printf "%s%s", sep, $1; sep = "|"}' <<<"$tests"))\$"
"$program" "$@" -test.run="$half" >"$tmp/run" 2>&1 &
run=$!
"$program" "$@" -test.skip="$half" >"$tmp/skip" 2>&1 &
skip=$!

failed=() died=()
for name in run skip; do
	if wait "${!name}"; then
		cat "$tmp/$name"
		continue
	fi
	failed+=("$tmp/$name")
	[[ $(tail -n 1 "$tmp/$name") == FAIL ]] || died+=("halves.sh: half of the tests ended early")
done
((${#failed[@]})) || exit 0
cat "${failed[@]}"
((!${#died[@]})) || printf '\n%s\n' "${died[@]}"
exit 1
