"""Messages between the helper and its parent: byte for byte as Xen's own helper writes them, in both numberings."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.helper.argv import Invocation, RestoreRequest, SaveRequest, StreamType
from colo_helper.helper.callout import served_bits
from colo_helper.helper.errors import HelperError, ParentLostError
from colo_helper.helper.messages import (
    MAX_TEXT_BYTES,
    NO_ERRNO,
    WITHOUT_REPLY,
    Callback,
    Level,
    Message,
    MessageError,
    callback_bit,
    callback_of,
    pack,
    parse,
    read_message,
    wire_number,
)
from colo_helper.helper.parent import NAME, PipeParent

#: The first bytes that the stock helper of Xen 4.17 was seen to write when it saves.
OBSERVED = bytes.fromhex(
    "3200 0100 01000000 00000000"
    "12000000 6c6962786c2d736176652d68656c70657200"
    "0e000000 7374617274696e67207361766500"
)
STARTING = Message(Callback.LOG, (Level.DEBUG, 0, "libxl-save-helper", "starting save"))

WIRE = [
    (Message(Callback.PROGRESS, ("xc", "Frames", 5, 1 << 33)),
     "2400 0200 03000000 786300 07000000 4672616d657300 0500000000000000 0000000002000000"),
    (Message(Callback.SUSPEND, ()), "0200 0300"),
    (Message(Callback.POSTCOPY, ()), "0200 0400"),
    (Message(Callback.CHECKPOINT, ()), "0200 0500"),
    (Message(Callback.WAIT_CHECKPOINT, ()), "0200 0600"),
    (Message(Callback.SWITCH_QEMU_LOGDIRTY, (7, 1)), "0a00 0700 07000000 01000000"),
    (Message(Callback.STATIC_DATA_DONE, (3,)), "0600 0800 03000000"),
    (Message(Callback.RESTORE_RESULTS, (0xFEFFC, 0xFEFFF)), "1200 0900 fcef0f0000000000 ffef0f0000000000"),
    (Message(Callback.COMPLETE, (-1, 5)), "0a00 0a00 ffffffff 05000000"),
]  # fmt: skip


class Source:
    """Bytes to be read exactly, as from a pipe that ends."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def __call__(self, length):
        piece = self.data[self.at : self.at + length]
        if len(piece) < length:
            raise EOFError
        self.at += length
        return piece


def test_the_bytes_that_the_stock_helper_was_seen_to_write():
    assert pack(STARTING) == OBSERVED
    assert read_message(Source(OBSERVED)) == STARTING


@pytest.mark.parametrize(("message", "wire"), WIRE, ids=[message.callback.name for message, _ in WIRE])
def test_every_message_of_today(message, wire):
    data = bytes.fromhex(wire)
    assert pack(message) == data
    assert read_message(Source(data)) == message
    assert struct.unpack_from("<HH", data) == (len(data) - 2, message.callback)


def test_numbers_of_before_there_was_static_data():
    assert [
        wire_number(callback, False) for callback in Callback if callback != Callback.STATIC_DATA_DONE
    ] == [*range(1, 10)]
    assert pack(Message(Callback.RESTORE_RESULTS, (1, 2)), modern=False)[:4] == b"\x12\0\x08\0"
    assert pack(Message(Callback.COMPLETE, (0, 0)), modern=False)[:4] == b"\x0a\0\x09\0"
    assert pack(STARTING, modern=False) == OBSERVED
    with pytest.raises(MessageError, match=r"before Xen 4\.14 has no callback for static data"):
        pack(Message(Callback.STATIC_DATA_DONE, (0,)), modern=False)


@pytest.mark.parametrize("modern", [True, False])
def test_numbers_that_no_message_has(modern):
    last = 10 if modern else 9
    for number in (0, last + 1, 0xFFFF):
        with pytest.raises(MessageError, match=f"a message of the unknown number {number}"):
            callback_of(number, modern)
    assert callback_of(last, modern) is Callback.COMPLETE


@pytest.mark.parametrize(
    ("request_", "bits"),
    [
        (SaveRequest(1, stream_type=StreamType.PLAIN), 136),
        (SaveRequest(1, stream_type=StreamType.REMUS), 184),
        (SaveRequest(1, stream_type=StreamType.COLO), 248),
        (RestoreRequest(1, 1, 2, stream_type=StreamType.PLAIN), 768),
        (RestoreRequest(1, 1, 2, stream_type=StreamType.REMUS), 800),
        (RestoreRequest(1, 1, 2, stream_type=StreamType.COLO), 888),
    ],
)
def test_the_bits_are_libxls(request_, bits):
    assert served_bits(request_) == bits


