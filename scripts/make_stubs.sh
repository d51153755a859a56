#!/usr/bin/env bash
# Generate the protobuf and gRPC stubs from proto/ into a folder (wormfs/rpc/v1 by default).
# `--check` compares instead, and fails when the stubs in the tree are stale.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
target=wormfs/rpc/v1
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
"$python" -m grpc_tools.protoc -Iproto --python_out="$made" --pyi_out="$made" --grpc_python_out="$made" proto/wormfs/v1/*.proto
sed -i -E 's/^from wormfs\.v1 import/from wormfs.rpc.v1 import/' "$made"/wormfs/v1/*.py "$made"/wormfs/v1/*.pyi
if [ "${1:-}" = --check ]; then
  for file in "$made"/wormfs/v1/*; do
    cmp -s "$file" "$target/$(basename "$file")" || { echo "stale: $target/$(basename "$file"): run 'make proto'" >&2; exit 1; }
  done
else
  cp "$made"/wormfs/v1/* "$target"/
fi
