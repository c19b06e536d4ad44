#!/usr/bin/env bash
# setup.sh venv    .venv: everything that builds, tests and runs Headway
# setup.sh tools   .venv-otlp and examples/node: what only the tests need
#
# Does nothing where nothing changed since the last time.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/package_sources.sh
source infra/package_sources.sh

python="${PYTHON:-python3.11}"

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# A stamp holds what the installed state was made from. The folder is part of it because
# virtual environments cannot be moved.
digest() { { pwd && sha256sum "$@"; } | sha256sum; }
is_current() { [[ -f "$1" && "$(<"$1")" == "$2" ]]; }

check_python() {
    command -v "$python" >/dev/null || fail "$python not found. Install Python 3.11" \
        "(Debian, Ubuntu: apt install python3.11-venv), or say where it is:" \
        "make setup PYTHON=/path/to/python3.11"
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
        fail "$python is not Python 3.11, for which the lock files are made." \
            "Say where it is: make setup PYTHON=/path/to/python3.11"
}

setup_venv() {
    local stamp=.venv/headway-packages.stamp wanted
    local install=(.venv/bin/uv pip install --python .venv/bin/python --no-deps)
    wanted="$(digest requirements/{bootstrap,cpu,torch}.lock infra/{setup,package_sources}.sh)"
    if ! is_current "$stamp" "$wanted"; then
        check_python
        say "creating .venv (several minutes the first time)"
        # --clear: what a lock file no longer names must not stay.
        "$python" -m venv --clear .venv ||
            fail "$python cannot create virtual environments (Debian, Ubuntu: apt install python3.11-venv)"
        .venv/bin/python -m pip install --quiet --require-hashes -r requirements/bootstrap.lock
        use_package_sources_of_pip .venv/bin/python
        # --compile-bytecode: engines start in half the time; uv writes no .pyc by itself.
        say "installing requirements/cpu.lock"
        "${install[@]}" --compile-bytecode -r requirements/cpu.lock
        say "installing torch for CPUs"
        "${install[@]}" --compile-bytecode "${torch_source[@]}" -r requirements/torch.lock
        printf '%s\n' "$wanted" >"$stamp"
    fi
    stamp=.venv/headway-project.stamp
    wanted="$(digest pyproject.toml requirements/cpu.lock)"
    if ! is_current "$stamp" "$wanted"; then
        "${install[@]}" --quiet --no-build-isolation --editable .
        printf '%s\n' "$wanted" >"$stamp"
    fi
    .venv/bin/python -m compileall -q headway services
    # Half a minute where the planner changed: else the first stack would start that much later.
    .venv/bin/python -m headway.core.planner.warm_up
    .venv/bin/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        say "libnuma.so.1 is missing, without which vLLM does not start on a CPU" \
            "(Debian, Ubuntu: apt install libnuma1)"
    say ".venv is ready"
}

setup_tools() {
    local stamp=.venv-otlp/headway-packages.stamp wanted
    wanted="$(digest requirements/otlp.lock infra/{setup,package_sources}.sh)"
    if ! is_current "$stamp" "$wanted"; then
        say "creating .venv-otlp"
        use_package_sources_of_pip .venv/bin/python
        .venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv-otlp
        .venv/bin/uv pip install --quiet --python .venv-otlp/bin/python --no-deps \
            --compile-bytecode -r requirements/otlp.lock
        printf '%s\n' "$wanted" >"$stamp"
    fi
    command -v npm >/dev/null ||
        fail "npm not found. Install Node.js 20 or newer (the Node client's test needs it)"
    node -e 'process.exit(process.versions.node.split(".")[0] >= 20 ? 0 : 1)' ||
        fail "Node.js $(node --version) is too old: 20 or newer is needed"
    stamp=examples/node/node_modules/headway-packages.stamp
    wanted="$(digest examples/node/package-lock.json)"
    if ! is_current "$stamp" "$wanted"; then
        say "installing the Node client's packages"
        (cd examples/node && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error)
        printf '%s\n' "$wanted" >"$stamp"
    fi
    say "test tools are ready"
}

case "${1:-}" in
venv) setup_venv ;;
tools) setup_tools ;;
*) fail "usage: infra/setup.sh venv|tools" ;;
esac
