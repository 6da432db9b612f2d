"""Packets under AES-GCM: against paramiko's own, and against a peer that sends nonsense."""

from __future__ import annotations

import os
import socket
import struct
import threading

import paramiko
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from paramiko.message import Message
from paramiko.packet import Packetizer

from colo_helper.channel.packetizer import GcmPacketizer

KEY, NONCE = bytes(16), bytes(4) + b"\xff" * 8  # the counter comes round at once


def end(connection, kind):
    packetizer = kind(connection)
    engine = AESGCM(KEY)
    packetizer.set_outbound_cipher(engine, 16, None, 16, None, aead=True, iv_out=NONCE)
    packetizer.set_inbound_cipher(engine, 16, None, 16, None, aead=True, iv_in=NONCE)
    return packetizer


@pytest.fixture
def sockets():
    pair = socket.socketpair()
    yield pair
    for one in pair:
        one.close()


def message(payload):
    return Message(bytes([94]) + payload)


def test_every_length(sockets):
    ours, theirs = end(sockets[0], GcmPacketizer), end(sockets[1], GcmPacketizer)
    for length in (*range(40), 32_704, 100_000):
        payload = os.urandom(length)
        writer = threading.Thread(target=ours.send_message, args=(message(payload),))
        writer.start()
        kind, got = theirs.read_message()
        writer.join()
        assert (kind, got.get_remainder()) == (94, payload)
    assert ours.bytes_since_keys == theirs.bytes_since_keys > 132_704


@pytest.mark.parametrize(("sender", "receiver"), [(GcmPacketizer, Packetizer), (Packetizer, GcmPacketizer)])
def test_with_paramikos_own(sockets, sender, receiver):
    # paramiko's counter cannot come round, and need not: 2^64 packets take longer than any host lives.
    ours, theirs = sender(sockets[0]), receiver(sockets[1])
    engine = AESGCM(KEY)
    ours.set_outbound_cipher(engine, 16, None, 16, None, aead=True, iv_out=bytes(12))
    theirs.set_inbound_cipher(engine, 16, None, 16, None, aead=True, iv_in=bytes(12))
    for length in (0, 1, 11, 12, 13, 32_704):
        ours.send_message(message(b"x" * length))
        kind, got = theirs.read_message()
        assert (kind, got.get_remainder()) == (94, b"x" * length)


def test_gathered_packets_go_together(sockets):
    ours, theirs = end(sockets[0], GcmPacketizer), end(sockets[1], GcmPacketizer)
    sockets[1].setblocking(False)
    with ours.gathered():
        ours.send_message(message(b"first"))
        with pytest.raises(BlockingIOError):
            sockets[1].recv(1, socket.MSG_PEEK)
        other = threading.Thread(target=ours.send_message, args=(message(b"second"),))
        other.start()
        other.join()
        assert sockets[1].recv(1, socket.MSG_PEEK), "another thread waits for nobody"
        ours.send_message(message(b"third"))
    sockets[1].setblocking(True)
    assert [theirs.read_message()[1].get_remainder() for _ in range(3)] == [b"first", b"second", b"third"]


def test_a_changed_packet(sockets):
    ours, theirs = end(sockets[0], GcmPacketizer), end(sockets[1], GcmPacketizer)
    ours.send_message(message(b"true"))
    data = bytearray(sockets[1].recv(1000))
    data[10] ^= 1
    sockets[0].sendall(data)
    with pytest.raises(paramiko.SSHException, match="changed on its way"):
        theirs.read_message()


@pytest.mark.parametrize("length", [0, 15, 17, (256 << 10) + 16, 0xFFFFFFF0])
def test_a_length_that_none_has(sockets, length):
    theirs = end(sockets[1], GcmPacketizer)
    sockets[0].sendall(struct.pack(">I", length))
    with pytest.raises(paramiko.SSHException, match=f"a packet of {length} bytes"):
        theirs.read_message()


@pytest.mark.parametrize("padding", [0, 3, 15, 255])
def test_a_padding_that_none_has(sockets, padding):
    theirs = end(sockets[1], GcmPacketizer)
    head = struct.pack(">I", 16)
    sockets[0].sendall(head + AESGCM(KEY).encrypt(NONCE, bytes([padding]) + bytes(15), head))
    with pytest.raises(paramiko.SSHException, match=f"a padding of {padding} bytes"):
        theirs.read_message()


def test_the_end_in_a_packet(sockets):
    theirs = end(sockets[1], GcmPacketizer)
    sockets[0].sendall(struct.pack(">I", 16) + bytes(7))
    sockets[0].close()
    with pytest.raises(EOFError):
        theirs.read_message()


def test_closing_wakes_the_reader(sockets):
    theirs = end(sockets[1], GcmPacketizer)
    ended = threading.Event()

    def read():
        with pytest.raises(EOFError):
            theirs.read_message()
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    theirs.close()
    assert ended.wait(30)


def test_a_peer_that_gives_no_new_keys(sockets, monkeypatch):
    monkeypatch.setattr(GcmPacketizer, "REKEY_BYTES", 1000)
    ours, theirs = end(sockets[0], GcmPacketizer), end(sockets[1], GcmPacketizer)
    for _ in range(2):
        ours.send_message(message(bytes(900)))
    theirs.read_message()
    assert not theirs.need_rekey()
    theirs.read_message()
    assert theirs.need_rekey()
    ours.send_message(message(bytes(900)))
    with pytest.raises(paramiko.SSHException, match="does not answer when it is asked for new keys"):
        theirs.read_message()


def test_another_kind_of_cipher(sockets):
    theirs = end(sockets[1], GcmPacketizer)
    with pytest.raises(paramiko.SSHException, match="another kind of cipher"):
        theirs.set_inbound_cipher(None, 16, None, 20, b"", aead=False)
