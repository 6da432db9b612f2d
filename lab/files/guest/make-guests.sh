#!/bin/bash
# Runs in the host's own system: packs the guests' kernels and one initramfs per kernel.
# Usage: make-guests.sh SOURCES OUT
set -euo pipefail
sources=$1
out=$2
mkdir -p "$out"
python=$(readlink -f /usr/bin/python3)
version=$(basename "$python")

include() { # include ROOT PROGRAM NAME: a program and its libraries
  cp "$2" "$1/usr/bin/$3"
  ldd "$2" | grep -o '/[^ ]*' | sort -u | while read -r library; do cp -L --parents "$library" "$1"; done
}

pack() { # pack NAME KERNEL MODULE...: the initramfs with what the guest needs and nothing else
  local name=$1 release=$2 root
  shift 2
  root=$(mktemp -d)
  mkdir -p "$root"/{bin,dev,proc,sys,run,modules,usr/bin,usr/lib/"$version",lib64,lib/x86_64-linux-gnu}
  cp /bin/busybox "$root/bin/busybox"
  include "$root" "$python" python3
  # Debian's redis-server is a link to the program that redis-tools brings.
  if [ "$name" = redis ]; then include "$root" "$(readlink -f /usr/bin/redis-check-rdb)" redis-server; fi
  # -S -E keeps Python away from site and the environment; these are all that the counter imports.
  local lib=/usr/lib/$version
  cp -r "$lib"/encodings "$lib"/collections "$root$lib/"
  for module in abc codecs enum functools genericpath io keyword linecache operator os posixpath re reprlib \
    selectors socket stat tokenize token types traceback textwrap warnings weakref _collections_abc _weakrefset; do
    if [ -f "$lib/$module.py" ]; then cp "$lib/$module.py" "$root$lib/"; fi
  done
  if [ -d "$lib/re" ]; then cp -r "$lib/re" "$root$lib/"; fi
  find "$root$lib" -name __pycache__ -prune -exec rm -rf {} +
  "$python" -m compileall -q -b "$root$lib"
  find "$root$lib" -name '*.py' -delete
  cp "$sources/init" "$root/init"
  cp "$sources/counter.py" "$root/counter.py"
  chmod 755 "$root/init"
  # Dependencies first, in the order in which init loads them.
  local file
  for module in "$@"; do
    modprobe -S "$release" --show-depends "$module" | awk '$1 == "insmod" {print $2}' | while read -r file; do
      if ! ls "$root"/modules/*-"$(basename "$file")" >/dev/null 2>&1; then
        cp "$file" "$root/modules/$(ls "$root/modules" | wc -l | xargs printf '%02d')-$(basename "$file")"
      fi
    done
  done
  (cd "$root" && find . | cpio --quiet -o -H newc | zstd -q -19 -T0) > "$out/initrd-$name"
  cp "/boot/vmlinuz-$release" "$out/vmlinuz-$name"
  rm -rf "$root"
}

cloud=$(basename "$(ls -d /lib/modules/*-cloud-amd64)")
full=$(basename "$(ls -d /lib/modules/*-amd64 | grep -v cloud)")
pack cloud "$cloud" virtio_net virtio_pci xen-netfront
pack redis "$cloud" virtio_net virtio_pci
pack full "$full" e1000
