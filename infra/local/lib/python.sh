# Python programs that some tests use: an S3 server, and readers of the audit files. Sourced by infra/local/stack.
# shellcheck shell=bash disable=SC2154 # state, root and here are set by the script

# Shared by all state folders, fetched once.
python_tools=$root/.agenthub/tools/python

# Whether the folder holds what the present requirements ask for.
python_is_complete() {
    local wanted
    [[ -x $python_tools/bin/python && -f $python_tools/REQUIREMENTS.sha256 ]] || return 1
    wanted=$(sha256sum <"$here/python/requirements.txt")
    [[ $wanted == "$(<"$python_tools/REQUIREMENTS.sha256")" ]] || return 1
    "$python_tools/bin/python" -c 'import moto, duckdb, pyarrow' 2>/dev/null
}

# Installs them. Without them those tests skip themselves, and say so: this never fails.
install_python() {
    local log=$root/.agenthub/tools/python.log
    ! python_is_complete || return 0
    mkdir -p "${python_tools%/*}"
    exec {python_lock}>>"${python_tools%/*}/python.lock"
    if ! flock -w 600 "$python_lock"; then
        say 'WARNING: another installation of the Python tools has been at work for ten minutes'
    elif ! python_is_complete; then
        say 'installing the Python tools of the tests (an S3 server, DuckDB, pyarrow: about 100 MB)'
        if ! make_python "$log"; then
            rm -rf "$python_tools"
            say "WARNING: no Python tools: the tests with S3, DuckDB and pyarrow will be SKIPPED (log: $log)"
        fi
    fi
    exec {python_lock}>&-
}

make_python() {
    local log=$1
    rm -rf "$python_tools"
    if ! python3 -m venv "$python_tools" >"$log" 2>&1; then
        # Debian ships the module apart; only root can add it.
        if ((EUID != 0)) || ! command -v apt-get >/dev/null; then return 1; fi
        (install_missing python3-venv) >>"$log" 2>&1 || return 1
        python3 -m venv --clear "$python_tools" >>"$log" 2>&1 || return 1
    fi
    "$python_tools/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
        --require-hashes --requirement "$here/python/requirements.txt" >>"$log" 2>&1 || return 1
    sha256sum <"$here/python/requirements.txt" >"$python_tools/REQUIREMENTS.sha256"
}
