#!/usr/bin/env bash
# On one worker of a pod, over a connection that may break:
#
#   launch/worker.sh setup                 installs this checkout, for TPUs, with
#                                          a Python of its own: that of the
#                                          machine is too old
#   launch/worker.sh start ID COMMAND...   starts COMMAND, once for each ID;
#                                          prints its log to its end and exits
#                                          with its exit code
#   launch/worker.sh logs                  the log of the last start, followed to
#                                          its end
#   launch/worker.sh stop                  ends what was started: SIGTERM, and
#                                          after GRACE seconds SIGKILL
#
# A broken connection leaves COMMAND running; `start` with the same ID follows
# it again. With a new ID it first stops what is left of the others.
set -euo pipefail
runs=${RUNS:-$HOME/.fractal_jax_runs}

alive() {
  local run=$1
  [ ! -e "$run/code" ] && [ -e "$run/pid" ] &&
    kill -0 "$(cat "$run/pid")" 2>/dev/null
}

setup() {
  cd "$(dirname "$0")/.."
  if [ ! -x .venv/bin/python ]; then
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python=3.12 .venv
  fi
  export PYTHON=.venv/bin/python EXTRAS=${EXTRAS:-tpu}
  source launch/setup.sh
}

stop() {
  local run signal=TERM
  for ((i = 0; i < ${GRACE:-120}; i++)); do
    local any=
    for run in "$runs"/*/; do
      if alive "$run"; then
        any=yes
        [ -z "$signal" ] || kill -TERM "$(cat "$run/pid")" || true
      fi
    done
    signal=
    [ "$any" ] || return 0
    sleep 1
  done
  for run in "$runs"/*/; do
    if alive "$run"; then kill -KILL "$(cat "$run/pid")" || true; fi
  done
}

start() {
  local run=$runs/$1
  shift
  mkdir -p "$runs"
  if [ ! -e "$run" ]; then
    stop
    mkdir "$run"
    : >"$run/log"
    # shellcheck disable=SC2016  # $1 and $@ are the inner shell's
    setsid nohup bash -c 'run=$1; shift
      "$@" & echo $! >"$run/pid"
      wait $! && code=0 || code=$?
      echo "$code" >"$run/code.new"; mv "$run/code.new" "$run/code"' \
      bash "$run" "$@" >"$run/log" 2>&1 </dev/null &
    while [ ! -e "$run/pid" ]; do sleep 0.1; done
  fi
  tail -n +1 -f --pid="$(cat "$run/pid")" "$run/log"
  # The code is written just after the end; never, if the host went down.
  for ((i = 0; i < 50; i++)); do
    [ ! -e "$run/code" ] || exit "$(cat "$run/code")"
    sleep 0.1
  done
  echo "worker.sh: run ${run##*/} was lost" >&2
  exit 1
}

logs() {
  local run last=
  for run in "$runs"/*/; do
    if [ -e "$run/log" ] && { [ -z "$last" ] || [ "$run" -nt "$last" ]; }; then
      last=$run
    fi
  done
  if [ -z "$last" ]; then
    echo "worker.sh: nothing was started here yet" >&2
    exit 1
  fi
  if alive "$last"; then
    tail -n +1 -f --pid="$(cat "$last/pid")" "$last/log"
  else
    cat "$last/log"
  fi
}

case ${1:-} in
  setup | start | logs | stop) "$@" ;;
  *)
    echo 'usage: launch/worker.sh setup | start ID COMMAND... | logs | stop' >&2
    exit 2
    ;;
esac
