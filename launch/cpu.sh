#!/usr/bin/env bash
# Trains on one machine's CPU.
#
#   CONFIG=configs/digits.py WORKDIR=runs/digits launch/cpu.sh [--dry-run]
#     [--config.optim.steps=10 ...]
#
# The same command again goes on from the last checkpoint. launch/README.md
# lists the variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
usage_of launch/cpu.sh "$@"
if [ "${1:-}" = --dry-run ]; then dry_run=yes; shift; fi

need CONFIG 'the run'\''s config file' configs/digits.py
need WORKDIR 'the directory of config, checkpoints and logs' runs/digits
all_set
MAX_RESTARTS=${MAX_RESTARTS:-3}
RESTART_PAUSE=${RESTART_PAUSE:-10}

# shellcheck disable=SC2119  # no extra of its own
extras=$(extras)
run export EXTRAS="$extras"
run source launch/setup.sh
run export JAX_PLATFORMS=cpu
restarting fractal-jax train --config="$CONFIG" --workdir="$WORKDIR" "$@"
