#!/usr/bin/env bash
# Trains on a TPU pod slice, through gcloud, from any machine that stays on.
#
#   launch/tpu_pod.sh [--dry-run] create      ask for the slice; wait for it
#   launch/tpu_pod.sh [--dry-run] setup       this commit onto all its workers
#   launch/tpu_pod.sh [--dry-run] run [--config.mesh.fsdp=16 ...]
#                                             train on all workers, once
#   launch/tpu_pod.sh [--dry-run] restart [--config.mesh.fsdp=16 ...]
#                                             all of the above, and again after
#                                             each preemption, until it is done
#   launch/tpu_pod.sh [--dry-run] logs        of the last run, followed, of
#                                             worker 0 (WORKER=3, WORKER=all)
#   launch/tpu_pod.sh [--dry-run] stop        end training; it saves
#   launch/tpu_pod.sh [--dry-run] status      of the slice
#   launch/tpu_pod.sh [--dry-run] delete      the slice
#
# `restart` is the one to use. launch/README.md lists the variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
usage_of launch/tpu_pod.sh "$@"
if [ "${1:-}" = --dry-run ]; then dry_run=yes; shift; fi

job=${1:-}
case $job in
  create | setup | run | restart | logs | stop | status | delete) shift ;;
  *) fail 'usage: launch/tpu_pod.sh [--dry-run]' \
    'create|setup|run|restart|logs|stop|status|delete [flags of fractal-jax train]' ;;
esac
case $job in
  run | restart) ;;
  *) [ $# = 0 ] || fail "$job takes no arguments, but got: $*" ;;
esac

need NAME 'a name for the slice' fractal
need PROJECT 'the Google Cloud project' my-project
need ZONE 'the zone of the slice' us-west4-a
case $job in
  create | restart)
    need ACCELERATOR 'the type of the slice' v5litepod-64
    need RUNTIME 'the software on its machines' v2-alpha-tpuv5-lite
    ;;
esac
case $job in
  run | restart)
    need CONFIG 'the run'\''s config file' configs/fractalmar_in64.py
    need WORKDIR 'a directory that all workers share, for config, checkpoints and logs' gs://my-bucket/runs/in64
    ;;
esac
all_set
QUEUED=${QUEUED:-yes}
[[ $QUEUED =~ ^(yes|no)$ ]] || fail "QUEUED=$QUEUED must be yes or no"
MAX_RESTARTS=${MAX_RESTARTS:-20}
RESTART_PAUSE=${RESTART_PAUSE:-30}
POLL=${POLL:-30} # seconds between looks at a slice that is being made
whole POLL
read -ra create_flags <<<"${CREATE_FLAGS:-}"
worker=${WORKER:-0}
[[ $worker =~ ^([0-9]+|all)$ ]] || fail "WORKER=$worker must be a number or all"
extras=$(extras tpu)
commit=
case $job in
  setup | restart)
    commit=$(git rev-parse HEAD) || fail 'setup sends a commit: no git here'
    git diff --quiet HEAD ||
      echo "$me: uncommitted changes stay here; ${commit:0:7} is sent" >&2
    ;;
esac
where=(--project="$PROJECT" --zone="$ZONE")
tpus=(gcloud compute tpus)

# Empty if there is no such slice.
state() {
  if [ "$QUEUED" = yes ]; then
    run "${tpus[@]}" queued-resources list "${where[@]}" \
      --filter="name ~ /$NAME\$" --format='value(state.state)'
  else
    run "${tpus[@]}" tpu-vm list "${where[@]}" \
      --filter="name ~ /$NAME\$" --format='value(state)'
  fi
}

ask() {
  if [ "$QUEUED" = yes ]; then
    run "${tpus[@]}" queued-resources create "$NAME" --node-id="$NAME" \
      "${where[@]}" --accelerator-type="$ACCELERATOR" \
      --runtime-version="$RUNTIME" "${create_flags[@]}"
  else
    run "${tpus[@]}" tpu-vm create "$NAME" "${where[@]}" \
      --accelerator-type="$ACCELERATOR" --version="$RUNTIME" \
      "${create_flags[@]}"
  fi
}

delete() {
  if [ "$QUEUED" = yes ]; then
    run "${tpus[@]}" queued-resources delete "$NAME" "${where[@]}" \
      --force --quiet
  else
    run "${tpus[@]}" tpu-vm delete "$NAME" "${where[@]}" --quiet
  fi
}

# Asks for the slice if there is none, or what there is was preempted, and
# waits until it can be used.
create() {
  local now before=new
  if [ "$dry_run" ]; then
    state
    echo "# nothing: ask. Preempted or failed: delete it, then ask"
    ask
    echo "# every $POLL s its state again, until it is ready"
    return
  fi
  while true; do
    now=$(state) || return
    [ "$now" = "$before" ] || echo "$me: $NAME: ${now:-not there}" >&2
    before=$now
    case $now in
      ACTIVE | READY) return ;;
      '') ask || return ;;
      FAILED | SUSPENDED | PREEMPTED | TERMINATED | STOPPED)
        delete || return
        ;;
      *) sleep "$POLL" ;; # waiting, provisioning, repairing, going away
    esac
  done
}

# on WORKER COMMAND: a worker's number, or all.
on() {
  run "${tpus[@]}" tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2"
}

# The commit that was checked out here at the start.
setup() {
  local archive=/tmp/fractal_jax-$NAME.tar.gz
  run git archive --format=tar.gz --output="$archive" "$commit" || return
  run "${tpus[@]}" tpu-vm scp "$archive" "$NAME:fractal_jax.tar.gz" \
    "${where[@]}" --worker=all || return
  on all "mkdir -p fractal_jax && \
tar -xzf fractal_jax.tar.gz -C fractal_jax && \
EXTRAS='$extras' fractal_jax/launch/worker.sh setup"
}

# The same ID for every worker, and for gcloud's own second try on a broken
# connection, which then finds training under way and follows it.
train() {
  local id command
  id=$(date +%Y%m%d-%H%M%S)-$RANDOM
  [ -z "$dry_run" ] || id=ID
  command="cd fractal_jax && launch/worker.sh start $id env JAX_PLATFORMS=tpu \
.venv/bin/fractal-jax $(show train --distributed --config="$CONFIG" \
  --workdir="$WORKDIR" "$@")"
  on all "$command"
}

logs() {
  on "$worker" 'fractal_jax/launch/worker.sh logs'
}

stop() {
  on all 'fractal_jax/launch/worker.sh stop'
}

attempt() {
  create && setup && train "$@"
}

case $job in
  run) train "$@" ;;
  restart)
    # shellcheck disable=SC2034  # read by restarting: gcloud's ssh ends too
    signal_group=-
    restarting attempt "$@" || {
      code=$?
      echo "$me: the slice is still there, and may still train: see" \
        "launch/tpu_pod.sh stop and delete" >&2
      exit "$code"
    }
    ;;
  status) state ;;
  *) "$job" ;;
esac
