#!/usr/bin/env bash
# Removes what was built: bin/, with the tools. Go's own build cache stays.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf bin