def test_bits_of_both_numberings():
    assert callback_bit(Callback.RESTORE_RESULTS, True) == 512
    assert callback_bit(Callback.RESTORE_RESULTS, False) == 256


# ------------------------------------------------------------------------------------------------------- any message

texts = st.text(max_size=200).filter(
    lambda text: "\0" not in text and text == text.encode(errors="replace").decode()
)
u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
integers = st.integers(-(1 << 31), (1 << 31) - 1)
any_message = st.one_of(
    st.builds(lambda *a: Message(Callback.LOG, a), u32, u32, texts, texts),
    st.builds(lambda *a: Message(Callback.PROGRESS, a), texts, texts, u64, u64),
    st.sampled_from([message for message, _ in WIRE if not message.arguments]),
    st.builds(lambda *a: Message(Callback.SWITCH_QEMU_LOGDIRTY, a), u32, u32),
    st.builds(lambda *a: Message(Callback.RESTORE_RESULTS, a), u64, u64),
    st.builds(lambda *a: Message(Callback.COMPLETE, a), integers, integers),
)


@given(st.lists(any_message, min_size=1, max_size=4), st.booleans())
def test_messages_come_back_and_nothing_is_read_beyond_them(many, modern):
    source = Source(b"".join(pack(message, modern) for message in many) + b"more")
    for message in many:
        assert read_message(source, modern) == message
    assert source.data[source.at :] == b"more"


@given(any_message)
def test_a_message_that_is_cut_or_longer_than_it_says(message):
    data = pack(message)
    with pytest.raises(EOFError):
        read_message(Source(data[:-1]))
    with pytest.raises(MessageError, match=f"The message {message.callback.name} has 1 bytes too many"):
        parse(message.callback, data[4:] + b"\0")
    if len(data) > 4:
        with pytest.raises(MessageError, match=message.callback.name):
            parse(message.callback, data[4:-1])


@given(st.integers(0, 0xFFFF), st.binary(max_size=64), st.booleans())
def test_any_bytes_are_a_message_or_an_error_with_a_sentence(number, body, modern):
    sentence = ""
    try:
        parse(number, body, modern)
    except MessageError as error:
        sentence = str(error)
    known = 0 < number <= (10 if modern else 9)
    assert sentence.endswith(".") if sentence else known


@pytest.mark.parametrize("length", [0, 1])
def test_a_message_without_a_number(length):
    with pytest.raises(MessageError, match=f"a message of {length} bytes"):
        read_message(Source(struct.pack("<HH", length, 1)))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (struct.pack("<III", 1, 0, 0), "does not end where it says"),  # not even a NUL
        (struct.pack("<III", 1, 0, 3) + b"ab", "does not end where it says"),
        (struct.pack("<III", 1, 0, 2) + b"ab", "does not end where it says"),
        (struct.pack("<III", 1, 0, 0xFFFFFFFF) + b"a\0", "does not end where it says"),
        (struct.pack("<II", 1, 0), "ends too early, after 8 bytes"),
    ],
)
def test_a_text_that_is_none(body, words):
    with pytest.raises(MessageError, match=words):
        parse(Callback.LOG, body)


def test_texts_of_any_kind_fit_into_a_message():
    long = "é" * MAX_TEXT_BYTES
    message = read_message(Source(pack(Message(Callback.LOG, (1, NO_ERRNO, long, long)))))
    assert [len(str(text).encode()) for text in message.arguments[2:]] == [MAX_TEXT_BYTES] * 2
    odd = read_message(Source(pack(Message(Callback.LOG, (1, 0, "a\0b", "\udcff")))))
    assert odd.arguments[2:] == ("a b", "?")


# -------------------------------------------------------------------------------------------------- the helper's side


