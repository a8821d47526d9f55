#!/usr/bin/env bash
# Sets up a virtual environment and runs the main job on the embedded digits:
# trains a FractalAR, scores it, samples it. About three minutes on two cores
# after the installation. No network is needed once the packages are there.
#
#   launch/quickstart.sh [WORKDIR]        PYTHON=python3.12 to choose a Python
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  -*)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' launch/quickstart.sh
    exit
    ;;
esac
workdir=${1:-runs/quickstart}

source launch/setup.sh

echo "== Simple baselines, fitted to the same 1500 digits"
python benchmarks/digits_baselines.py --fast

echo "== Training a FractalAR on the digits"
fractal-jax train --config=configs/digits.py --workdir="$workdir"

echo "== Generating digits, a class per column, and a movie of it"
fractal-jax sample --workdir="$workdir" --num=60 \
  --out="$workdir/samples.png" --movie="$workdir/samples.gif"

echo "Everything is in $workdir: samples.png, samples.gif, metrics.jsonl,"
echo "tensorboard/ and checkpoints/. Exact likelihood on the validation split:"
found=$(fractal-jax likelihood --workdir="$workdir")
echo "$found" | sed -n 's/^\(validation bits\/dim: [0-9.]*\).*/\1/p'
