"""The stand-in itself, through the real libxenctrl: where a model that is too kind would let a defect pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stock import fakexen
from tests.stock.fakexen import FakeDomain
from tests.stock.packages import Stock

DOMID = 9
# Runs in a process of its own: the libraries must be the shim's. Prints one JSON object.
PRELUDE = """
import ctypes as c, errno, json
xc = c.CDLL("libxenctrl.so.4.17", use_errno=True)
fm = c.CDLL("libxenforeignmemory.so.1", use_errno=True)
xc.xc_interface_open.restype = xc.xc__hypercall_buffer_alloc_pages.restype = c.c_void_p
fm.xenforeignmemory_open.restype = fm.xenforeignmemory_map.restype = c.c_void_p
xc.xc_logdirty_control.restype = c.c_longlong
h = c.c_void_p(xc.xc_interface_open(None, None, 0))
f = c.c_void_p(fm.xenforeignmemory_open(None, 0))
u64 = c.c_uint64
def said(result):
    return result if result >= 0 else errno.errorcode[c.get_errno()]
def nr_gpfns():
    n = u64()
    assert xc.xc_domain_nr_gpfns(h, 9, c.byref(n)) == 0
    return n.value
def populate(gfns, order=0):
    return said(xc.xc_domain_populate_physmap(h, 9, c.c_ulong(len(gfns)), order, 0, (u64 * len(gfns))(*gfns)))
def types(gfns):
    array = (u64 * len(gfns))(*gfns)
    result = said(xc.xc_get_pfn_type_batch(h, 9, len(gfns), array))
    return result if result else [kind >> 28 for kind in array]
def shadow(op):
    return said(xc.xc_shadow_control(h, 9, op, None, 0))
class Buffer(c.Structure):
    _fields_ = [("hbuf", c.c_void_p), ("shadow", c.c_void_p), ("dir", c.c_int), ("ubuf", c.c_void_p), ("sz", c.c_size_t)]
