#!/usr/bin/env bash
# Trains on a GKE cluster that has JobSet 0.8 or newer (xpk makes such ones).
#
#   launch/gke/gke.sh [--dry-run] tpu [--config.mesh.fsdp=16 ...]
#   launch/gke/gke.sh [--dry-run] gpu [--config.mesh.fsdp=8 ...]
#
# Fills in tpu.yaml or gpu.yaml beside it and hands that to kubectl; --dry-run
# prints the manifest. launch/README.md lists the variables.
set -euo pipefail
cd "$(dirname "$0")/../.."
source launch/common.sh
usage_of launch/gke/gke.sh "$@"
if [ "${1:-}" = --dry-run ]; then dry_run=yes; shift; fi
kind=${1:-}
[[ $kind =~ ^(tpu|gpu)$ ]] ||
  fail 'usage: launch/gke/gke.sh [--dry-run] tpu|gpu [flags of fractal-jax train]'
shift

need NAME 'a name for the job' fractal
need IMAGE 'a container image that holds fractal_jax: see launch/gke/Dockerfile' us-docker.pkg.dev/my-project/images/fractal:1
need CONFIG 'the run'\''s config file, in the image' configs/fractalmar_in64.py
need WORKDIR 'a directory that all hosts share, for config, checkpoints and logs' gs://my-bucket/runs/in64
if [ "$kind" = tpu ]; then
  need TPU_ACCELERATOR 'the node label cloud.google.com/gke-tpu-accelerator' tpu-v5-lite-podslice
  need TPU_TOPOLOGY 'chips of a slice: cloud.google.com/gke-tpu-topology' 8x8
else
  need GPU_ACCELERATOR 'the node label cloud.google.com/gke-accelerator' nvidia-h100-80gb
  need HOSTS 'GPU hosts' 4
fi
all_set

# shellcheck disable=SC2153  # checked by need
# The pods' names, which add to this one, may have 63 letters.
[[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "NAME=$NAME must be at most 40 of a-z, 0-9 and -, from a letter on"
NAMESPACE=${NAMESPACE:-default}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
QUEUE=${QUEUE:-multislice-queue} # of Kueue, by xpk; else without effect
GRACE=${GRACE:-120}
MAX_RESTARTS=${MAX_RESTARTS:-20}
whole GRACE
whole MAX_RESTARTS
if [ "$kind" = tpu ]; then
  SLICES=${SLICES:-1}
  CHIPS=${CHIPS:-4}
  whole SLICES
  whole CHIPS
  [[ $TPU_TOPOLOGY =~ ^[0-9]+(x[0-9]+){1,2}$ ]] ||
    fail "TPU_TOPOLOGY=$TPU_TOPOLOGY must be like 8x8 or 4x4x8"
  chips=$((${TPU_TOPOLOGY//x/*}))
  [ "$CHIPS" -gt 0 ] && [ $((chips % CHIPS)) = 0 ] ||
    fail "TPU_TOPOLOGY=$TPU_TOPOLOGY has $chips chips, no multiple of" \
      "CHIPS=$CHIPS, those of a host"
  # shellcheck disable=SC2034  # for the manifest
  HOSTS=$((chips / CHIPS))
else
  GPUS=${GPUS:-8}
  whole GPUS
  whole HOSTS
fi

# Single quotes around a YAML text, doubled inside.
quote() {
  [[ $1 != *$'\n'* ]] || fail "a line break in: $1"
  echo "'${1//"'"/"''"}'"
}

# Flags that are given come later, so that they win.
slices=()
if [ "${SLICES:-1}" -gt 1 ]; then slices=("--config.mesh.slices=$SLICES"); fi
FLAGS=
for flag in train --distributed --config="$CONFIG" --workdir="$WORKDIR" \
  "${slices[@]}" "$@"; do
  FLAGS+="${FLAGS:+, }$(quote "$flag")"
done
FLAGS="[$FLAGS]"
IMAGE=$(quote "$IMAGE")

manifest=$(<"launch/gke/$kind.yaml")
while [[ $manifest =~ \$\{([A-Z_]+)\} ]]; do
  found=${BASH_REMATCH[1]}
  [ -n "${!found:-}" ] || fail "$kind.yaml names $found, which is not set"
  [[ ${!found} != *"\${"* ]] || fail "$found=${!found} must not hold \${"
  manifest=${manifest//"\${$found}"/"${!found}"}
done

if [ "$dry_run" ]; then
  echo "# kubectl apply --filename=- of:"
  echo "$manifest"
else
  kubectl apply --filename=- <<<"$manifest"
  echo "$me: follow it by" >&2
  show kubectl logs --namespace="$NAMESPACE" --follow \
    --selector="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0" >&2
  echo "$me: end it by" >&2
  show kubectl delete jobset "$NAME" --namespace="$NAMESPACE" >&2
fi
