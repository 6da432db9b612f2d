"""Names, addresses and places of one lab: everything that follows from the checkout it belongs to."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

#: All that a lab may have. The third is there on demand (`lab up --hosts 3`).
NAMES = ("xa", "xb", "xc")
#: The pair that every lab has.
HOSTS = NAMES[:2]
RUN_ROOT = Path("/run/colo-lab")

#: Paths between the hosts. `ctl` is QEMU's user network: the controller's ssh, never touched by guests.
PATHS = ("ctl", "data", "mgmt")
#: The two that are bridges in the namespace.
GUEST_PATHS = ("data", "mgmt")
#: Subnets of the two bridges; host number N has .N, the client in the lab's namespace has .254.
SUBNETS = {"data": "192.168.77", "mgmt": "192.168.78"}
CLIENT_NUMBER = 254


@dataclass(frozen=True)
class Settings:
    """Where the lab of one checkout lives."""

    checkout: Path
    cache: Path

    @property
    def lab_id(self) -> str:
        """Eight hex digits that differ between checkouts: labs of two checkouts run beside each other."""
        return hashlib.sha256(str(self.checkout).encode()).hexdigest()[:8]

    @property
    def state_dir(self) -> Path:
        """Disks, keys, inventory: goes with the checkout."""
        return self.checkout / ".lab"

    @property
    def run_dir(self) -> Path:
        """Sockets: short paths, gone after a reboot of this machine."""
        return RUN_ROOT / self.lab_id

    @property
    def ssh_dir(self) -> Path:
        """Sockets of connections that are kept open; whoever stops the lab ends them."""
        return self.run_dir / "ssh"

    @property
    def netns(self) -> str:
        """The network namespace that holds both bridges and the client."""
        return namespace_of(self.lab_id)

    def host_dir(self, host: str) -> Path:
        """Disk, seed and console log of one host."""
        return self.state_dir / "hosts" / host

    def process_name(self, host: str) -> str:
        """What `-name` of the host's QEMU says: the one mark by which its process is found again."""
        return f"{process_prefix(self.lab_id)}{host}"


def namespace_of(lab_id: str) -> str:
    """Name of the network namespace of a lab."""
    return f"colo-{lab_id}"


def process_prefix(lab_id: str) -> str:
    """What every QEMU of a lab has in front of the host's name in `-name`."""
    return f"colo-lab-{lab_id}-"


def here() -> Settings:
    """The lab of the checkout that this package stands in."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Settings(checkout=Path(__file__).resolve().parent.parent, cache=Path(cache_home) / "colo-lab")


def host_number(host: str) -> int:
    """1 for the first host: its last address byte on every bridge."""
    return NAMES.index(host) + 1


def peer_of(host: str) -> str:
    """The other host of the pair."""
    return next(one for one in HOSTS if one != host)


def address(path: str, number: int) -> str:
    """IPv4 address of host `number` on a bridge (`data` or `mgmt`)."""
    return f"{SUBNETS[path]}.{number}"


def mac(path: str, number: int) -> str:
    """A locally administered MAC; the lab is alone on its bridges, so it need not differ between labs."""
    return f"52:54:00:c0:{PATHS.index(path):02x}:{number:02x}"
