# Messages, deadlines and ports. Sourced by infra/local/stack.
# shellcheck shell=bash disable=SC2154 # state, root and here are set by the script

# Prints a line for the person who started the stack. A terminal that is gone is no error.
say() { printf '%s\n' "$*" 2>/dev/null || true; }

# Prints why the command cannot go on, and ends it.
die() {
    printf 'stack: %s\n' "$*" >&2 2>/dev/null || true
    exit 1
}

# Milliseconds since the epoch, in REPLY.
now_ms() { REPLY=$((${EPOCHREALTIME/[.,]/} / 1000)); }

# wait_until MILLISECONDS COMMAND…: polls the command until it succeeds; fails at the deadline.
wait_until() {
    local deadline
    now_ms
    deadline=$((REPLY + $1))
    shift
    until "$@"; do
        now_ms
        ((REPLY < deadline)) || return 1
        sleep 0.05
    done
}

# Whether something listens on a TCP port, on any address.
port_in_use() {
    local hex
    printf -v hex '%04X' "$1"
    grep -Eqs "^ *[0-9]+: [0-9A-F]+:$hex [0-9A-F]+:[0-9A-F]{4} 0A" /proc/net/tcp /proc/net/tcp6
}

accepts_connections() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Whether GET PATH on a loopback port answers 200 within two seconds.
answers_ok() {
    local port=$1 path=$2
    # shellcheck disable=SC2016 # expanded by the inner shell
    timeout 2 bash -c '
        exec 3<>"/dev/tcp/127.0.0.1/$0" || exit 1
        printf "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" "$1" >&3
        read -r _ status _ <&3 && [[ $status == 200 ]]
    ' "$port" "$path" 2>/dev/null
}

# The port that this state folder remembers for NAME, in REPLY; empty when there is none.
remembered_port() {
    local name port
    REPLY=
    [[ -f $state/ports ]] || return 0
    while IFS='=' read -r name port; do
        [[ $name != "$1" ]] || REPLY=$port
    done <"$state/ports"
}

remember_port() {
    { grep -sv "^$1=" "$state/ports" || true; printf '%s=%s\n' "$1" "$2"; } >"$state/ports.new"
    mv "$state/ports.new" "$state/ports"
}

# choose_port NAME PREFERRED [WANTED]: sets REPLY to the port given by the user, else to the one that was
# chosen before, else to the first free one from PREFERRED on.
choose_port() {
    local name=$1 port=$2 wanted=${3:-}
    if [[ -n $wanted ]]; then
        if [[ ! $wanted =~ ^[0-9]{1,5}$ ]] || ((wanted < 1 || wanted > 65535)); then
            die "$name: $wanted is not a port"
        fi
        ! port_in_use "$wanted" || die "$name: port $wanted is in use by another program"
        remember_port "$name" "$wanted"
        REPLY=$wanted
        return
    fi
    remembered_port "$name"
    if [[ -n $REPLY ]]; then
        port_in_use "$REPLY" || return 0
        say "$name: port $REPLY is now in use by another program, taking another one"
    fi
    while port_in_use "$port" || grep -qs "=$port\$" "$state/ports"; do
        ((++port < 65536)) || die "$name: no free port"
    done
    remember_port "$name" "$port"
    REPLY=$port
}

# Held from the choice of ports until their owners listen, so that two stacks never choose the same.
lock_ports() {
    exec {port_lock}>>"${XDG_RUNTIME_DIR:-/tmp}/agenthub-stack-ports.$UID"
    flock -w 120 "$port_lock" || die "another stack has been starting for two minutes"
}
unlock_ports() { exec {port_lock}>&-; }

# One start or stop at a time in a state folder.
lock_state() {
    mkdir -p "$state"
    exec {state_lock}>>"$state/lock"
    flock -n "$state_lock" || die "another start or stop is at work in $state"
}
unlock_state() { exec {state_lock}>&-; }
