#!/bin/bash
# Turns a copy of the base root file system into a bootable disk with the lab's own files and the guests on it.
# Environment: BASE (root file system), WORK (empty directory), FILES (this directory), OUT (directory to fill)
set -euo pipefail

ROOT=$WORK/rootfs
cp -a --reflink=auto "$BASE" "$ROOT"
cp -a "$FILES/host/." "$ROOT/"
chown -R root:root "$ROOT/etc/systemd" "$ROOT/etc/xen/lab" "$ROOT/usr/local/sbin"
printf '/dev/vda / ext4 rw,relatime 0 0\n' > "$ROOT/etc/fstab"
systemctl --root="$ROOT" --quiet enable serial-getty@hvc0.service colo-lab-seed.service colo-lab-ready.service
# Housekeeping that only slows an emulated host down; /tmp on disk in every release.
systemctl --root="$ROOT" --quiet mask e2scrub_reap.service e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer \
  dpkg-db-backup.timer fstrim.timer tmp.mount systemd-networkd-wait-online.service ifupdown-wait-online.service

# The guests' kernels and initramfs, made inside the new system from its own packages.
mkdir -p "$ROOT/tmp/guest"
cp "$FILES"/guest/* "$ROOT/tmp/guest/"
chroot "$ROOT" /bin/bash /tmp/guest/make-guests.sh /tmp/guest /var/lib/colo-lab/guests
rm -rf "$ROOT/tmp/guest"

mkdir -p "$OUT"
gunzip -c "$(ls "$ROOT"/boot/xen-*-amd64.gz)" > "$OUT/xen"
kernel=$(basename "$(ls "$ROOT"/boot/vmlinuz-*-amd64 | grep -v cloud)")
cp "$ROOT/boot/$kernel" "$OUT/vmlinuz"
cp "$ROOT/boot/initrd.img-${kernel#vmlinuz-}" "$OUT/initrd.img"
mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -d "$ROOT" -L root "$OUT/disk.img" 4G
