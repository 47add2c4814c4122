# Kafka and Redis. Sourced by infra/local/stack.
# shellcheck shell=bash disable=SC2154 # state, root and here are set by the script

# Shared by all state folders, fetched once.
kafka_libs=$root/.agenthub/kafka/libs

# install_missing PACKAGE…: installs Debian packages, or says which are needed.
install_missing() {
    local log=$state/logs/apt.log as_root=()
    (($# > 0)) || return 0
    command -v apt-get >/dev/null || die "please install: $*"
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "please install (as root): apt-get install $*"
        as_root=(sudo)
    fi
    say "installing $*"
    mkdir -p "$state/logs"
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y)
    "${apt[@]}" install --no-install-recommends "$@" >"$log" 2>&1 && return
    if "${apt[@]}" update >"$log" 2>&1 && "${apt[@]}" install --no-install-recommends "$@" >>"$log" 2>&1; then
        return
    fi
    die "apt-get could not install $* (no network? log: $log)"
}

# What cargo needs beside Rust: librdkafka is built from source and linked to OpenSSL.
install_build() {
    local missing=()
    command -v cargo >/dev/null || die "no Rust: cargo builds AgentHub (https://rustup.rs)"
    command -v make >/dev/null || missing+=(make)
    command -v g++ >/dev/null || missing+=(g++)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    # Without pkg-config nothing can say whether the headers are there; apt-get knows.
    pkg-config --exists openssl 2>/dev/null || missing+=(libssl-dev)
    install_missing "${missing[@]}"
}

install_services() {
    local version missing=()
    command -v redis-server >/dev/null || missing+=(redis-server)
    install_missing "${missing[@]}"
    command -v java >/dev/null ||
        die "no Java: Kafka needs version 17 or later (apt-get install openjdk-17-jre-headless)"
    version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
    ((${version:-0} >= 17)) || die "Java ${version:-of unknown version} is too old: Kafka needs 17 or later"
    fetch_kafka
}

# Whether the folder holds every file of a fetch that ended, by the present pom.xml.
kafka_is_complete() {
    local pom
    [[ -f $kafka_libs/SHA256SUMS && -f $kafka_libs/POM.sha256 ]] || return 1
    pom=$(sha256sum <"$here/pom.xml")
    [[ $pom == "$(<"$kafka_libs/POM.sha256")" ]] || return 1
    (cd "$kafka_libs" && sha256sum --check --status SHA256SUMS) 2>/dev/null
}

fetch_kafka() {
    local fresh=$kafka_libs.new log=$root/.agenthub/kafka/fetch.log
    ! kafka_is_complete || return 0
    mkdir -p "${kafka_libs%/*}"
    exec {fetch_lock}>>"${kafka_libs%/*}/lock"
    flock -w 600 "$fetch_lock" || die "another fetch of Kafka has been at work for ten minutes"
    if ! kafka_is_complete; then
        command -v mvn >/dev/null || die "no Maven: it fetches Kafka (apt-get install maven)"
        if [[ -d $kafka_libs ]]; then
            say "Kafka's files are incomplete or of another version, fetching them again"
        else
            say "fetching Kafka (about 55 MB)"
        fi
        rm -rf "$fresh"
        if ! mvn -B -ntp -C -f "$here/pom.xml" dependency:copy-dependencies \
            -DincludeScope=runtime -DoutputDirectory="$fresh" >"$log" 2>&1; then
            if grep -Eq 'Could not transfer|Unknown host|Connect(ion)? .*(refused|timed out)|unreachable' "$log"; then
                die "Kafka could not be fetched: Maven's repository is not reached (log: $log)"
            fi
            die "Kafka could not be fetched (log: $log)"
        fi
        (cd "$fresh" && sha256sum -- *.jar >SHA256SUMS)
        sha256sum <"$here/pom.xml" >"$fresh/POM.sha256"
        rm -rf "$kafka_libs"
        mv "$fresh" "$kafka_libs"
    fi
    exec {fetch_lock}>&-
}

# A random UUID as Kafka writes it. It must not start with a hyphen, which a command takes for an option.
cluster_id() { head -c 16 /dev/urandom | base64 | tr '+/' '-_' | cut -c 1-22 | sed 's/^-/A/'; }

start_kafka() {
    local properties config=$state/kafka/server.properties data=$state/kafka/data
    local java=(java -cp "$kafka_libs/*" "-Dlog4j2.configurationFile=$here/kafka/log4j2.properties")
    choose_port kafka 9092 "${STACK_KAFKA_PORT:-}"
    kafka_port=$REPLY
    choose_port kafka-controller 9093
    mkdir -p "$state/kafka" "$state/logs"
    properties=$(<"$here/kafka/server.properties")
    properties=${properties//@CONTROLLER_PORT@/"$REPLY"}
    properties=${properties//@KAFKA_PORT@/"$kafka_port"}
    printf '%s\n' "${properties//@DATA@/"$data"}" >"$config"
    if [[ ! -f $data/meta.properties ]] &&
        ! "${java[@]}" kafka.tools.StorageTool format --cluster-id "$(cluster_id)" --config "$config" \
            >"$state/logs/kafka-format.log" 2>&1; then
        show_log_end kafka-format
        die "Kafka's data folder could not be formatted"
    fi
    spawn kafka "${java[@]}" -Xms128m -Xmx512m -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \
        kafka.Kafka "$config"
}

# A broker accepts connections a little before it serves them.
kafka_is_ready() { grep -qs 'Kafka Server started' "$state/logs/kafka.log" && accepts_connections "$kafka_port"; }

start_redis() {
    choose_port redis 6379 "${STACK_REDIS_PORT:-}"
    redis_port=$REPLY
    mkdir -p "$state/redis"
    # Keys that were made for a data set that is gone would be refused.
    [[ -d $state/redis/appendonlydir ]] || rm -f "$state"/keys/*
    spawn redis redis-server --bind 127.0.0.1 --port "$redis_port" --dir "$state/redis" --daemonize no \
        --appendonly yes --save '' --maxmemory-policy noeviction
}

redis_is_ready() {
    local reply
    # Redis answers LOADING while it reads its append-only file.
    reply=$({
        exec 3<>"/dev/tcp/127.0.0.1/$redis_port" && printf 'PING\r\n' >&3 && timeout 2 head -n 1 <&3
    } 2>/dev/null) || return 1
    [[ $reply == +PONG* ]]
}

# Starts what does not run yet, waits until both are ready and writes services.env.
start_services() {
    lock_ports
    if runs kafka; then remembered_port kafka && kafka_port=$REPLY; else start_kafka; fi
    if runs redis; then remembered_port redis && redis_port=$REPLY; else start_redis; fi
    await redis 30000 redis_is_ready
    await kafka 60000 kafka_is_ready
    unlock_ports
    kafka_brokers=127.0.0.1:$kafka_port
    redis_url=redis://127.0.0.1:$redis_port/
    {
        printf 'export KAFKA_BROKERS=%s\n' "$kafka_brokers"
        printf 'export REDIS_URL=%s\n' "$redis_url"
    } >"$state/services.env.new"
    mv "$state/services.env.new" "$state/services.env"
}
