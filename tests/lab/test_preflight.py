"""Everything that preflight finds in the way, brought about on real Xen, each by itself. Only in a full run."""

import json
from dataclasses import dataclass, field

import pytest

from lab import ssh
from lab.inventory import vms
from lab.settings import HOSTS, address, host_number

pytestmark = pytest.mark.full
PRIMARY, SECONDARY = HOSTS
#: Where a host looks for xl first.
XL = "/usr/local/sbin/xl"
#: A guest of the lab that is made, and not run: what preflight asks of it Xen knows then.
MADE = "xl create -pq /etc/xen/lab/{0}.cfg"
GONE = "xl destroy {0}"


def instead_of_xl(sed):
    """A host's xl, of which `xl info` says something else."""
    lines = ("#!/bin/sh", f"""/usr/sbin/xl "$@" | if [ "$1" = info ]; then sed '{sed}'; else cat; fi""")
    return "\n".join((f"cat > {XL} <<'END'", *lines, "END", f"chmod 755 {XL}"))


def made_from(guest, name, sed="", more=""):
    """A guest made from another's configuration, changed by sed, with one line more, under a name of its own."""
    made = f"/run/{name}.cfg"
    return "\n".join(
        (
            f"""sed -e 's/^name = .*/name = "{name}"/' -e "{sed}" /etc/xen/lab/{guest}.cfg > {made}""",
            f"echo '{more}' >> {made}",
            f"xl create -pq {made}",
        )
    )


@dataclass(frozen=True)
class Case:
    """What is done to a host and undone, what the inventory says besides, and what preflight says then."""

    host: str
    do: str
    undo: str
    said: str
    vm: dict[str, object] = field(default_factory=dict)
    name: str = "h1"


