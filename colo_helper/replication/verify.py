"""Comparing both copies while they stand still: memory page by page, then the state of the vCPUs and of the devices.

Memory is compared by hashes, one window at a time. The rest is small: the secondary sends all of it. Both sides read it
anew, so what is compared is what each copy has, and not what one has sent to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from colo_helper.channel.wire import Frame, Kind
from colo_helper.hypervisor.frames import Window, search_order
from colo_helper.hypervisor.hashing import hash_window
from colo_helper.hypervisor.interface import Domain, SpecialFrame
from colo_helper.memory.hashes import HashSet, differing_gfns
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions.session import Cause, SessionEndedError
from colo_helper.replication.guest import Guest
from colo_helper.stream import device_state, hvm_context
from colo_helper.stream.device_state import DeviceStateError
from colo_helper.stream.hvm_context import ContextError
from colo_helper.stream.pieces import UNEXPLAINED, Difference, Piece, compare_pieces

#: Frames compared at a time: 64 MiB of guest memory, 192 KiB of hashes and frame numbers on each side.
WINDOW_FRAMES = 16384
#: QEMU 7.2 of Xen 4.17 and 10.0 of 4.20: fw_cfg has 6 and 30 bytes, virtio-net 46,190 and 50,307; the other sections are alike.
_UNLIKE = "The device models are of different releases, and lay this section out in different ways: it is not compared."


@dataclass(frozen=True, slots=True)
class StateComparison:
    """What a comparison of the vCPUs' or the devices' state found; ``bytes`` and ``records`` are the primary's."""

    bytes: int
    records: int
    different: tuple[Difference, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return its part of the answer to ``verify``."""
        return {
            "bytes": self.bytes,
            "records": self.records,
            "different": [difference.to_json() for difference in self.different],
            "unexplained": [
                difference.to_json() for difference in self.different if not difference.explained
            ],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found. ``unexplained`` are those of ``different`` that no owner explains."""

    pages_compared: int
    different: tuple[dict[str, Any], ...]
    unexplained: tuple[int, ...]
    cpu: StateComparison
    devices: StateComparison

    def to_json(self, epoch: int) -> dict[str, Any]:
        """Return the answer to ``verify``."""
        return {
            "epoch": epoch,
            "pages_compared": self.pages_compared,
            "different": list(self.different),
            "unexplained": list(self.unexplained),
            "state": {"cpu": self.cpu.to_json(), "devices": self.devices.to_json()},
        }


def verdict(verified: dict[str, Any]) -> str:
    """Say in a sentence what ``Comparison.to_json`` says."""
    cpu, devices = verified["state"]["cpu"], verified["state"]["devices"]
    return (
        f"Compared both copies at epoch {verified['epoch']}: of {verified['pages_compared']} pages {_counts(verified)}; "
        f"of {cpu['bytes']} bytes of CPU state {_counts(cpu, 'field')}; "
        f"of {devices['bytes']} bytes of device state {_counts(devices, 'field')}."
    )


def _counts(found: dict[str, Any], unit: str = "") -> str:
    unexplained = len(found["unexplained"])
    known = len(found["different"]) - unexplained
    things = f"{unit}{'' if known == 1 else 's'} " if unit else ""
    return f"{known} {things}differ for a known reason, {unexplained} without one"


def judge(gfns: list[int], owners: dict[int, SpecialFrame]) -> list[dict[str, Any]]:
    """Name the owner of every differing frame; one without an owner is unexplained."""
    different = []
    for gfn in gfns:
        owner = owners.get(gfn)
        different.append(
            {
                "gfn": gfn,
                "owner": owner.owner if owner else "guest memory",
                "reason": owner.reason if owner else UNEXPLAINED,
            }
        )
    return different


def compare(guest: Guest, conversation: Conversation, peer_frames: int, *, alike: bool = True) -> Comparison:
    """Run the comparison from the primary; both copies must stand still.

    ``alike``: both hosts have the same release of Xen, and so of the device model.
    """
    compared, gfns = differing_frames(guest.domain, conversation, peer_frames)
    owners = guest.domain.special_frames()
    conversation.send(Kind.STATE)
    ours = _read_state(guest)
    theirs = conversation.expect(Kind.STATES).parts
    if len(theirs) != len(ours):
        raise SessionEndedError(
            Cause.PEER_LOST, f"The peer sent {len(theirs)} parts of state, not {len(ours)}."
        )
    return Comparison(
        compared,
        tuple(judge(gfns, owners)),
        tuple(gfn for gfn in gfns if gfn not in owners),
        compare_states("HVM context", hvm_context.split, ours[0], theirs[0]),
        compare_states("device state", device_state.split, ours[1], theirs[1], "" if alike else _UNLIKE),
    )


def _read_state(guest: Guest) -> tuple[bytes, bytes]:
    return guest.domain.get_context(), guest.devices.save_state()


def answer_state(guest: Guest, conversation: Conversation) -> None:
    """Send the state of the vCPUs and of the devices to the primary."""
    conversation.send(Kind.STATES, parts=_read_state(guest))


def compare_states(
    name: str, split: Callable[[bytes], list[Piece]], ours: bytes, theirs: bytes, unlike: str = ""
) -> StateComparison:
    """Compare two states of one kind; what cannot be split is compared as one piece, called ``name``.

    ``unlike``: see compare_pieces.
    """
    try:
        pieces, other = split(ours), split(theirs)
    except (ContextError, DeviceStateError) as error:
        different = compare_pieces([Piece(name, 0, ours)], [Piece(name, 0, theirs)])
        return StateComparison(
            len(ours), 1, tuple(replace(one, reason=f"{one.reason} {error}") for one in different)
        )
    return StateComparison(len(ours), len(pieces), tuple(compare_pieces(pieces, other, unlike)))


def differing_frames(
    domain: Domain, conversation: Conversation, peer_frames: int, between: Callable[[], None] = lambda: None
) -> tuple[int, list[int]]:
    """Return how many pages were compared, and the frames that are not the same on both sides, ascending.

    Ends as soon as both sides have found as many pages as their hypervisor says there are, so that the holes, nearly
    all of a small guest's frames, are mostly not asked for. ``between`` is called before each window.
    """
    frames = max(domain.nr_frames(), peer_frames)
    pages = domain.info().pages
    found = their_found = compared = 0
    different: list[int] = []
    for window in search_order(frames, pages, WINDOW_FRAMES):
        between()
        conversation.send(Kind.HASH, {"start": window.start, "count": window.length})
        ours = hash_window(domain, window)
        frame = conversation.expect(Kind.HASHES)
        theirs, their_pages = parse_hashes(frame, window)
        different += differing_gfns(ours, theirs)
        found += len(ours)
        their_found += len(theirs)
        compared += len(set(ours.gfns) | set(theirs.gfns))
        if found >= pages and their_found >= their_pages:
            break
    return compared, sorted(different)


def parse_hashes(frame: Frame, window: Window) -> tuple[HashSet, int]:
    """Return the peer's hashes of a window and its number of pages; raises SessionEndedError."""
    try:
        if (frame.head["start"], frame.head["count"]) != (window.start, window.length):
            raise ValueError("The peer hashed another window than it was asked for.")
        hashes = HashSet.unpack(frame.head["width"], *frame.parts)
        if (
            len(hashes)
            and not window.start <= hashes.gfns[0] <= hashes.gfns[-1] < window.start + window.length
        ):
            raise ValueError("The peer's hashes are of frames outside the window.")
        return hashes, int(frame.head["pages"])
    except (KeyError, TypeError, ValueError) as error:
        raise SessionEndedError(Cause.PEER_LOST, f"The peer's page hashes cannot be used: {error}") from error


def answer_hash(domain: Domain, conversation: Conversation, head: dict[str, Any]) -> None:
    """Hash one window for the primary and send the answer."""
    start, count = head.get("start"), head.get("count")
    if not (isinstance(start, int) and isinstance(count, int) and start >= 0 and 0 < count <= WINDOW_FRAMES):
        raise SessionEndedError(
            Cause.PEER_LOST, f"The primary asked for the hashes of {count!r} frames from {start!r}."
        )
    width, numbers, hashes = hash_window(domain, Window(start, count)).pack()
    answer = {"start": start, "count": count, "width": width, "pages": domain.info().pages}
    conversation.send(Kind.HASHES, answer, (numbers, hashes))
