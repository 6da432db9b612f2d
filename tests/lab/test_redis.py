"""A service of the field under its own load: Redis, driven by redis-benchmark, while the primary's host loses its power.

Only in a full run: its guest boots under software emulation, and redis-benchmark is needed (scripts/bench-packages.txt).
"""

import time

import pytest

from lab import redis
from tests.lab.protected_vm import ProtectedVm

pytestmark = pytest.mark.full
#: So many that the load lasts longer than it takes until the copy is the VM.
_REQUESTS, _CLIENTS = 3000, 10
_COUNTED = 20
_ANSWER_TIMEOUT_S = 120
_LOAD_TIMEOUT_S = 900


def test_no_client_of_redis_sees_the_power_off(installed, lab, play, settings):
    installed()
    vm = ProtectedVm(settings, redis.GUEST)
    vm.have_guest("xa")
    hosts = {"primary": "xa", "secondary": "xb", "peer_timeout_ms": 10000}
    wish = {"colo_vms": dict.fromkeys(("h1", vm.name), hosts)}
    assert play("site", extra=wish).code == 0, "its channels"
    assert play("protect", extra={**wish, "colo_vm": vm.name}).code == 0
    steady = redis.Connection(settings, _ANSWER_TIMEOUT_S)
    with redis.benchmark(settings, _REQUESTS, _CLIENTS) as load:
        try:
            counted = [steady.count("sure") for _ in range(_COUNTED)]
            assert load.poll() is None, "the load ended before the power went"
            lab.host("xa").power_off()
            vm.take_over("xb")
            taken = time.monotonic()
            counted += [steady.count("sure") for _ in range(_COUNTED)]
            print(f"{_COUNTED} answers came within {time.monotonic() - taken:.1f} s of the takeover")
            said, _ = load.communicate(timeout=_LOAD_TIMEOUT_S)
        finally:
            load.kill()
    steady.close()
    assert counted == list(range(1, 2 * _COUNTED + 1)), "each answer once, none lost and none undone"
    assert load.returncode == 0, said
    for rate in redis.rates(said):
        print(
            f"{rate.command}: {rate.per_s:.0f} a second, p99 {rate.p99_ms:.0f} ms, longest {rate.longest_ms:.0f} ms"
        )