PEER = address("data", host_number(SECONDARY))
CASES = {
    "not in Xen": Case(
        PRIMARY,
        "mount --bind /dev/null /proc/xen/capabilities",
        "umount /proc/xen/capabilities",
        "xa: the kernel's place is outside Xen, not Xen's dom0: boot it into Xen",
    ),
    "Xen does not answer": Case(
        PRIMARY,
        f"printf '#!/bin/sh\\nexit 1\\n' > {XL}; chmod 755 {XL}",
        f"rm {XL}",
        "xa: the Xen release is unknown, not 4.17 or 4.20: install Debian's own Xen packages",
    ),
    "another distribution": Case(
        SECONDARY,
        "sed s/VERSION_ID=.*/VERSION_ID=11/ /etc/os-release > /run/os; mount --bind /run/os /etc/os-release",
        "umount /etc/os-release",
        "xb: the distribution is debian 11, not debian 12 or 13: COLO is proved on these releases only.",
    ),
    "no hap": Case(
        SECONDARY,
        instead_of_xl("s/hap//"),
        f"rm {XL}",
        "not one with hvm and hap: turn on VT-x with EPT or AMD-V with NPT in the firmware.",
    ),
    "no device model": Case(
        SECONDARY,
        "mv /usr/libexec/xen-qemu-system-i386 /usr/libexec/away",
        "mv /usr/libexec/away /usr/libexec/xen-qemu-system-i386",
        "xb: the device model is missing, not installed: apt install qemu-system-xen.",
    ),
    "no bridge": Case(
        PRIMARY,
        "true",
        "true",
        "xb: the bridge xenbr9 is missing, not there: make the bridge xenbr9 in /etc/network/interfaces",
        {"bridge": "xenbr9"},
    ),
    "another time": Case(
        SECONDARY,
        "date -s @$(($(date +%s) + 300))",
        "date -s @$(($(date +%s) - 300))",
        "ahead of the controller's: have all hosts keep time (package chrony)",
    ),
    "an older Xen there": Case(
        PRIMARY,
        instead_of_xl("s/^xen_minor .*/xen_minor : 20/"),
        f"rm {XL}",
        "h1: its primary xa runs Xen 4.20 and its secondary xb Xen 4.17. Both must run the same release",
    ),
    "another processor": Case(
        SECONDARY,
        instead_of_xl("s/^hw_caps .*/hw_caps : 00000000/"),
        f"rm {XL}",
        "h1: the processors of xa and xb have different features (hw_caps of 'xl info'",
    ),
    "a guest that does not run": Case(
        PRIMARY,
        "true",
        "true",
        "h2 on xa does not run. If it runs nowhere, start it there ('xl create'); otherwise correct colo_vms.",
        name="h2",
    ),
    "a PV guest": Case(
        PRIMARY,
        MADE.format("pv1"),
        GONE.format("pv1"),
        "pv1 on xa is of type pv, and only hvm guests are protected (type='hvm')",
        name="pv1",
    ),
    "a card that is not emulated": Case(
        PRIMARY,
        made_from("h1", "vif1", "s/type=ioemu,model=virtio-net-pci/type=vif/"),
        GONE.format("vif1"),
        "vif1 on xa has a network card that is not emulated (vif type=ioemu), so its packets cannot be compared.",
        name="vif1",
    ),
    "a card on another bridge": Case(
        PRIMARY,
        "ip link add xenbr1 type bridge\n" + made_from("h1", "br1", "s/bridge=xenbr0/bridge=xenbr1/"),
        GONE.format("br1") + "; ip link del xenbr1",
        "br1 on xa has a network card on xenbr1, and its bridge in colo_vms is xenbr0",
        name="br1",
    ),
    "no room there": Case(
        SECONDARY,
        made_from("h1", "full", "s/^memory = .*/memory = $(($(xl info free_memory) - 100))/"),
        GONE.format("full"),
        "h1: its copy needs 152 MiB on xb, where Xen has",
    ),
    "no way there": Case(
        PRIMARY,
        f"ip route add unreachable {PEER}/32",
        f"ip route del unreachable {PEER}/32",
        "h1: xa does not reach the channels of xb",
    ),
    "a disk that it can write to": Case(
        PRIMARY,
        "truncate -s 1M /run/disk; " + made_from("h1", "disk1", more='disk = ["/run/disk,raw,xvda,w"]'),
        GONE.format("disk1"),
        "disk1 can write to /run/disk, and disks are not replicated",
        name="disk1",
    ),
    "a disk that is not there": Case(
        PRIMARY,
        "truncate -s 1M /run/disk; " + made_from("h1", "disk2", more='disk = ["/run/disk,raw,hdc,cdrom"]'),
        GONE.format("disk2"),
        "disk2: xb has no /run/disk, which disk2 reads on xa: have the same there, for instance on shared storage.",
        name="disk2",
    ),
    "a domain left over": Case(
        SECONDARY,
        MADE.format("h1"),
        GONE.format("h1"),
        "There is a domain h1 on xb, its secondary, that no replicator keeps",
    ),
}


@pytest.fixture(scope="module")
def ready(lab, play):
    """Two hosts with h1 on the first one, and nothing in the way."""
    lab.reset(with_guest=True)
    found = play("preflight")
    assert found.code == 0
    assert "NOT READY" not in found.text
    yield
    lab.reset(with_guest=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_in_the_way_is_said(ready, play, settings, case):
    ssh.run(settings, case.host, case.do, 180)
    try:
        wish = {case.name: {**vms("h1")["h1"], **case.vm}}
        found = play("preflight", extra={"colo_vms": wish})
    finally:
        ssh.run(settings, case.host, case.undo)
    assert found.code != 0
    assert "NOT READY" in found.text
    assert case.said in found.text


def test_a_witness_that_does_not_answer(ready, play, settings, tmp_path):
    nobody = address("mgmt", 200)
    hosts = {"colo_witnesses": {"hosts": {"w1": {"colo_witness_address": nobody}}}}
    (tmp_path / "witness.yml").write_text(json.dumps(hosts))
    found = play("preflight", "--inventory", str(tmp_path / "witness.yml"))
    assert found.code != 0
    assert "h1: xa does not reach the witness w1" in found.text


def test_a_host_that_does_not_answer(ready, play, lab):
    lab.host(SECONDARY).power_off()
    found = play("preflight")
    assert found.code != 0
    assert "xb does not answer on ssh." in found.text