def clean(pages, op=11, mode=0):
    b = Buffer(None, None, 0, c.c_void_p(-1).value, 0)
    xc.xc__hypercall_buffer_alloc_pages(h, c.byref(b), pages // 32768 + 1)
    stats = (c.c_uint32 * 2)()
    done = said(xc.xc_logdirty_control(h, 9, op, c.byref(b), c.c_ulong(pages), mode, stats))
    data = c.string_at(b.hbuf, (pages + 7) // 8)
    return [done, stats[1], [n for n in range(len(data) * 8) if data[n // 8] >> n % 8 & 1]]
def map_(gfns):
    errors = (c.c_int * len(gfns))(*[77] * len(gfns))
    address = fm.xenforeignmemory_map(f, 9, 3, c.c_size_t(len(gfns)), (u64 * len(gfns))(*gfns), errors)
    return address, list(errors)
def param(index, value):
    return said(xc.xc_hvm_param_set(h, 9, index, u64(value)))
"""


@pytest.fixture
def empty(workdir: Path) -> FakeDomain:
    return FakeDomain.create(workdir / "domain", DOMID, max_pages=1024)


def ask(
    stock: Stock, domain: FakeDomain, script: str, faults: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    env = domain.env(stock.library_path, domain.path / "log", faults)
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script], env=env, capture_output=True, text=True, check=False
    )


def answers(stock: Stock, domain: FakeDomain, script: str, faults: tuple[str, ...] = ()) -> list[object]:
    done = ask(stock, domain, f"print(json.dumps([{script}]))", faults)
    assert done.returncode == 0, done.stderr
    said: list[object] = json.loads(done.stdout)
    return said


def test_size_of_an_empty_domain_is_1_and_grows_with_what_is_mapped(stock: Stock, empty: FakeDomain) -> None:
    script = (
        "nr_gpfns(), populate([0x100, 5]), nr_gpfns(), populate([0x200], 4), nr_gpfns(), populate([3], 19)"
    )
    assert answers(stock, empty, script) == [1, 2, 0x101, 1, 0x210, 0]
    assert empty.state.tot_pages == 18


def test_populate_stops_at_the_limit_and_says_how_far_it_came(stock: Stock, empty: FakeDomain) -> None:
    assert answers(stock, empty, "populate(list(range(1020))), populate(list(range(2000, 2010)))") == [
        1020,
        4,
    ]
    assert answers(
        stock, empty, "said(xc.xc_domain_decrease_reservation(h, 9, c.c_ulong(3), 0, (u64*3)(0, 5000, 1)))"
    ) == [1]


def test_types_of_more_than_1024_frames_are_refused_and_holes_are_not_present(
    stock: Stock, empty: FakeDomain
) -> None:
    empty.populate(range(2))
    empty.p2m[2], empty.p2m[3] = fakexen.SPECIAL, fakexen.BROKEN
    assert answers(stock, empty, "types([0, 1, 2, 3, 4, 1 << 40]), types(list(range(1025)))") == [
        [0, 0, 15, 13, 15, 15],
        "E2BIG",
    ]


def test_mapping_holes_fails_for_each_alone_and_both_sides_see_the_same_page(
    stock: Stock, empty: FakeDomain
) -> None:
    empty.populate(range(4, 6))
    script = """
address, errors = map_([4, 9, 5])
c.memset(address + 8192, 0x5A, 16)
print(json.dumps([errors, c.string_at(address, 4).hex()]))
"""
    empty.write(4, b"\x01\x02\x03\x04")
    done = ask(stock, empty, script)
    assert json.loads(done.stdout) == [[0, -22, 0], "01020304"], done.stderr
    assert empty.read(5)[:17] == b"\x5a" * 16 + b"\0"


def test_log_dirty_is_enabled_once_and_a_clean_empties_it(stock: Stock, empty: FakeDomain) -> None:
    empty.populate(range(40))
    assert answers(stock, empty, "shadow(2), shadow(2), shadow(0), shadow(0), shadow(2)") == [
        0,
        "EINVAL",
        0,
        0,
        0,
    ]
    for gfn in (3, 3, 17):
        empty.write(gfn, b"x")
    peek, clean, again = [40, 2, [3, 17]], [40, 2, [3, 17]], [40, 0, []]
    assert answers(stock, empty, "clean(40, 12), clean(40), clean(40), clean(40, mode=2)[0]") == [
        peek,
        clean,
        again,
        "EINVAL",
    ]


def test_a_clean_of_too_few_frames_loses_those_of_the_same_leaf(stock: Stock, empty: FakeDomain) -> None:
    empty.populate(range(100))
    empty.populate(range(40_000, 40_010))
    empty.enable_log_dirty()
    for gfn in (0, 99, 40_001):
        empty.write(gfn, b"x")
    assert answers(stock, empty, "clean(1), clean(40960)") == [[1, 3, [0]], [40960, 0, [40_001]]]


def test_writes_through_a_foreign_mapping_are_not_logged_but_new_frames_are(
    stock: Stock, empty: FakeDomain
) -> None:
    empty.populate(range(4))
    empty.enable_log_dirty()
    assert answers(stock, empty, "c.memset(map_([1])[0], 1, 9) and 0, populate([7]), clean(8)") == [
        0,
        1,
        [8, 1, [7]],
    ]


def test_parameters_that_take_one_value_only(stock: Stock, empty: FakeDomain) -> None:
    script = "param(32, 5), param(32, 5), param(32, 6), param(1, 5), param(1, 6), param(39, 1)"
    assert answers(stock, empty, script) == [0, 0, "EEXIST", 0, 0, "EINVAL"]


def test_a_context_that_is_no_chain_of_records_is_refused(stock: Stock, empty: FakeDomain) -> None:
    empty.set_cpu(1)
    good = empty.context
    script = f"""[said(xc.xc_domain_hvm_setcontext(h, 9, blob, len(blob))) for blob in
        (bytes.fromhex("{good.hex()}"), bytes.fromhex("{good[:-8].hex()}"), bytes(64), b"")],
        xc.xc_domain_hvm_getcontext(h, 9, None, 0), said(xc.xc_domain_hvm_getcontext(h, 9, bytes(9), 9))"""
    assert answers(stock, empty, script) == [[0, "EINVAL", "EINVAL", "EINVAL"], len(good), "ENOSPC"]


def test_another_domain_is_not_there(stock: Stock, empty: FakeDomain) -> None:
    assert answers(stock, empty, "said(xc.xc_domain_pause(h, 8)), said(xc.xc_domain_pause(h, 9))") == [
        "ESRCH",
        0,
    ]
    assert empty.state.pause_count == 2


def test_faults_come_at_their_call_and_the_log_tells(stock: Stock, empty: FakeDomain) -> None:
    faults = ("logdirty_off:2:5", "populate:1+:12")
    script = "shadow(0), shadow(0), shadow(0), populate([1]), populate([1])"
    assert answers(stock, empty, script, faults) == [0, "EIO", 0, "ENOMEM", "ENOMEM"]
    log = [(op.name, op.result) for op in fakexen.operations(empty.path / "log") if op.name != "open"]
    assert log == [("logdirty_off", 0), ("logdirty_off", -5), ("logdirty_off", 0), *[("populate", -12)] * 2]


def test_a_fault_that_cannot_be_read_stops_the_run(stock: Stock, empty: FakeDomain) -> None:
    done = ask(stock, empty, "shadow(0)", ("clean5",))
    assert done.returncode == -6
    assert "FAKEXEN_FAULTS is not understood" in done.stderr


def test_no_domain_no_interface(stock: Stock, empty: FakeDomain) -> None:
    env = {**os.environ, "LD_LIBRARY_PATH": stock.library_path, "FAKEXEN_DIR": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + "print(h.value)"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "None\n"
    assert "/nowhere is no fake domain" in done.stderr
