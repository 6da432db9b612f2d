"""Why there is an arbiter: stock `xl remus` under a cut of the link between the hosts. Ours under the same: test_arbiter.py.

Only in a full run. Leaves the lab as after its first boot.
"""

import time

import pytest

from lab.settings import HOSTS, address, host_number
from tests.lab.guest_moves import STOCK, MovedGuest, let_hosts_log_in

pytestmark = pytest.mark.full

_CHECKPOINTS = 4
_SPLIT_S = 180
#: As whoever relies on Remus sets it: each end of ssh notices within seconds that the other is gone.
_NOTICE_S = 2


@pytest.fixture
def replicated(lab, settings):
    """h1 under stock Remus from xa to xb."""
    lab.reset(with_guest=True)
    let_hosts_log_in(settings)
    guest = MovedGuest(settings, "h1", "xa")
    alive = f"AliveInterval {_NOTICE_S}\\n{{0}}AliveCountMax {_NOTICE_S}\\n"
    for host in HOSTS:
        guest.on(host, f"printf 'Server{alive.format('Server')}' >> /root/.ssh/config")
        guest.on(
            host,
            f"printf 'Client{alive.format('Client')}' > /etc/ssh/sshd_config.d/alive.conf; systemctl restart ssh",
        )
    guest.start_remus(STOCK, STOCK, _CHECKPOINTS)
    yield guest
    lab.reset()


def is_a_vm(guest, host):
    """Whether the guest runs on a host, and is on the network there."""
    flags = guest.on(host, f"xl list {guest.name} 2>/dev/null | tail -1").split()
    taps = guest.on(host, "ls /sys/class/net/xenbr0/brif").split()
    return bool(flags) and "p" not in flags[4] and len(taps) > 1


def test_stock_remus_runs_both_copies_when_the_link_is_cut(replicated):
    guest = replicated
    assert [is_a_vm(guest, host) for host in HOSTS] == [True, False]
    for path in ("data", "mgmt"):
        guest.on("xb", f"ip route add blackhole {address(path, host_number('xa'))}/32")
    cut = time.monotonic()
    while not all(is_a_vm(guest, host) for host in HOSTS):
        assert time.monotonic() < cut + _SPLIT_S, "one of them knows better now: say so in the documentation"
        time.sleep(1)  # xl tells nobody
    print(
        f"both copies of {guest.name} run, and are on the network, {time.monotonic() - cut:.0f} s after the cut"
    )
