# AgentHub's own processes: building, settings, keys, start. Sourced by infra/local/stack.
# shellcheck shell=bash disable=SC2154 # state, root and the services' addresses are set elsewhere

# Sets bin, the folder of the binaries, and builds them unless STACK_BIN names ready-made ones.
build_binaries() {
    local profile=${PROFILE:-release} target
    if [[ -n ${STACK_BIN:-} ]]; then
        bin=$(cd "$STACK_BIN" 2>/dev/null && pwd) || die "STACK_BIN: no folder $STACK_BIN"
        return
    fi
    install_build
    target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    bin=$target/$profile
    # Cargo keeps what its dev profile builds in a folder of another name.
    [[ $profile != dev ]] || bin=$target/debug
    cargo build --locked --profile "$profile" --bins || die "the build failed"
}

# make_secret NAME: makes a ring with one random key once.
make_secret() {
    local file=$state/secrets/$1
    [[ ! -s $file ]] || return 0
    (
        umask 077
        mkdir -p "$state/secrets"
        printf 'local:%s' "$(head -c 32 /dev/urandom | base64)" >"$file.new"
    )
    mv "$file.new" "$file"
}

# Sets app_env, what every process and the command line are given. The environment's own settings pass
# through, but for those that say where the local stack is.
prepare_environment() {
    make_secret signing_secrets
    make_secret master_keys
    # The form is the same: any 32 bytes are an Ed25519 private key.
    make_secret audit_signing_key
    app_env=(
        -u AGENTHUB_SIGNING_SECRETS -u AGENTHUB_MASTER_KEYS -u AGENTHUB_AUDIT_SIGNING_KEY
        "AGENTHUB_SIGNING_SECRETS_FILE=$state/secrets/signing_secrets"
        "AGENTHUB_MASTER_KEYS_FILE=$state/secrets/master_keys"
        "AGENTHUB_AUDIT_SIGNING_KEY_FILE=$state/secrets/audit_signing_key"
        "KAFKA_BROKERS=$kafka_brokers" "REDIS_URL=$redis_url"
        "AGENTHUB_STORAGE_URL=$state/storage" "AGENTHUB_CACHE_DIR=$state/cache/agenthub"
    )
}

agenthub() { env "${app_env[@]}" "$bin/agenthub" "$@"; }

# Runs one of agenthub's commands out of the person's sight; shows what it printed when it fails.
agenthub_quietly() {
    local log=$state/logs/agenthub.log
    if ! agenthub "$@" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        die "agenthub $1 $2 failed (log: $log)"
    fi
}

# start_app NAME BINARY PREFERRED_PORT WANTED_PORT VARIABLE|--OPTION…: starts it unless it runs. A process whose
# binary was built anew is started again. REPLY is its port.
start_app() {
    local name=$1 binary=$2 preferred=$3 wanted=$4 port address variable settings=() arguments=()
    shift 4
    apps+=("$name")
    if pid_of "$name"; then
        if [[ $(readlink "/proc/$REPLY/exe") != *' (deleted)' ]]; then
            remembered_port "$name"
            return
        fi
        say "$name: its binary is new, starting it again"
        terminate 15000 "$name"
    fi
    [[ -x $bin/$binary ]] || die "no executable $bin/$binary"
    choose_port "$name" "$preferred" "$wanted"
    port=$REPLY
    address=127.0.0.1:$port
    for variable in "$@"; do
        case $variable in
            --*) arguments+=("$variable" "$address") ;;
            *) settings+=("$variable=$address") ;;
        esac
    done
    spawn "$name" env "${app_env[@]}" "AGENTHUB_CACHE_DIR=$state/cache/$name" "${settings[@]}" "$bin/$binary" "${arguments[@]}"
    REPLY=$port
}

