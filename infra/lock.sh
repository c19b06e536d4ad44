#!/usr/bin/env bash
# Pins every dependency in requirements/. Versions already there are kept while they still
# fit; delete a lock file first to move it to the newest versions.
#
# The files name no package index, so that they install from any mirror.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/package_sources.sh
source infra/package_sources.sh

UV_PIN="uv==0.13.9"
# The test suite's OpenTelemetry backend; its dependencies would clash with ours.
OTLP_PIN="ddapm-test-agent==1.69.1"

compile() {
    local output="requirements/$1.lock"
    shift
    printf 'lock: %s\n' "$output"
    .venv/bin/uv pip compile --quiet --no-header --no-emit-index-url --no-emit-find-links \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --generate-hashes --output-file "$output" "$@"
}

use_package_sources_of_pip .venv/bin/python
# It may hold fewer wheels than the main index, and the hashes of all are wanted.
unset UV_EXTRA_INDEX_URL
# torch stands in a file of its own: its CPU builds come from several places and differ in
# their hashes.
compile cpu pyproject.toml --extra cpu --extra sim --extra dev --no-emit-package torch "${torch_source[@]}"
sed -nE 's/^cpu = .*"(torch==[0-9.]+)".*/\1/p' pyproject.toml >requirements/torch.lock
compile runtime pyproject.toml --constraint requirements/cpu.lock
printf '%s\n' "$UV_PIN" | compile bootstrap -
printf '%s\n' "$OTLP_PIN" | compile otlp -
# A local CPU build of torch would satisfy the GPU extra too.
unset UV_FIND_LINKS
compile gpu pyproject.toml --extra gpu
