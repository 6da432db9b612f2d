#!/bin/bash
# Makes the root file system of a Xen host: Debian, Xen, kernels, device model. Nothing of the lab's own.
# Runs in mount and PID namespaces of its own (lab/image.py), so that a kill leaves neither mounts nor processes.
# Environment: ROOT, CODENAME, MIRROR, KEYRING, BASE_PACKAGES (commas), HOST_PACKAGES (spaces), SOURCES, APT_CONF (files)
set -euo pipefail

debootstrap --variant=minbase --keyring="$KEYRING" --include="$BASE_PACKAGES" "$CODENAME" "$ROOT" "$MIRROR"

mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
cp --dereference /etc/resolv.conf "$ROOT/etc/resolv.conf"
if [ -d /usr/local/share/ca-certificates ]; then cp -a /usr/local/share/ca-certificates "$ROOT/usr/local/share/"; fi
cp /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs/ca-certificates.crt"
install -m 644 "$KEYRING" "$ROOT/etc/apt/lab-keyring.gpg"
install -m 644 "$SOURCES" "$ROOT/etc/apt/sources.list.d/lab.sources"
install -m 644 "$APT_CONF" "$ROOT/etc/apt/apt.conf.d/99lab"
rm -f "$ROOT/etc/apt/sources.list"
# No daemon starts while packages are installed (invoke-rc.d asks this).
printf '#!/bin/sh\nexit 101\n' > "$ROOT/usr/sbin/policy-rc.d"
chmod 755 "$ROOT/usr/sbin/policy-rc.d"

export DEBIAN_FRONTEND=noninteractive
chroot "$ROOT" apt-get update
# shellcheck disable=SC2086 # a list of words
chroot "$ROOT" apt-get install -y --no-install-recommends $HOST_PACKAGES
chroot "$ROOT" apt-get clean

# A host of the lab has no way to a mirror: take away what would only make it wait for one.
rm -f "$ROOT/usr/sbin/policy-rc.d" "$ROOT/etc/apt/apt.conf.d/99lab" "$ROOT/etc/resolv.conf" \
  "$ROOT/etc/apt/sources.list.d/lab.sources" "$ROOT/etc/apt/lab-keyring.gpg"
rm -rf "$ROOT"/var/lib/apt/lists/* "$ROOT"/etc/ssh/ssh_host_*
umount -R "$ROOT/dev" "$ROOT/proc"
