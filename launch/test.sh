#!/usr/bin/env bash
# Sets up a virtual environment and runs the tests, two at a time, on the CPU.
#
#   launch/test.sh [pytest arguments]     all of them, as CI does
#   launch/test.sh --quick [arguments]    those of tests/quick.txt: what to run
#                                         while working; installs little
#
# PYTHON=python3.12 chooses a Python.
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS='[test]' tests=()
if [ "${1:-}" = --quick ]; then
  EXTRAS='[dev]' tests=(@tests/quick.txt)
  shift
fi
source launch/setup.sh
exec python -m pytest -q -n 2 --dist=loadfile --no-loadscope-reorder "${tests[@]}" "$@"
