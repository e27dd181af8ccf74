#!/usr/bin/env bash
# Builds every image from the checkout, tagged with the version, and prints their sizes. `make images` calls it.
#
#   BASE        what they stand on                         [python:3.12-slim]
#   ENGINE      command that builds, with BuildKit         [docker]
#   FLAGS       more flags of its `build`, such as --network host
#   PIP_CONF, CA_BUNDLE   pip's settings and certificates while building; they do not stay in the images
#   ONLY        names of the images, if not all
set -euo pipefail
cd "$(dirname "$0")/.."
BASE=${BASE:-python:3.12-slim} ENGINE=${ENGINE:-docker}
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION=${REVISION:-$(git describe --always --abbrev=40 --dirty)}
declare -A FOLDER=(
  [nextem-edge]=edge [nextem-simulator]=simulator [nextem-analysis]=services/nextem/analysis
  [nextem-steering]=services/nextem/steering [nextem-operator]=services/nextem/operator
)
export DOCKER_BUILDKIT=1
build() { # Dockerfile, tag, flags…
  local file=$1 tag=$2; shift 2
  "$ENGINE" build -q -f "$file" -t "$tag:$VERSION" "$@" ${FLAGS:-} \
    ${PIP_CONF:+--secret id=pip,src=$PIP_CONF} ${CA_BUNDLE:+--secret id=ca,src=$CA_BUNDLE} . >/dev/null
}
size() { "$ENGINE" image inspect --format '{{.Size}}' "$1"; }

build images/Dockerfile nextem-build --target builder --build-arg "BASE=$BASE"
build images/Dockerfile nextem-runtime --target runtime --build-arg "BASE=$BASE"
for name in ${ONLY:-nextem-edge nextem-simulator nextem-analysis nextem-steering nextem-operator}; do
  build "${FOLDER[$name]}/Dockerfile" "$name" --build-arg "BUILD=nextem-build:$VERSION" \
    --build-arg "RUNTIME=nextem-runtime:$VERSION" --build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION"
  mb=$(($(size "$name:$VERSION") / 1000000)) base=$(($(size "$BASE") / 1000000))
  printf '%-18s %5d MB, %4d MB above %s\n' "$name:$VERSION" "$mb" $((mb - base)) "$BASE"
done
