#!/usr/bin/env bash
# Runs every fuzz target of the module, or those whose name matches the regular expression in $1, for FUZZTIME
# (30s) each. Fails on a finding, whose input go test leaves in the package's testdata/fuzz. What the fuzzer learns
# is kept in Go's build cache and serves the next run.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
source hack/lib.sh

time=${FUZZTIME:-30s}
work=$(mktemp -d -p /dev/shm gantry-fuzz.XXXXXX) || exit 1 # targets that write files do so in memory
trap 'rm -rf "$work"' EXIT

# targets: "package target" lines. go list finds the packages that have some, so that only those are compiled.
targets() {
	local package
	go list -f '{{$p := .}}{{range .TestGoFiles}}{{$p.Dir}}/{{.}} {{$p.ImportPath}}
{{end}}{{range .XTestGoFiles}}{{$p.Dir}}/{{.}} {{$p.ImportPath}}
{{end}}' ./... | while read -r file package; do
		[[ -n $file ]] && grep -q '^func Fuzz' "$file" && echo "$package"
	done | sort -u | while read -r package; do
		go test -list '^Fuzz' "$package" | awk -v p="$package" '/^Fuzz/ {print p, $1}'
	done
}

failed=0 ran=0
while read -r package target; do
	[[ $target =~ ${1:-.} ]] || continue
	((++ran))
	start=$SECONDS result=passed
	TMPDIR=$work go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1x "$package" \
		>"$work/log" 2>&1 || result=FAILED failed=1
	execs=$(grep -o 'execs: [0-9]*' "$work/log" | tail -n 1)
	printf '%-7s %4d s  %-20s %s %s\n' $result $((SECONDS - start)) "${execs:-}" "${package#github.com/gantry-cri/gantry/}" "$target"
	[[ $result == passed ]] || cat "$work/log"
done < <(targets)
((ran)) || die "no fuzz target matches ${1:-.}"
exit $failed
