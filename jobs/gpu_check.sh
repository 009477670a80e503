#!/bin/bash
# On a machine with a GPU, within 8 minutes: the tests marked gpu, every tiny configuration on CUDA beside the CPU, half
# precision, and the speed table. Ray is not needed; wheels of packages that the machine lacks, such as FrEIA's, may lie in
# gpu_wheels/.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" OMP_NUM_THREADS=4
if compgen -G "gpu_wheels/*.whl" > /dev/null; then
    python -m pip install --quiet --no-deps --no-index gpu_wheels/*.whl
fi
python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' || exit 2
status=0

echo "== tests marked gpu"
timeout 110 python -m pytest -q -n 0 -p no:cacheprovider -m gpu --ignore=tests/sweep || status=1

echo "== every configuration, small, on CUDA beside the CPU"
timeout 170 python jobs/gpu_agreement.py --seconds 155 || status=1

echo "== some of them in half precision"
for precision in bfloat16 float16; do
    timeout 40 python jobs/gpu_agreement.py padim stfpm fastflow-resnet18 --precision "$precision" || status=1
done

echo "== speed"
timeout 120 python jobs/bench_models.py --device cuda --images 64 --epochs 2 --repeats 1 \
    --models padim patchcore-resnet18 stfpm fastflow-resnet18 || status=1
exit $status
