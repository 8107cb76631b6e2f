#!/bin/bash
# Build the Dockerfile's base image locally where no image registry is reachable: Debian and its Python 3.11, trusting
# the certificate authorities that this machine trusts. Needs root and debootstrap. Use: build_image.sh TAG
set -euo pipefail
tag=${1:?tag of the image}
authorities=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
for tool in debootstrap docker; do
  type -P "$tool" >/dev/null || { echo "build_image.sh: $tool is not installed" >&2; exit 1; }
done
[[ $(id -u) == 0 ]] || { echo "build_image.sh: only root can unpack Debian's packages" >&2; exit 1; }
root=$(mktemp -d)
chmod 755 "$root"
trap 'rm -rf --one-file-system "$root" "$root.log"' EXIT

debootstrap --variant=minbase --include=ca-certificates,python3-venv,python3-distutils bookworm "$root" \
  >"$root.log" 2>&1 || { tail -n 20 "$root.log" >&2; exit 1; }
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/*
install -m 644 "$authorities" "$root/etc/ssl/certs/ca-certificates.crt"

# pip brings authorities of its own, so it is told where the machine's are
tar -C "$root" --sort=name --mtime=@0 --numeric-owner --one-file-system -c . |
  docker import --change 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' \
    --change 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' --change 'CMD ["python3"]' - "$tag"
