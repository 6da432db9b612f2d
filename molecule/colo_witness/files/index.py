#!/usr/bin/python3
"""Make a directory of packages a repository for apt: writes its index, as dpkg-scanpackages (dpkg-dev) would.

Usage: index.py DIRECTORY
"""

import hashlib
import subprocess
import sys
from pathlib import Path


def entry(path: Path) -> str:
    """A package's paragraph in the index."""
    control = subprocess.run(["dpkg-deb", "--field", path], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{control.rstrip()}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {digest}\n"


def main() -> None:
    """See the module."""
    directory = Path(sys.argv[1])
    (directory / "Packages").write_text("\n".join(entry(path) for path in sorted(directory.glob("*.deb"))))


if __name__ == "__main__":
    main()
