#!/usr/bin/env bash
# Everything that needs a GPU to be shown, in at most 8 minutes on one: writes docs/results/gpu.md.
# Usage: benchmarks/gpu_check.sh [--tiny], from the root of the repository, with the environment's python first on PATH.
set -euo pipefail
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}" HF_HUB_OFFLINE=1
exec python -m benchmarks.gpu_check "$@"
