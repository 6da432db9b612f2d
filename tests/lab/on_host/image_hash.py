"""Runs on a host: one line per page of a saved guest, "GFN HASH", as the last record that names it has it.

Usage: image_hash.py FILE
"""

import sys

sys.path.insert(0, "/opt/colo-helper/current/site-packages")

from colo_helper.memory.hashes import page_hash
from colo_helper.stream.walk import Pages, walk_xl

hashes = {}
with open(sys.argv[1], "rb") as image:

    def read_exact(length: int) -> bytes:
        """Return exactly so many bytes."""
        data = image.read(length)
        if len(data) != length:
            raise EOFError
        return data

    for item in walk_xl(read_exact):
        if isinstance(item, Pages):
            for index, gfn in enumerate(item.gfns):
                hashes[gfn] = page_hash(memoryview(item.data)[index * 4096 : (index + 1) * 4096])
for gfn, value in sorted(hashes.items()):
    print(gfn, value.hex())
