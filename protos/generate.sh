#!/usr/bin/env bash
# Writes the Python stubs of every .proto into DIRECTORY (default: the repository's root).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
output=${1:-.}
PATH="$(dirname "$python"):$PATH"
"$python" -m grpc_tools.protoc \
    --proto_path=protos --proto_path=protos/vendor \
    --python_out="$output" --grpc_python_out="$output" \
    --mypy_out=quiet:"$output" --mypy_grpc_out=quiet:"$output" \
    $(cd protos && find everstep -name '*.proto' | sort)
"$python" -m grpc_tools.protoc \
    --proto_path=protos/vendor --python_out="$output" --mypy_out=quiet:"$output" \
    buf/validate/validate.proto
# Only files that hold a service have something to call.
for stub in $(find "$output"/everstep -name '*_pb2_grpc.py'); do
    grep -q 'class .*Servicer' "$stub" || rm -f "$stub" "${stub}i"
done
for folder in $(cd protos && find everstep -type d); do
    touch "$output/$folder/__init__.py"
done