start_apps() {
    local i name
    apps=()
    model="${OPENAI_BASE_URL:-https://api.openai.com/v1}"
    lock_ports
    if [[ -z ${OPENAI_API_KEY:-} && -z ${OPENAI_BASE_URL:-} ]]; then
        # The simulator has one address, for its API and its probes.
        start_app llm-sim agenthub-llm-sim 8090 '' --addr
        model="http://127.0.0.1:$REPLY/v1 (agenthub-llm-sim, a simulator: set OPENAI_API_KEY for a real one)"
        app_env+=("OPENAI_BASE_URL=http://127.0.0.1:$REPLY/v1" OPENAI_API_KEY=llm-sim)
    fi
    start_app audit-rollup agenthub-audit-rollup 8091 '' AGENTHUB_PROBE_ADDR
    start_app dlq agenthub-dlq 8092 '' AGENTHUB_PROBE_ADDR
    for ((i = 1; i <= ${EXECUTORS:-1}; i++)); do
        start_app "executor-$i" agenthub-executor 8093 '' AGENTHUB_PROBE_ADDR
    done
    for ((i = 1; i <= ${PLANNERS:-1}; i++)); do
        start_app "planner-$i" agenthub-planner 8094 '' AGENTHUB_PROBE_ADDR
    done
    start_app api agenthub-api 8080 "${STACK_API_PORT:-}" AGENTHUB_API_ADDR
    url=http://127.0.0.1:$REPLY
    for name in "${apps[@]}"; do
        remembered_port "$name"
        await "$name" 30000 answers_ok "$REPLY" /readyz
    done
    unlock_ports
}

# make_key ROLE: sets REPLY to the API key of the role, which is made once.
make_key() {
    local file=$state/keys/$1.json
    if [[ ! -s $file ]]; then
        (
            umask 077
            mkdir -p "$state/keys"
            agenthub keys create --tenant demo --role "$1" --name "local-$1" --json >"$file.new"
        ) || die "agenthub keys create failed"
        mv "$file.new" "$file"
    fi
    REPLY=$(sed -n 's/.*"api_key" *: *"\([^"]*\)".*/\1/p' "$file")
    [[ -n $REPLY ]] || die "$file holds no api_key"
}

# The public part of the key that signs the audit manifests, for whoever verifies them.
write_audit_public_key() {
    local file=$state/secrets/audit_public_keys
    agenthub audit public-key >"$file.new" || die "agenthub audit public-key failed"
    mv "$file.new" "$file"
}

# What scripts and the command line need in order to speak to this stack.
write_env() {
    local file=$state/env
    make_key admin
    admin_key=$REPLY
    make_key client
    client_key=$REPLY
    write_audit_public_key
    (
        umask 077
        {
            echo '# Written by infra/local/stack, to be sourced.'
            export_line AGENTHUB_URL "$url"
            export_line AGENTHUB_API_KEY "$client_key"
            export_line AGENTHUB_CLIENT_KEY "$client_key"
            export_line AGENTHUB_ADMIN_KEY "$admin_key"
            export_line AGENTHUB_BIN "$bin"
            export_line KAFKA_BROKERS "$kafka_brokers"
            export_line REDIS_URL "$redis_url"
            export_line AGENTHUB_SIGNING_SECRETS_FILE "$state/secrets/signing_secrets"
            export_line AGENTHUB_MASTER_KEYS_FILE "$state/secrets/master_keys"
            export_line AGENTHUB_AUDIT_SIGNING_KEY_FILE "$state/secrets/audit_signing_key"
            export_line AGENTHUB_AUDIT_PUBLIC_KEYS_FILE "$state/secrets/audit_public_keys"
            export_line AGENTHUB_STORAGE_URL "$state/storage"
            export_line AGENTHUB_CACHE_DIR "$state/cache/agenthub"
        } >"$file.new"
    )
    mv "$file.new" "$file"
}

export_line() { printf 'export %s=%q\n' "$1" "$2"; }

# The project's own documents are the sample corpus.
add_documents() {
    [[ ! -d $root/docs ]] || agenthub_quietly docs add --tenant demo "$root/docs"
}

print_welcome() {
    local source_path=$state/env
    [[ $source_path != "$root"/* ]] || source_path=${source_path#"$root/"}
    cat <<END

AgentHub is ready.
  API          $url   (reference: $url/docs)
  model        $model
  Kafka        $kafka_brokers
  Redis        $redis_url
  admin key    $admin_key
  client key   $client_key
  logs         $state/logs

Try next:
  source $source_path
  \$AGENTHUB_BIN/agenthub run "Get ROAS for advertiser 123 over 7 days"
  curl -s \$AGENTHUB_URL/v1/tools -H "Authorization: Bearer \$AGENTHUB_CLIENT_KEY"

END
}
