"""SSH packets under AES-GCM with fewer copies and system calls than paramiko's own, and bounds for new keys.

paramiko takes a class for its packets (``packetizer_class``). This one does the work of AES-GCM itself (RFC 5647) and
leaves everything else, the first key exchange above all, to the original. It also blocks in reads and writes where the
original wakes up ten times a second, and its ``close`` wakes who blocks.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import paramiko
from cryptography.exceptions import InvalidTag
from paramiko.common import MSG_CHANNEL_CLOSE
from paramiko.message import Message
from paramiko.packet import Packetizer

#: AES has blocks of 16 bytes; the length before them is authenticated, not encrypted (RFC 5647, 7.3).
_BLOCK_BYTES, _TAG_BYTES, _LENGTH_BYTES = 16, 16, 4
#: RFC 4253, 6: a packet has at least 4 bytes of padding.
_LEAST_PADDING = 4
#: The largest packet taken from a peer: what OpenSSH allows. Channels carry 32 KiB at most.
_MAX_PACKET_BYTES = 256 << 10
_BUFFER_BYTES = 2 * (_LENGTH_BYTES + _MAX_PACKET_BYTES + _TAG_BYTES)
#: A packet before it is encrypted; there may be larger ones.
_PLAIN_BYTES = 64 << 10
_SEQUENCE_MASK = 0xFFFFFFFF
_LENGTH = struct.Struct(">I")


class _Nonce:
    """The 12 bytes of a GCM nonce: 4 that stay and a counter of 8 (RFC 5647, 7.1)."""

    def __init__(self, start: bytes) -> None:
        self._fixed = start[:4]
        self._counter = int.from_bytes(start[4:], "big")

    def take(self) -> bytes:
        """Return the nonce of the next packet."""
        nonce = self._fixed + self._counter.to_bytes(8, "big")
        self._counter = (self._counter + 1) & 0xFFFFFFFFFFFFFFFF
        return nonce


class GcmPacketizer(Packetizer):
    """Packets of one SSH connection. One thread reads, several may write."""

    #: RFC 4253, 9 recommends new keys after each gigabyte; paramiko asks for them at half of that. AES-GCM itself would
    #: bear far more: RFC 5647, 7.1 lets the counter run to 2^64 packets, and RFC 4344, 3.2 allows 2^32 blocks, 64 GiB.
    REKEY_BYTES = 1 << 30
    #: RFC 4344, 3.1: before the sequence number of 32 bits comes round, 2^31 packets at the latest.
    REKEY_PACKETS = 1 << 31

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        connection.settimeout(None)
        self._connection = connection
        self._writing = threading.RLock()
        self._gathering: int | None = None  # the thread whose packets wait for ``flush``
        self._waiting: list[bytes] = []
        self._plain = memoryview(bytearray(_PLAIN_BYTES))
        self._seal: Any = None
        self._seal_nonce = _Nonce(bytes(12))
        self._open: Any = None
        self._open_nonce = _Nonce(bytes(12))
        self._sequence_in = 0
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0
        self._sent_bytes = self._received_bytes = 0
        self._sent_packets = self._received_packets = 0
        self._keys_since = time.monotonic()
        #: Whether the peer has closed its channel, as opposed to having vanished.
        self.channel_closed = False

    @property
    def bytes_since_keys(self) -> int:
        """Bytes sent and received under the present keys."""
        return self._sent_bytes + self._received_bytes

    @property
    def keys_age_s(self) -> float:
        """How long the present keys have been in use, in seconds."""
        return time.monotonic() - self._keys_since

    # ------------------------------------------------------------------------------------ what paramiko sets and asks

    def set_outbound_cipher(  # type: ignore[override]  # noqa: PLR0913, PLR0917  (the signature is paramiko's)
        self,
        block_engine: Any,  # noqa: ANN401
        block_size: int,
        mac_engine: Any,  # noqa: ANN401
        mac_size: int,
        mac_key: bytes,
        sdctr: bool = False,
        etm: bool = False,
        aead: bool = False,
        iv_out: bytes | None = None,
    ) -> None:
        """See paramiko: what is sent from now on."""
        with self._writing:
            super().set_outbound_cipher(
                block_engine, block_size, mac_engine, mac_size, mac_key, sdctr, etm, aead, iv_out
            )
            self._seal = block_engine if aead else None
            self._seal_nonce = _Nonce(iv_out or bytes(12))
            self._sent_bytes = self._sent_packets = 0
            self._keys_since = time.monotonic()

    def set_inbound_cipher(  # type: ignore[override]
        self,
        block_engine: Any,  # noqa: ANN401
        block_size: int,
        mac_engine: Any,  # noqa: ANN401
        mac_size: int,
        mac_key: bytes,
        etm: bool = False,
        aead: bool = False,
        iv_in: bytes | None = None,
    ) -> None:
        """See paramiko: what is received from now on. Raises SSHException when the peer leaves AES-GCM."""
        if self._open is not None and not aead:
            raise paramiko.SSHException("The peer chose another kind of cipher for its new keys.")
        super().set_inbound_cipher(block_engine, block_size, mac_engine, mac_size, mac_key, etm, aead, iv_in)
        self._open = block_engine if aead else None
        self._open_nonce = _Nonce(iv_in or bytes(12))
        self._received_bytes = self._received_packets = 0

    def reset_seqno_in(self) -> None:
        """See paramiko."""
        super().reset_seqno_in()
        self._sequence_in = 0

    def close(self) -> None:
        """Close the connection; who reads or writes gets its end."""
        with contextlib.suppress(OSError):  # it is not connected any more
            self._connection.shutdown(socket.SHUT_RDWR)
        super().close()

    # ------------------------------------------------------------------------------------------------------- packets

    def send_message(self, data: Message) -> None:
        """Send one packet; raises EOFError when the connection is gone."""
        with self._writing:
            if self._seal is None:
                super().send_message(data)
                return
            payload = data.asbytes()
            padding = _BLOCK_BYTES - (1 + len(payload)) % _BLOCK_BYTES
            if padding < _LEAST_PADDING:
                padding += _BLOCK_BYTES
            length = 1 + len(payload) + padding
            head = _LENGTH.pack(length)
            if length > len(self._plain):
                self._plain = memoryview(bytearray(length))
            # Filling memory that is there takes a tenth of what a new piece for each packet takes.
            plain = self._plain[:length]
            plain[0] = padding
            plain[1 : 1 + len(payload)] = payload
            plain[1 + len(payload) :] = os.urandom(padding)
            self._waiting += (head, self._seal.encrypt(self._seal_nonce.take(), plain, head))
            if self._gathering != threading.get_ident():
                self.flush()
            self._sent_packets += 1
            self._sent_bytes += _LENGTH_BYTES + length + _TAG_BYTES
            self._ask_for_keys(self._sent_bytes, self._sent_packets)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Send the packets of this thread together at the end of the block, or with ``flush``.

        A system call and a wake-up of the peer for each packet cost more than its encryption. A packet of another thread
        takes those that wait along, so that it neither overtakes them nor waits for this thread.
        """
        self._gathering = threading.get_ident()
        try:
            yield
        finally:
            self._gathering = None
            self.flush()

    def flush(self) -> None:
        """Send what waits; raises EOFError when the connection is gone."""
        with self._writing:
            buffers, self._waiting = self._waiting, []
            if not buffers:
                return
            try:
                done = self._connection.sendmsg(buffers)
                if done < sum(map(len, buffers)):
                    self._connection.sendall(b"".join(buffers)[done:])
            except OSError as error:
                raise EOFError from error

    def read_message(self) -> tuple[int, Message]:
        """Wait for one packet and return its kind and the rest; raises EOFError and SSHException."""
        if self._open is None:
            return super().read_message()
        self._await(_LENGTH_BYTES)
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        if length % _BLOCK_BYTES or not _BLOCK_BYTES <= length <= _MAX_PACKET_BYTES:
            raise paramiko.SSHException(f"The peer sent a packet of {length} bytes.")
        total = _LENGTH_BYTES + length + _TAG_BYTES
        self._await(total)
        packet = self._buffer[self._start : self._start + total]
        self._start += total
        try:
            plain = self._open.decrypt(
                self._open_nonce.take(), packet[_LENGTH_BYTES:], packet[:_LENGTH_BYTES]
            )
        except InvalidTag as error:
            raise paramiko.SSHException("A packet was changed on its way.") from error
        if not _LEAST_PADDING <= plain[0] < length - 1:
            raise paramiko.SSHException(f"The peer sent a packet with a padding of {plain[0]} bytes.")
        message = Message(plain[2 : length - plain[0]])
        message.seqno = self._sequence_in
        self._sequence_in = (self._sequence_in + 1) & _SEQUENCE_MASK
        self._received_packets += 1
        self._received_bytes += total
        if self._received_bytes >= 2 * self.REKEY_BYTES:
            raise paramiko.SSHException("The peer does not answer when it is asked for new keys.")
        self._ask_for_keys(self._received_bytes, self._received_packets)
        self.channel_closed |= plain[1] == MSG_CHANNEL_CLOSE
        return plain[1], message

    def _await(self, count: int) -> None:
        """Read until ``count`` bytes are in the buffer."""
        while self._end - self._start < count:
            if self._start == self._end:
                self._start = self._end = 0
            elif self._start + count > len(self._buffer):
                rest = bytes(self._buffer[self._start : self._end])
                self._buffer[: len(rest)] = rest
                self._start, self._end = 0, len(rest)
            try:
                got = self._connection.recv_into(self._buffer[self._end :])
            except OSError as error:
                if self.closed:
                    raise EOFError from error
                raise
            if not got:
                raise EOFError
            self._end += got

    def _ask_for_keys(self, count_bytes: int, count_packets: int) -> None:
        if (count_bytes >= self.REKEY_BYTES or count_packets >= self.REKEY_PACKETS) and not self.need_rekey():
            self._trigger_rekey()  # type: ignore[attr-defined]  # meant for subclasses, unknown to the stubs
