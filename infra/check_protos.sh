#!/usr/bin/env bash
# Style and compatibility of proto/, and that the committed generated code belongs to it.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

say() { printf 'protos: %s\n' "$*"; }

buf lint
buf format --diff --exit-code

# What stands on main is in use; it may grow, not change. main's own newest commit is compared
# with the one before. The base is taken out of git as files: that works alike on a branch, in a
# detached checkout and in a linked worktree.
has_protos() { git cat-file -e "$1:proto" 2>/dev/null && git cat-file -e "$1:buf.yaml" 2>/dev/null; }
main=main
has_protos main || main=origin/main
num_checked=0
for base in "$main" "$main^"; do
    has_protos "$base" || continue
    rm -rf "$work/base" && mkdir "$work/base"
    git archive "$base" proto buf.yaml | tar -x -C "$work/base"
    buf breaking --against "$work/base"
    say "compatible with $base"
    num_checked=$((num_checked + 1))
done
((num_checked)) || say "compatibility not checked: this clone has no main with protos"

# Stale files, of which no proto is left, count as differences too.
mkdir -p "$work/fresh"
infra/generate.sh "$work/fresh" 2>"$work/protoc.log" || {
    cat "$work/protoc.log" >&2
    exit 1
}
is_fresh() { diff -r --brief --exclude=__pycache__ "$@"; }
if is_fresh --exclude=__init__.py "$work/fresh/headway/v1" headway/v1 &&
    is_fresh "$work/fresh/examples/node/gen" examples/node/gen; then
    say "generated code is fresh"
else
    say "generated code does not match proto/: run make proto" >&2
    exit 1
fi
