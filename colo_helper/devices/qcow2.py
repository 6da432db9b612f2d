"""A qcow2 image with one internal snapshot whose VM state is a given blob.

QEMU 7.2 and 10.0 abort on ``xen-load-devices-state``; ``snapshot-load`` reads the same bytes from the VM state area of
an internal snapshot. Source of the format: QEMU's docs/interop/qcow2.txt, version 3. All numbers are big endian.

Clusters of the file: 0 header, 1 refcount table, 2 refcount block, 3 L2 table, 4 active L1 table, 5 snapshot's L1
table, 6 snapshot table, from 7 on the state. The virtual disk is empty and no larger than one L2 table covers, so that
L1 entry 0 means the disk and L1 entry 1 the VM state, which lies directly behind the disk's end.
"""

from __future__ import annotations

import struct

CLUSTER_BITS = 16
CLUSTER_BYTES = 1 << CLUSTER_BITS
#: Guest clusters that one L2 table maps (8 bytes an entry).
_L2_ENTRIES = CLUSTER_BYTES // 8
#: The largest state that one L2 table can map, 512 MiB; a refcount block covers 32768 clusters, so that is enough.
MAX_STATE_BYTES = _L2_ENTRIES * CLUSTER_BYTES
DISK_BYTES = 1 << 20
SNAPSHOT_NAME = "colo"

_REFTABLE, _REFBLOCK, _L2, _L1, _SNAPSHOT_L1, _SNAPSHOTS, _DATA = range(1, 8)
_REFCOUNT_ORDER = 4  # 16-bit refcounts
_HEADER_BYTES = 104


def _offset(cluster: int) -> int:
    return cluster * CLUSTER_BYTES


def vmstate_image(state: bytes) -> bytearray:
    """Return the bytes of an image whose snapshot SNAPSHOT_NAME holds ``state``.

    Raises ValueError when the state is empty or larger than MAX_STATE_BYTES.
    """
    if not 0 < len(state) <= MAX_STATE_BYTES:
        raise ValueError(f"A device state of {len(state)} bytes does not fit (1 to {MAX_STATE_BYTES}).")
    clusters = -(-len(state) // CLUSTER_BYTES)
    image = bytearray(_offset(_DATA + clusters))
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        3,
        0,  # no backing file
        0,
        CLUSTER_BITS,
        DISK_BYTES,
        0,  # not encrypted
        2,  # L1 entries
        _offset(_L1),
        _offset(_REFTABLE),
        1,  # clusters of the refcount table
        1,  # snapshots
        _offset(_SNAPSHOTS),
    )
    features = struct.pack(">QQQII", 0, 0, 0, _REFCOUNT_ORDER, _HEADER_BYTES)
    image[:_HEADER_BYTES] = header + features
    struct.pack_into(">Q", image, _offset(_REFTABLE), _offset(_REFBLOCK))
    # The L2 table and the state belong to the active disk and to the snapshot: referenced twice. For the same reason
    # bit 63 ("used exactly once") stays clear in the L1 and L2 entries.
    refcounts = [1, 1, 1, 2, 1, 1, 1] + [2] * clusters
    struct.pack_into(f">{len(refcounts)}H", image, _offset(_REFBLOCK), *refcounts)
    entries = [_offset(_DATA + index) for index in range(clusters)]
    struct.pack_into(f">{clusters}Q", image, _offset(_L2), *entries)
    for table in (_L1, _SNAPSHOT_L1):
        struct.pack_into(">QQ", image, _offset(table), 0, _offset(_L2))
    entry = _snapshot_entry(len(state))
    image[_offset(_SNAPSHOTS) : _offset(_SNAPSHOTS) + len(entry)] = entry
    image[_offset(_DATA) : _offset(_DATA) + len(state)] = state
    return image


def _snapshot_entry(state_bytes: int) -> bytes:
    """Return the snapshot table entry; its time is 0 so that equal states make equal images."""
    identity, name = b"1", SNAPSHOT_NAME.encode()
    extra = struct.pack(">QQq", state_bytes, DISK_BYTES, -1)  # state size, disk size, no instruction count
    fixed = struct.pack(
        ">QIHHIIQII",
        _offset(_SNAPSHOT_L1),
        2,  # L1 entries
        len(identity),
        len(name),
        0,
        0,
        0,
        state_bytes,
        len(extra),
    )
    return fixed + extra + identity + name
