"""Comparing both copies page by page while they stand still, one window of guest memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from colo_helper.channel.wire import Frame, Kind
from colo_helper.hypervisor.frames import Window, search_order
from colo_helper.hypervisor.hashing import hash_window
from colo_helper.hypervisor.interface import Domain, SpecialFrame
from colo_helper.memory.hashes import HashSet, differing_gfns
from colo_helper.replication.conversation import Conversation
from colo_helper.replication.decisions import Cause, SessionEndedError

#: Frames compared at a time: 64 MiB of guest memory, 192 KiB of hashes and frame numbers on each side.
WINDOW_FRAMES = 16384


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found. ``unexplained`` are those of ``different`` that no owner explains."""

    pages_compared: int
    different: tuple[dict[str, Any], ...]
    unexplained: tuple[int, ...]

    def to_json(self, epoch: int) -> dict[str, Any]:
        """Return the answer to ``verify``."""
        return {
            "epoch": epoch,
            "pages_compared": self.pages_compared,
            "different": list(self.different),
            "unexplained": list(self.unexplained),
        }


def judge(pages_compared: int, gfns: list[int], owners: dict[int, SpecialFrame]) -> Comparison:
    """Name the owner of every differing frame; one without an owner is unexplained."""
    different = []
    for gfn in gfns:
        owner = owners.get(gfn)
        different.append(
            {
                "gfn": gfn,
                "owner": owner.owner if owner else "guest memory",
                "reason": owner.reason if owner else "Nothing known explains it: the copies are not equal.",
            }
        )
    return Comparison(pages_compared, tuple(different), tuple(gfn for gfn in gfns if gfn not in owners))


def compare(domain: Domain, conversation: Conversation, peer_frames: int) -> Comparison:
    """Run the comparison from the primary; both copies must stand still."""
    compared, different = differing_frames(domain, conversation, peer_frames)
    return judge(compared, different, domain.special_frames())


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
