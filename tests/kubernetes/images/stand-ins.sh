#!/usr/bin/env bash
# Builds what stands in for the public images that the charts' quickstart names, where no registry is reached:
# Kafka from Maven's jars and Debian's Java, the S3 gateway from its binary. Takes make.sh's variables.
set -euo pipefail
cd "$(dirname "$0")"
ROOT=$(cd ../../.. && pwd) ENGINE=${ENGINE:-docker}
export DOCKER_BUILDKIT=1
have() { "$ENGINE" image inspect "$1" >/dev/null 2>&1; }
WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT
build() { "$ENGINE" build -q -f "$1.Dockerfile" -t "$2" --build-arg "BASE=${BASE:-python:3.12-slim}" ${FLAGS:-} "$WORK" >/dev/null; }

if ! have "${KAFKA_IMAGE:=docker.io/apache/kafka:4.1.1}"; then
  jars=$("${PYTHON:-$ROOT/.venv/bin/python}" -c 'from nextem.cli.kafka_jars import ensure_jars; print(ensure_jars())')
  cp -rL "$jars" "$WORK/lib"; cp -r kafka-bin "$WORK/bin"
  build kafka "$KAFKA_IMAGE"
fi
if ! have "${S3_IMAGE:=docker.io/versity/versitygw:v1.8.0}"; then
  gateway=$(command -v versitygw || ls "$HOME"/.cache/nextem-cluster/bin-*/versitygw 2>/dev/null | head -n 1)
  cp "$gateway" "$WORK/"
  build versitygw "$S3_IMAGE"
fi
