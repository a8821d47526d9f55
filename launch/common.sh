# shellcheck shell=bash
# Sourced by the launchers beside it: variables that must be set, --help,
# --dry-run, and starting again after a preemption.
me=${0##*/}
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "$me: bash $BASH_VERSION is too old: 4.4 is needed" >&2
  exit 2
fi
dry_run=
unset_names=

# need NAME 'what it is' 'an example': checked together by all_set.
need() {
  [ -z "${!1:-}" ] || return 0
  echo "$me: $1 is not set: $2. For example:  export $1=$3" >&2
  unset_names=yes
}

all_set() {
  [ -z "$unset_names" ] || exit 2
}

fail() {
  echo "$me: $*" >&2
  exit 2
}

# usage_of FILE ARGUMENT...: with --help among the arguments, prints what stands
# at the top of FILE and ends.
usage_of() {
  local argument
  for argument in "${@:2}"; do
    case $argument in
      --help | --helpshort | --helpfull | -h)
        sed -n '2,/^[^#]/{/^#SBATCH/d;s/^# \{0,1\}//p;}' "$1"
        exit
        ;;
    esac
  done
}

# extras NAME...: optional packages for pip: these, those of EXTRAS (tfds, or
# tfds,movie, in brackets or not), and what a WORKDIR in a bucket needs.
extras() {
  local given=${EXTRAS:-} all
  given=${given#[} given=${given%]}
  [[ $given =~ ^([a-z0-9_]+(,[a-z0-9_]+)*)?$ ]] ||
    fail "EXTRAS=$EXTRAS must be names with commas between, like tfds,movie"
  all=("$@")
  [[ ${WORKDIR:-} != gs://* ]] || all+=(gcs)
  [ -z "$given" ] || all+=("$given")
  local IFS=,
  [ -z "${all[*]}" ] || echo "[${all[*]}]"
}

# whole NAME: the variable must be a whole number.
whole() {
  [[ ${!1} =~ ^[0-9]+$ ]] || fail "$1=${!1} must be a whole number"
}

# show COMMAND...: prints it, quoted where a shell needs that.
show() {
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[[:alnum:]_@%+=:,./-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

# run COMMAND...: or, under --dry-run, print it.
run() {
  if [ "$dry_run" ]; then show "$@"; else "$@"; fi
}

# Whether a run that ended with this exit code is worth starting again. `train`
# ends with 75 once it has saved after SIGTERM; 2 is a user's error, 130 a
# user's Ctrl-C, 141 an output that nobody reads, 126 and 127 a command that
# can't be run. The rest are crashes and signals, of this host or of another one.
worth_restarting() {
  case $1 in
    0 | 2 | 126 | 127 | 130 | 141) return 1 ;;
    *) return 0 ;;
  esac
}

# restarting COMMAND...: runs it, and again while that is worth it, at most
# MAX_RESTARTS times, RESTART_PAUSE seconds apart. SIGTERM, SIGHUP and Ctrl-C
# reach the command as SIGTERM, so that it saves; nothing is restarted then.
# signal_group=- before it sends them to the command's children too.
restarting() {
  local restarts=0 code pid='' told_to_stop='' group=${signal_group:-}
  whole MAX_RESTARTS
  whole RESTART_PAUSE
  if [ "$dry_run" ]; then
    if [ "$(type -t "$1")" = function ]; then "$@"; else show "$@"; fi
    echo "# again after exit code 75, a signal or a crash, at most" \
      "$MAX_RESTARTS times, $RESTART_PAUSE s apart; not after 0 or 2"
    return
  fi
  trap 'told_to_stop=yes; kill -TERM -- "$group$pid" 2>/dev/null || true' \
    TERM HUP INT
  while true; do
    set -m # a process group of its own, which Ctrl-C doesn't reach
    "$@" </dev/null &
    pid=$!
    set +m
    # A trapped signal interrupts `wait`: hence until the process is gone.
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done
    wait "$pid" && code=0 || code=$?
    if [ "$told_to_stop" ] || ! worth_restarting "$code"; then break; fi
    if [ "$restarts" -ge "$MAX_RESTARTS" ]; then
      echo "$me: exit code $code after $restarts restarts; giving up" \
        "(MAX_RESTARTS=$MAX_RESTARTS)" >&2
      break
    fi
    restarts=$((restarts + 1))
    echo "$me: exit code $code; restart $restarts of at most" \
      "$MAX_RESTARTS in $RESTART_PAUSE s" >&2
    sleep "$RESTART_PAUSE"
    if [ "$told_to_stop" ]; then break; fi
  done
  trap - TERM HUP INT
  return "$code"
}
