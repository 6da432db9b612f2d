"""The C tables, the walk over guest memory, and the emulated domain."""

from __future__ import annotations

import ctypes
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.hypervisor import abi
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.hypervisor.frames import (
    FOUR_GIB_GFN,
    Window,
    search_order,
)
from colo_helper.hypervisor.hashing import hash_window, present
from colo_helper.hypervisor.interface import HypervisorError
from colo_helper.memory.hashes import page_hash


def test_struct_offsets_are_those_of_the_headers():
    offsets = {name: getattr(abi.DomainInfoStruct, name).offset for name, *_ in abi.DomainInfoStruct._fields_}
    wanted = {
        "flags": 4,
        "tot_pages": 8,
        "shared_info_frame": 48,
        "cpu_time": 56,
        "handle": 76,
        "cpupool": 92,
    }
    assert {name: offsets[name] for name in wanted} == wanted
    assert (offsets["gpaddr_bits"], offsets["arch_config"]) == (96, 104)
    buffer = abi.HypercallBuffer
    assert (buffer.hbuf.offset, buffer.dir.offset, buffer.ubuf.offset, buffer.sz.offset) == (0, 16, 24, 32)
    assert abi.HypercallBuffer.unused().ubuf == ctypes.c_void_p(-1).value
    assert ctypes.sizeof(abi.ShadowStats) == 8
    for table in abi.ABIS.values():
        abi.check_sizes(table)


def test_every_function_has_types_for_its_arguments():
    for table in abi.ABIS.values():
        for _restype, argtypes in (*table.xenctrl.values(), *table.foreign_memory.values()):
            assert argtypes
    assert abi.ABIS["4.17"].xenctrl_soname == "libxenctrl.so.4.17"
    assert abi.ABIS["4.20"].xenctrl_soname == "libxenctrl.so.4.20"


def test_an_unknown_release_is_refused_by_name():
    assert abi.release_of((4 << 16) | 21) == "4.21"
    with pytest.raises(
        abi.UnknownReleaseError, match=r"This host runs Xen 4\.21; only 4\.17, 4\.20 are known to work\."
    ):
        abi.abi_of("4.21")


def test_a_struct_of_another_size_is_noticed():
    with pytest.raises(abi.UnknownReleaseError, match=r"has 112 bytes here and 120 in Xen 4\.17"):
        abi.check_sizes(abi.ABIS["4.17"]._replace(domain_info_bytes=120))


@given(
    st.integers(0, 3 * FOUR_GIB_GFN), st.integers(0, 3 * FOUR_GIB_GFN), st.sampled_from([1 << 14, 100_000])
)
def test_the_walk_covers_every_frame_once(nr_frames, pages, size):
    windows = sorted(search_order(nr_frames, pages, size), key=lambda window: window.start)
    assert all(window.length <= size for window in windows)
    end = 0
    for window in windows:
        assert window.start == end
        end += window.length
    assert end == nr_frames


def test_a_small_guest_is_met_in_the_first_and_the_last_windows_below_4_gib():
    """100 MiB of RAM from 0, special pages just below 4 GiB: the layout seen on real hosts."""
    order = search_order(1_044_480, 25_612, 16384)
    assert order[:3] == [Window(0, 16384), Window(16384, 9228), Window(1_041_420, 3060)]


def domain_of(gfns):
    domain = EmulatedDomain(1, size_frames=10_000)
    for gfn in gfns:
        domain.guest_write(gfn, b"%d" % gfn)
    return domain


@given(st.sets(st.integers(0, 3000), max_size=60))
def test_present_frames_and_their_hashes(gfns):
    domain = domain_of(gfns)
    assert list(present(domain, array("Q", range(3001)))) == sorted(gfns)
    hashes = hash_window(domain, Window(100, 2000))
    assert list(hashes.gfns) == [gfn for gfn in sorted(gfns) if 100 <= gfn < 2100]
    for gfn, value in hashes.items():
        assert value == page_hash(bytes(domain.memory[gfn]))


def test_writes_through_foreign_mappings_are_not_logged():
    domain = domain_of([1, 5])
    domain.log_dirty_on()
    with domain.map_frames(array("Q", [5, 1]), writable=True) as mapped:
        mapped.view[:1] = b"x"
    assert domain.memory[5][:1] == b"x"
    assert domain.clean_dirty(final=True).count == 0


def test_only_our_own_pauses_are_undone():
    domain = domain_of([])
    domain.pause_count = 1  # somebody else's
    domain.pause()
    domain.unpause()
    with pytest.raises(HypervisorError, match="none of its pauses is ours"):
        domain.unpause()
    assert domain.pause_count == 1
