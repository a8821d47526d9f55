#!/usr/bin/env bash
# Makes the models that come with the package: trains each, measures it, draws
# samples, and writes all of it to releases/NAME with a card. On a shared CPU core
# digits_ar takes about three minutes, digits_mar seven.
#
#   launch/release.sh [NAME...]      digits_ar and digits_mar where none is named
#   NAB=DIR launch/release.sh nab_ar
#   EMOJI=DIR launch/release.sh emoji_ar
#
# nab_ar is a model of 14 series; DIR holds them, see docs/series.md. emoji_ar is
# the run of benchmarks/emoji.py --models=ar, of which the best checkpoint goes:
# hours, where RUNS=runs does not have it; its DIR is where
# `npm pack emoji-datasource-google@16.0.0` was run.
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
  draw=(--num=60 --guidance=3) write=(--dtype=bfloat16) pick=
  made="launch/release.sh $1"
  case $1 in
    digits_ar | digits_mar) config=(--config="configs/digits.py:${1#digits_}") ;;
    nab_ar)
      : "${NAB:?release.sh: set NAB to the folder of the series of nab_ar}"
      config=(--config=configs/series.py --config.model.classes=14
        --config.data.dir="$NAB/*.npz")
      draw=(--num=28) made="NAB=DIR $made"
      ;;
    emoji_ar)
      : "${EMOJI:?release.sh: set EMOJI to the folder of the npm package}"
      config=(--config=configs/emoji.py:small --config.data.manual_dir="$EMOJI"
        --config.optim.keep_every=1000)
      draw=(--num=72) write=(--dtype=int8) pick=best
      made="EMOJI=DIR $made"
      ;;
    *)
      echo "release.sh: no model '$1': there are digits_ar, digits_mar," \
        "nab_ar, emoji_ar" >&2
      return 2
      ;;
  esac
}

# best RUN: the step of its checkpoint of the fewest bits/dim.
best() {
  python -c "import pathlib, sys; sys.path.insert(0, 'benchmarks'); import emoji
print(emoji.best_step(pathlib.Path(sys.argv[1])))" "$1"
}

for name in "$@"; do settings "$name"; done
source launch/setup.sh

for name in "$@"; do
  settings "$name"
  run=${RUNS:-runs/release}/$name
  release=${RELEASES:-releases}/$name
  echo "== $name: training"
  fractal-jax train "${config[@]}" --workdir="$run"
  from=(--workdir="$run")
  [ -z "$pick" ] || from+=(--step="$(best "$run")")
  echo "== $name: measuring, drawing"
  fractal-jax likelihood "${from[@]}" --out="$run/likelihood.json"
  fractal-jax sample "${from[@]}" "${draw[@]}" --out="$run/samples.png"
  fractal-jax convert "${from[@]}" --out="$release" --license=apache-2.0 \
    --numbers="$run/likelihood.json" --samples="$run/samples.png" \
    --made_by="$made" "${write[@]}"
done
