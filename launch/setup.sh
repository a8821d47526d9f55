# shellcheck shell=bash
# Sourced by the scripts beside it: makes .venv once, installs this checkout
# into it, and activates it. EXTRAS=test, or tfds,movie, adds optional packages.
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "fractal_jax needs Python 3.11 or newer: set PYTHON=python3.11" >&2
  exit 1
fi
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# shellcheck source=/dev/null
source "$venv/bin/activate"
extras=${EXTRAS:-} extras=${extras#[} extras=${extras%]}
extras=${extras:+[$extras]}
stamp=$venv/.installed$extras
if [ ! -e "$stamp" ] || [ setup.cfg -nt "$stamp" ] || [ requirements.txt -nt "$stamp" ]; then
  echo "== Installing into $venv"
  python -m pip install --quiet --disable-pip-version-check -e ".$extras"
  touch "$stamp"
fi
