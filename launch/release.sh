#!/usr/bin/env bash
# Makes the models that come with the package: trains each, measures it, draws
# samples, and writes all of it to releases/NAME with a card. On two CPU cores
# digits_ar takes about five minutes, digits_mar two to three times as long.
#
#   launch/release.sh [NAME...]      digits_ar and digits_mar where none is named
#   NAB=DIR launch/release.sh nab_ar
#
# nab_ar is a model of 14 series; DIR holds them, see docs/series.md.
#
# The runs are kept in runs/release; one that is there goes on, or is used.
# RUNS=DIR keeps them elsewhere, RELEASES=DIR writes the releases elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  -*)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' launch/release.sh
    exit
    ;;
esac
(($#)) || set -- digits_ar digits_mar

# settings NAME: the flags of a model, in arrays.
settings() {
  draw=(--num=60 --guidance=3) write=() made="launch/release.sh $1"
  case $1 in
    digits_ar | digits_mar) config=(--config="configs/digits.py:${1#digits_}") ;;
    nab_ar)
      : "${NAB:?release.sh: set NAB to the folder of the series of nab_ar}"
      config=(--config=configs/series.py --config.model.classes=14
        --config.data.dir="$NAB/*.npz")
      draw=(--num=28) write=(--dtype=bfloat16) made="NAB=DIR $made"
      ;;
    *)
      echo "release.sh: no model '$1': there are digits_ar, digits_mar," \
        "nab_ar" >&2
      return 2
      ;;
  esac
}

for name in "$@"; do settings "$name"; done
source launch/setup.sh

for name in "$@"; do
  settings "$name"
  run=${RUNS:-runs/release}/$name
  release=${RELEASES:-releases}/$name
  echo "== $name: training"
  fractal-jax train "${config[@]}" --workdir="$run"
  echo "== $name: measuring, drawing"
  fractal-jax likelihood --workdir="$run" --out="$run/likelihood.json"
  fractal-jax sample --workdir="$run" "${draw[@]}" --out="$run/samples.png"
  fractal-jax convert --workdir="$run" --out="$release" --license=apache-2.0 \
    --numbers="$run/likelihood.json" --samples="$run/samples.png" \
    --made_by="$made" "${write[@]}"
done
