#!/usr/bin/env bash
# Sets up a virtual environment and runs the tests, two at a time, on the CPU.
#
#   launch/test.sh [pytest arguments]     PYTHON=python3.12 to choose a Python
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS='[test]'
source launch/setup.sh
exec python -m pytest -q -n 2 --dist=loadfile --no-loadscope-reorder "$@"
