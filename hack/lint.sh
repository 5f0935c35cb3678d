#!/usr/bin/env bash
# gofmt, go vet and staticcheck (its version is pinned in hack/tools/go.mod); needs nothing but Go.
set -euo pipefail
cd "$(dirname "$0")/.."

unformatted=$(git ls-files --cached --others --exclude-standard '*.go' | xargs -r gofmt -l)
if [[ -n $unformatted ]]; then
	echo "not formatted (run: gofmt -w FILE):" "$unformatted" >&2
	exit 1
fi
go vet ./...
go tool -modfile=hack/tools/go.mod staticcheck ./...
