#!/usr/bin/env bash
# Trains on all GPUs of one host (CUDA 12; CUDA_VISIBLE_DEVICES takes fewer).
#
#   CONFIG=configs/fractalmar_in64.py WORKDIR=runs/in64 launch/gpu.sh
#     [--dry-run] [--config.mesh.fsdp=8 ...]
#
# The same command again goes on from the last checkpoint. launch/README.md
# lists the variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
usage_of launch/gpu.sh "$@"
if [ "${1:-}" = --dry-run ]; then dry_run=yes; shift; fi

need CONFIG 'the run'\''s config file' configs/fractalmar_in64.py
need WORKDIR 'the directory of config, checkpoints and logs' runs/in64
all_set
MAX_RESTARTS=${MAX_RESTARTS:-3}
RESTART_PAUSE=${RESTART_PAUSE:-10}

extras=$(extras cuda)
run export EXTRAS="$extras"
run source launch/setup.sh
run export JAX_PLATFORMS=cuda # an error, rather than a slow run on the CPU
run python -c 'import jax; print(jax.devices())' ||
  fail 'JAX sees no GPU here: compare nvidia-smi; launch/cpu.sh needs none'
restarting fractal-jax train --config="$CONFIG" --workdir="$WORKDIR" "$@"
