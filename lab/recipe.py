"""What a lab host is made of, and the digests that name its layers in the cache."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

FILES = Path(__file__).resolve().parent / "files"

_BASE_PACKAGES = (
    "systemd-sysv", "udev", "iproute2", "openssh-server", "python3", "ca-certificates", "kmod", "procps", "ifupdown",
    "netbase", "dbus", "iputils-ping", "tcpdump", "bridge-utils",
)  # fmt: skip
_HOST_PACKAGES = (
    "xenstore-utils", "linux-image-amd64", "linux-image-cloud-amd64", "qemu-system-xen", "busybox-static", "zstd",
    "initramfs-tools", "cpio", "redis-tools",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One Debian release with its Xen."""

    debian: int
    codename: str
    xen: str

    @property
    def base_packages(self) -> tuple[str, ...]:
        """What debootstrap installs."""
        return _BASE_PACKAGES

    @property
    def host_packages(self) -> tuple[str, ...]:
        """What apt installs on top: stock packages only, as on an operator's host."""
        return (f"xen-hypervisor-{self.xen}-amd64", f"xen-utils-{self.xen}", *_HOST_PACKAGES)

    @property
    def base_digest(self) -> str:
        """Names the root file system of packages."""
        text = repr((self.codename, self.base_packages, self.host_packages))
        return _digest([text.encode(), (FILES / "build-base.sh").read_bytes()])

    @property
    def image_digest(self) -> str:
        """Names the disk image: the base and every file that the lab adds to it."""
        parts = [self.base_digest.encode()]
        for path in sorted(p for p in FILES.rglob("*") if p.is_file()):
            parts += [
                str(path.relative_to(FILES)).encode(),
                path.read_bytes(),
                oct(path.stat().st_mode & 0o777).encode(),
            ]
        return _digest(parts)


#: Debian 12 and 13 as stable ships them; another release is another line here.
RECIPES = {
    12: Recipe(debian=12, codename="bookworm", xen="4.17"),
    13: Recipe(debian=13, codename="trixie", xen="4.20"),
}


def recipe_for(debian: int) -> Recipe:
    """The recipe of a Debian release, or a sentence that lists those there are."""
    if debian not in RECIPES:
        known = ", ".join(str(number) for number in RECIPES)
        raise LabError(f"the lab has no recipe for Debian {debian}; it has {known}")
    return RECIPES[debian]


def _digest(parts: list[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]
