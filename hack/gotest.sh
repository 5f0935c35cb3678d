#!/usr/bin/env bash
# gotest.sh ARGUMENT...: go test. Arguments that do not begin with "-" are packages, so flags take their value after "=".
#
# One to three tests that failed run once more, each alone, when all others have ended. If they pass then, the exit
# status is 0, and the last lines, "FLAKY: ...", name the tests and what they said when they failed. That is no excuse
# for a test: the machine may have been busy, or a race may have lost what a user cares for; it is to be mended. A data
# race, a panic, a test that hangs or a package that does not build fails at once, and so do four tests (again.awk).
#
# What failed is printed behind all the rest, or with "once: " before each line if it has passed since.
set -uo pipefail
hack=$(dirname "$(realpath "$0")")
source "$hack/lib.sh"

flags=() packages=()
for arg; do
	if [[ $arg == -* ]]; then flags+=("$arg"); else packages+=("$arg"); fi
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go test "${flags[@]}" "${packages[@]}" 2>&1 </dev/null | tee "$tmp/out" |
	sed -u -e '/^ *--- FAIL: /,/^ok  \t/{/^ok  \t/!{' -e "w $tmp/held" -e 'd' -e '}}' && exit # Debian's awk waits for 4 KiB

# again PACKAGE TEST: a test that is skipped, or is not there, has not passed.
again() {
	echo "=== once more, alone: $1 $2" >&2
	go test "${flags[@]}" -count=1 -v -run="^$2\$" "$1" >"$tmp/again" 2>&1 </dev/null &&
		grep -aq "^--- PASS: $2 " "$tmp/again" && ! grep -aq 'DATA RACE' "$tmp/again"
}

if tests=$(awk -f "$hack/again.awk" "$tmp/out"); then
	while read -r package test; do
		again "$package" "$test" || {
			cat "$tmp/held" "$tmp/again"
			exit 1
		}
	done <<<"$tests"
	sed 's/^/once: /' "$tmp/held"
	flaky "$tests" "$tmp/out"
else
	cat "$tmp/held"
	exit 1
fi
