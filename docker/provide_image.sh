#!/bin/bash
# See to it that the Docker engine has an image that ours needs: as it is there, pulled, or built here where no image
# registry is reachable. Use: provide_image.sh TAG
set -euo pipefail
tag=${1:?tag of the image}
here=$(cd "$(dirname "$0")" && pwd)

docker image inspect "$tag" >/dev/null 2>&1 && exit
timeout 300 docker pull --quiet "$tag" </dev/null && exit
echo "no $tag in reach of this machine: building one here"
case $tag in
  apache/kafka:*)
    jars=$("$here/../.venv/bin/python" -m stream.demo.maven_broker)
    "$here/kafka/build_image.sh" "$jars" "$tag"
    ;;
  python:3.11-*) "$here/python/build_image.sh" "$tag" ;;
  *)
    echo "provide_image.sh: only apache/kafka and python:3.11 can be built here, not $tag" >&2
    exit 1
    ;;
esac
