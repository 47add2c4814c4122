# Starting, finding and ending processes by name. Sourced by infra/local/stack.
#
# A pid file holds the pid and the start time of the process, so that a pid that the system has given to
# another process is never taken for ours.
# shellcheck shell=bash disable=SC2154 # state, root and here are set by the script

# Names that this command started, in order.
started=()
# Their names by pid.
declare -A child_names=()
# What a process is started through: `dev` sets it so that processes end with their supervisor.
guard=()

# The start time in clock ticks of a process that runs, in REPLY; fails when there is none.
start_time() {
    local stat fields
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # What follows the command's name, which may hold anything: state, ppid, … start time (proc(5), field 22).
    read -ra fields <<<"${stat##*) }"
    [[ ${fields[0]} != [ZX] ]] || return 1
    REPLY=${fields[19]}
}

# The pid of NAME when it runs, in REPLY.
pid_of() {
    local pid time
    { read -r pid time <"$state/run/$1.pid"; } 2>/dev/null || return 1
    start_time "$pid" && [[ $REPLY == "$time" ]] || return 1
    REPLY=$pid
}

runs() { pid_of "$1"; }
has_ended() { ! runs "$1"; }

# spawn NAME COMMAND…: starts the command in a session of its own, so that the terminal's Ctrl-C reaches
# only the supervisor. Its output goes to logs/NAME.log; the log of the run before is kept as NAME.log.1.
spawn() {
    local name=$1 log=$state/logs/$1.log pid
    shift
    mkdir -p "$state/run" "$state/logs"
    [[ ! -s $log ]] || mv "$log" "$log.1"
    setsid "${guard[@]}" "$@" </dev/null >"$log" 2>&1 {state_lock}>&- {port_lock}>&- &
    pid=$!
    started+=("$name")
    # shellcheck disable=SC2034 # read by `dev`
    child_names[$pid]=$name
    # Gone already when it failed at once; the caller's wait then says so.
    start_time "$pid" || REPLY=0
    printf '%s %s\n' "$pid" "$REPLY" >"$state/run/$name.pid"
}

# await NAME MILLISECONDS COMMAND…: waits until the command says that NAME is ready. When NAME dies or is
# late, shows the end of its log and ends the script.
await() {
    local name=$1 limit=$2
    shift 2
    # shellcheck disable=SC2317 # called by wait_until
    ready_or_ended() { has_ended "$name" || "$@"; }
    if wait_until "$limit" ready_or_ended "$@" && runs "$name"; then
        return
    fi
    show_log_end "$name"
    if runs "$name"; then
        die "$name was not ready within $((limit / 1000)) s (log: $state/logs/$name.log)"
    fi
    die "$name ended while it was starting (log: $state/logs/$name.log)"
}

show_log_end() {
    printf -- '--- last lines of %s\n' "$state/logs/$1.log" >&2
    tail -n 15 "$state/logs/$1.log" >&2
}

# terminate MILLISECONDS NAME…: asks all to end at once, waits, and kills what is left at the deadline.
terminate() {
    local limit=$1 name
    shift
    for name in "$@"; do
        ! pid_of "$name" || kill -TERM "$REPLY" 2>/dev/null || true
    done
    for name in "$@"; do
        if ! wait_until "$limit" has_ended "$name" && pid_of "$name"; then
            say "$name did not end within $((limit / 1000)) s, killing it"
            kill -KILL "$REPLY" 2>/dev/null || true
            wait_until 2000 has_ended "$name" || true
        fi
        rm -f "$state/run/$name.pid"
    done
}

# terminate_in_order NAME…: first the intake, then the workers, then what they depend on.
terminate_in_order() {
    local tier name names
    for tier in api worker llm-sim redis kafka; do
        names=()
        for name in "$@"; do
            [[ $(tier_of "$name") != "$tier" ]] || names+=("$name")
        done
        # Longer than the processes' own limit for ending their work (AGENTHUB_DRAIN_MS).
        terminate 20000 "${names[@]}"
    done
}

tier_of() {
    case $1 in
        api | llm-sim | redis | kafka) printf '%s' "$1" ;;
        *) printf worker ;;
    esac
}
