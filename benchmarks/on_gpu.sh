#!/usr/bin/env bash
# Tests and benchmarks on a machine with a CUDA device, for at most eight minutes:
#   benchmarks/on_gpu.sh [RESULTS]
# RESULTS is the JSON file to write [gpu.json]; its lines are the documents of the benchmarks. PYTHON
# names a Python with PyTorch for CUDA and the packages of `pip install -e .[train] pytest pytest-xdist`.
set -uo pipefail
cd "$(dirname "$0")/.."
results=$(realpath -m "${1:-gpu.json}")
python=${PYTHON:-python3}
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
failed=0
export PYTHONPATH=$PWD

# Run a step for at most some seconds; keep its JSON line, or the fact that it has none.
step() {
    local name=$1 seconds=$2
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" 2>&1 | tee "$log/$name"
    local code=${PIPESTATUS[0]}
    ((code)) && failed=1
    grep '^{' "$log/$name" | tail -n 1 >>"$results.partial" \
        || echo "{\"benchmark\": \"$name\", \"exit_code\": $code}" >>"$results.partial"
}

: >"$results.partial"
step tests 190 "$python" -m pytest -n 0 -q -m gpu -p no:cacheprovider tests/gpu
step train_step 240 "$python" benchmarks/train_step.py --device cuda
step loading 50 "$python" benchmarks/loading.py
mv "$results.partial" "$results"
echo "written: $results"
exit "$failed"
