#!/usr/bin/env bash
# generate.sh FOLDER   writes into FOLDER all code generated from proto/, for Python
#                      (headway/v1) and for the Node example (examples/node/gen).
set -euo pipefail
output="$(cd "${1:?usage: infra/generate.sh FOLDER}" && pwd)"
cd "$(dirname "$0")/.."

plugin=examples/node/node_modules/.bin/protoc-gen-es
[[ -x $plugin ]] || {
    echo "generate: $plugin not found: run make tools" >&2
    exit 1
}
# protoc looks for its Python plugins on the path.
PATH="$PWD/.venv/bin:$PATH"
protoc() { python -m grpc_tools.protoc -I proto "$@"; }

protoc --python_out="$output" --pyi_out="$output" \
    --grpc_python_out="$output" --mypy_grpc_out="$output" proto/headway/v1/*.proto

# error_details.proto lies in an installed package, beside its Python code.
google_protos="$(python -c 'import pathlib, google.rpc.error_details_pb2 as m
print(pathlib.Path(m.__file__).parents[2])')"
mkdir -p "$output/examples/node/gen"
protoc -I "$google_protos" --plugin="$plugin" \
    --es_out="$output/examples/node/gen" --es_opt=target=js,import_extension=js \
    proto/headway/v1/{inference_service,generation}.proto google/rpc/error_details.proto
