#!/bin/bash
# Build the Kafka image locally where no image registry is reachable: this machine's JDK (by jlink), its glibc and
# the Kafka jars in the folder given, with the contract of the official image. Use: build_image.sh JAR_DIR TAG
set -euo pipefail
libs=${1:?folder with the Kafka jars} tag=${2:?tag of the image}
here=$(cd "$(dirname "$0")/image" && pwd)
for tool in jlink docker ldd dpkg; do
  type -P "$tool" >/dev/null || { echo "build_image.sh: $tool is not installed" >&2; exit 1; }
done
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

mkdir -p "$root"/{bin,tmp,usr,etc/kafka/docker,opt/kafka/config,mnt/shared/config,var/lib/kafka/data}
ln -s ../bin "$root/usr/bin"
jlink --add-modules java.se,jdk.crypto.ec,jdk.management,jdk.unsupported \
  --strip-debug --no-header-files --no-man-pages --output "$root/opt/java"
ln -s ../opt/java/bin/java "$root/bin/java"
for tool in bash cat chmod cp env grep hostname id kill ls mkdir ps rm sed sleep; do
  cp -L "$(type -P "$tool")" "$root/bin/"
done
ln -s bash "$root/bin/sh"
# the shared libraries those programs load, and all of glibc's own: the native code inside the Kafka jars
# (zstd, snappy, lz4) loads more of them
{
  find "$root/bin" "$root/opt/java" -type f \( -perm -100 -o -name '*.so' \) -exec ldd {} + 2>/dev/null |
    grep -oP '\s\K/(usr/)?lib\S+'
  dpkg -L libc6 | grep -E '^(/usr)?/lib.*/lib[^/]*\.so'
} | sort -u | xargs cp -L --parents -t "$root"

cp -r "$libs" "$root/opt/kafka/libs"
install -m 755 "$here/run" "$root/etc/kafka/docker/run"
install -m 644 "$here"/{server.properties,log4j2.yaml} "$root/etc/kafka/docker/"
install -m 644 "$here/log4j2.yaml" "$root/etc/kafka/docker/tools-log4j2.yaml"
touch "$root/opt/kafka/config/server.properties"
echo 'root:x:0:0::/:/bin/bash
appuser:x:1000:1000::/tmp:/bin/bash' >"$root/etc/passwd"
echo 'root:x:0:
appuser:x:1000:' >"$root/etc/group"
chown -R 1000:1000 "$root"/{etc/kafka,opt/kafka/config,mnt/shared,var/lib/kafka}
chmod -R u=rwX,go=rX "$root"
chmod 1777 "$root/tmp"

tar -C "$root" --sort=name --mtime=@0 --numeric-owner -c . |
  docker import --change 'EXPOSE 9092' --change 'USER 1000' --change 'ENV PATH=/bin' \
    --change 'CMD ["/etc/kafka/docker/run"]' - "$tag"
