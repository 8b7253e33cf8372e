#!/bin/sh
# Builds, tests and measures on this machine's GPU, without a network; see benchmarks/README.md.
cd "$(dirname "$0")/.." || exit 1
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
