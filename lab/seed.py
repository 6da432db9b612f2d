"""What is a lab's own: keys made for it, and the archive that tells each host who it is."""

import io
import subprocess
import tarfile
from pathlib import Path

from lab.settings import NAMES, Settings, address, host_number, mac

_INTERFACES = """\
auto lo
iface lo inet loopback

# The controller's ssh, through QEMU's user network.
auto eth0
iface eth0 inet static
    address 10.0.2.15/24

# Guests, their clients and the COLO channels.
auto eth1
iface eth1 inet manual
auto xenbr0
iface xenbr0 inet static
    bridge_ports eth1
    bridge_stp off
    bridge_fd 0
    bridge_hw {bridge_mac}
    address {data}/24

# The second, independent path between the hosts.
auto eth2
iface eth2 inet static
    address {mgmt}/24
"""


def controller_key(settings: Settings) -> Path:
    """The private key by which the controller logs in as root."""
    return settings.state_dir / "keys" / "controller"


def known_hosts(settings: Settings) -> Path:
    """The hosts' keys, known before the first connection because the lab made them."""
    return settings.state_dir / "keys" / "known_hosts"


def make_keys(settings: Settings, ports: dict[str, int]) -> None:
    """New keys for the controller and for each host's sshd."""
    directory = settings.state_dir / "keys"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = []
    for name in ("controller", *ports):
        key = directory / name
        key.unlink(missing_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"colo-lab {name}", "-f", str(key)],
            check=True,
        )
        if name in ports:
            public = key.with_suffix(".pub").read_text().rsplit(" ", 2)[0]
            lines.append(f"[127.0.0.1]:{ports[name]} {public}\n")
    known_hosts(settings).write_text("".join(lines))


def write_seed(settings: Settings, host: str) -> None:
    """The host's seed archive; colo-lab-seed.service unpacks it at boot."""
    number = host_number(host)
    keys = settings.state_dir / "keys"
    hosts = "".join(f"{address('data', host_number(name))} {name}\n" for name in NAMES)
    files = {
        "etc/hostname": (f"{host}\n", 0o644),
        "etc/hosts": (f"127.0.0.1 localhost\n{hosts}", 0o644),
        "etc/network/interfaces": (
            _INTERFACES.format(
                bridge_mac=mac("data", number), data=address("data", number), mgmt=address("mgmt", number)
            ),
            0o644,
        ),
        "root/.ssh/authorized_keys": (controller_key(settings).with_suffix(".pub").read_text(), 0o600),
        "etc/ssh/ssh_host_ed25519_key": ((keys / host).read_text(), 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": ((keys / host).with_suffix(".pub").read_text(), 0o644),
    }
    directory = settings.host_dir(host)
    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(directory / "seed.tar", "w") as archive:
        for name, (text, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            data = text.encode()
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