class Conversation:
    """A helper's side of the pipes, and what a parent sees and says."""

    def __init__(self, callbacks, modern):
        self.answers, self._write = os.pipe()
        self._read, self.messages = os.pipe()
        invocation = Invocation(SaveRequest(3), 5, 6, callbacks, modern)
        self.parent = PipeParent(self.answers, self.messages, invocation)

    def said(self):
        os.set_blocking(self._read, False)
        try:
            return os.read(self._read, 1 << 17)
        except BlockingIOError:
            return b""

    def answer(self, *values):
        os.write(self._write, struct.pack(f"<{len(values)}i", *values))

    def hang_up(self):
        os.close(self._write)
        os.close(self._read)
        self._write = self._read = -1

    def close(self):
        for fd in (self.answers, self.messages, self._write, self._read):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def converse():
    open_ones = []

    def begin(callbacks=0x3FF, modern=True):
        open_ones.append(Conversation(callbacks, modern))
        return open_ones[-1]

    yield begin
    for conversation in open_ones:
        conversation.close()


@pytest.mark.parametrize("modern", [True, False])
def test_what_the_helper_says(converse, modern):
    talk = converse(modern=modern)
    talk.parent.log(Level.ERROR, "No.", 5)
    assert talk.said() == pack(Message(Callback.LOG, (8, 5, NAME, "No.")), modern)
    talk.parent.log(Level.INFO, "Well.")
    assert talk.said() == pack(Message(Callback.LOG, (5, NO_ERRNO, NAME, "Well.")), modern)
    talk.parent.progress("Frames", 1, 2)
    assert talk.said() == pack(Message(Callback.PROGRESS, (NAME, "Frames", 1, 2)), modern)
    talk.parent.tell(Callback.RESTORE_RESULTS, 8, 9)
    assert talk.said() == pack(Message(Callback.RESTORE_RESULTS, (8, 9)), modern)
    talk.answer(-7, 1, 0)
    assert talk.parent.ask(Callback.CHECKPOINT) == -7, "one answer for one question"
    assert talk.parent.ask(Callback.SWITCH_QEMU_LOGDIRTY, 3, 1) == 1
    assert talk.said() == pack(Message(Callback.CHECKPOINT, ())) + pack(
        Message(Callback.SWITCH_QEMU_LOGDIRTY, (3, 1))
    )
    talk.parent.complete(-1, 5)
    assert talk.said() == pack(Message(Callback.COMPLETE, (-1, 5)), modern)


@pytest.mark.parametrize("modern", [True, False])
def test_only_what_the_parent_serves_is_asked(converse, modern):
    served = callback_bit(Callback.SUSPEND, modern) | callback_bit(Callback.RESTORE_RESULTS, modern)
    talk = converse(served, modern)
    asked = [
        callback
        for callback in Callback
        if callback not in WITHOUT_REPLY and callback is not Callback.COMPLETE
    ]
    assert [callback for callback in asked if talk.parent.serves(callback)] == [Callback.SUSPEND]
    with pytest.raises(HelperError, match="does not serve the callback checkpoint, which is needed here"):
        talk.parent.ask(Callback.CHECKPOINT)
    assert talk.said() == b""
    other = converse(callback_bit(Callback.SUSPEND, modern), modern)
    other.parent.tell(Callback.RESTORE_RESULTS, 1, 2)
    assert other.said() == b"", "nor told"


def test_an_old_parent_is_never_asked_about_static_data(converse):
    assert not converse((1 << 32) - 1, modern=False).parent.serves(Callback.STATIC_DATA_DONE)


def test_a_parent_that_is_gone(converse):
    talk = converse()
    talk.hang_up()
    for step in (
        lambda: talk.parent.log(Level.INFO, "x"),
        lambda: talk.parent.ask(Callback.SUSPEND),
        lambda: talk.parent.tell(Callback.RESTORE_RESULTS, 0, 0),
        lambda: talk.parent.complete(0, 0),
    ):
        with pytest.raises(ParentLostError, match="does not read any more: Broken pipe"):
            step()


@pytest.mark.parametrize("came", [b"", b"\1\0"])
def test_a_parent_that_goes_away_instead_of_answering(converse, came):
    talk = converse()
    os.write(talk._write, came)
    os.close(talk._write)
    talk._write = -1
    with pytest.raises(ParentLostError, match="closed its side instead of answering"):
        talk.parent.ask(Callback.SUSPEND)


def test_an_answer_that_cannot_be_read(converse):
    talk = converse()
    null = os.open("/proc/self/mem", os.O_RDONLY)  # reading address 0 fails with EIO
    os.dup2(null, talk.answers)
    os.close(null)
    with pytest.raises(ParentLostError, match="answer cannot be read: Input/output error"):
        talk.parent.ask(Callback.SUSPEND)
