"""The first words on a connection, on the primary: which session it is for, and what each side has of it already."""

from __future__ import annotations

import time

from colo_helper.channel.dialer import ConnectError, Connection, Dialer, End
from colo_helper.channel.stream import ChannelLostError, FdStream, Patience, read_frame, write_frame
from colo_helper.channel.wire import Kind, WireError, encode

#: Causes that no further attempt cures: somebody has to pair the hosts again, or the peer has said no.
LASTING = frozenset({"refused", "auth_refused", "host_key_changed", "host_key_unknown", "not_paired"})
_SLICE_S = 0.25


class Opening:
    """An Opener (see channel.session) that dials; every connection must be there and answered within ``timeout_s``."""

    def __init__(self, vm: str, dialer: Dialer, timeout_s: float) -> None:
        self._vm = vm
        self._dialer = dialer
        self._timeout_s = timeout_s

    def open(
        self, channel: str, session: str, received: int, resumes: bool, patience: Patience
    ) -> tuple[FdStream, int]:
        """See Opener."""
        deadline = time.monotonic() + self._timeout_s

        def limited() -> None:
            patience()
            if time.monotonic() > deadline:
                raise ChannelLostError(
                    f"The peer did not answer on the {channel} channel within {self._timeout_s:g} s."
                )

        head = {
            "session": session,
            "channel": channel,
            "vm": self._vm,
            "received": received,
            "resumes": resumes,
        }
        stream = self._dial(channel)
        try:
            write_frame(stream, encode(Kind.OPEN, head), limited, _SLICE_S)
            answer = read_frame(stream, limited, _SLICE_S)
            count = answer.head.get("received")
            if answer.kind is not Kind.OPENED or isinstance(count, bool) or not isinstance(count, int):
                raise ChannelLostError(
                    f"The peer sent {answer.kind.name} {answer.head} where OPENED was due.", lasting=True
                )
        except WireError as error:
            stream.release()
            raise ChannelLostError(str(error), lasting=True) from error
        except ChannelLostError:
            stream.release()
            raise
        return stream, count

    def idle(self) -> None:
        """See Opener."""
        self._dialer.idle()

    def close(self) -> None:
        """See Opener."""
        self._dialer.close()

    def _dial(self, channel: str) -> FdStream:
        try:
            connection = self._dialer.open(channel, self._timeout_s)
        except ConnectError as error:
            raise ChannelLostError(str(error), lasting=error.cause in LASTING) from error
        fd = connection.socket.detach()
        return FdStream(fd, fd, why=lambda: self._why(connection))

    def _why(self, connection: Connection) -> ChannelLostError | None:
        end: End | None = self._dialer.why(connection.id)
        return ChannelLostError(end.sentence, lasting=end.cause in LASTING) if end else None
