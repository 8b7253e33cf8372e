#!/bin/sh
# All that needs TensorRT and a GPU, in one go: kernel and plugin tests, export with the parity of
# both forms of the readout and every trunk precision, latency against torch. Run it where
# `brainfast doctor` says that engines can be built.
#
#   benchmarks/tensorrt.sh MODEL_FOLDER [RESULT.json]
set -eu
model=${1:?give a model folder}
result=${2:-$(dirname "$0")/results/tensorrt.json}
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)

"$python" -m brainfast doctor
(cd "$here" && BRAINFAST_REQUIRE_CUDA=1 "$python" -m pytest -q tests/export/test_readout_kernel.py \
    tests/export/test_tensorrt_plugin.py tests/export/test_tensorrt_build.py)
"$python" "$here/benchmarks/tensorrt_latency.py" "$model" "$result"
