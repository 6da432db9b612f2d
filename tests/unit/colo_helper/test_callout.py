"""The parent's side when a callback of ours fails: the helper waits for an answer and must get one."""

import os

import pytest

from colo_helper.helper import messages
from colo_helper.helper.callout import MessageServer
from colo_helper.helper.messages import REPLY, Callback, Message


class Failing:
    """Every callback fails, with a number, so that the first can be told from the later ones."""

    def __init__(self):
        self.calls = 0

    def __getattr__(self, name):
        def callback(*_arguments):
            self.calls += 1
            raise RuntimeError(f"{name} failed, call {self.calls}")

        return callback


@pytest.fixture
def pipes():
    fds = [*os.pipe(), *os.pipe()]
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("callback", "arguments", "no"),
    [
        (Callback.SUSPEND, (), 0),
        (Callback.POSTCOPY, (), 0),
        (Callback.CHECKPOINT, (), 0),
        (Callback.WAIT_CHECKPOINT, (), 0),
        (Callback.SWITCH_QEMU_LOGDIRTY, (3, 1), 1),
        (Callback.STATIC_DATA_DONE, (0,), -1),
    ],
)
def test_a_callback_that_raises_is_a_no_to_the_helper(pipes, callback, arguments, no):
    from_helper, helper_writes, helper_reads, to_helper = pipes
    os.write(helper_writes, messages.pack(Message(callback, arguments)))
    with pytest.raises(RuntimeError, match="failed, call 1"):
        MessageServer(from_helper, to_helper, "helper").serve(Failing(), {})
    os.set_blocking(helper_reads, False)
    assert os.read(helper_reads, 100) == REPLY.pack(no)


def test_tidying_goes_on_when_a_callback_fails_again(pipes):
    from_helper, helper_writes, helper_reads, to_helper = pipes
    for message in (Message(Callback.SWITCH_QEMU_LOGDIRTY, (3, 0)), Message(Callback.COMPLETE, (-1, 4))):
        os.write(helper_writes, messages.pack(message))
    server = MessageServer(from_helper, to_helper, "helper")
    assert not server.tidy(Failing(), 0.2), "the helper has not closed its side"
    assert server.completed == (-1, 4)
    os.set_blocking(helper_reads, False)
    assert os.read(helper_reads, 100) == REPLY.pack(1) + REPLY.pack(0)
