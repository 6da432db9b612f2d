"""The arguments of the helper: every form that a parent has used, and a refusal of everything else."""

import subprocess
import sys

import pytest

from colo_helper.helper import main as program
from colo_helper.helper.argv import (
    FLAG_LIVE,
    NO_FD,
    Invocation,
    RestoreRequest,
    SaveRequest,
    StreamType,
    UsageError,
    build,
    parse,
)

SAVE, RESTORE = "--save-domain", "--restore-domain"
PLAIN, REMUS, COLO = StreamType

#: What each release hands over: the form of today as seen on two hosts, the older ones by their sources.
FORMS = {
    "save, 4.14 and later": (
        f"{SAVE} 15 16 2 1 184 1",
        Invocation(SaveRequest(2, FLAG_LIVE, REMUS), 15, 16, 184, True),
    ),
    "save, 4.11 to 4.13": (
        f"{SAVE} 15 16 2 1 1 248 2",
        Invocation(SaveRequest(2, FLAG_LIVE, COLO), 15, 16, 248, False),
    ),
    "save, 4.7 to 4.10": (
        f"{SAVE} 15 -1 2 0 0 3 1 136 0",
        Invocation(SaveRequest(2, 3, PLAIN), 15, NO_FD, 136, False),
    ),
    "restore, 4.14 and later": (
        f"{RESTORE} 11 20 2 1 0 2 0 800 1",
        Invocation(RestoreRequest(2, 1, 2, 0, 0, REMUS), 11, 20, 800, True),
    ),
    "restore, 4.11 to 4.13": (
        f"{RESTORE} 11 20 2 1 0 2 7 1 1 376 2",
        Invocation(RestoreRequest(2, 1, 2, 0, 7, COLO), 11, 20, 376, False),
    ),
    "restore, 4.7 to 4.10": (
        f"{RESTORE} 11 -1 2 1 3 2 0 1 0 1 256 0",
        Invocation(RestoreRequest(2, 1, 2, 3, 0, PLAIN), 11, NO_FD, 256, False),
    ),
}
every_form = pytest.mark.parametrize(("line", "invocation"), FORMS.values(), ids=FORMS)


@every_form
def test_every_known_form(line, invocation):
    assert parse(line.split()) == invocation


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (SaveRequest(2, FLAG_LIVE, REMUS), f"{SAVE} 15 16 2 1 184 1"),
        (RestoreRequest(2, 1, 2, stream_type=REMUS), f"{RESTORE} 15 16 2 1 0 2 0 184 1"),
    ],
)
def test_what_we_hand_over_is_the_form_of_today(request_, line):
    assert build(request_, 15, 16, 184) == line.split()
    assert parse(line.split()).request == request_


KNOWN_COUNTS = {SAVE: (6, 7, 9), RESTORE: (9, 11, 12)}
WRONG_COUNTS = [
    (mode, count) for mode, known in KNOWN_COUNTS.items() for count in range(15) if count not in known
]


@pytest.mark.parametrize(("mode", "count"), WRONG_COUNTS)
def test_a_wrong_number_of_arguments(mode, count):
    numbers = [str(number) for number in range(count)]
    with pytest.raises(UsageError) as caught:
        parse([mode, *numbers])
    first, heading, *known = str(caught.value).splitlines()
    assert first == f"{mode} came with {count} arguments: {' '.join(numbers) or 'none'}."
    assert heading == "Known forms:"
    assert len(known) == 6
    assert all(SAVE in line or RESTORE in line for line in known)
    assert "4.7 to 4.10 and the patch of 2015" in str(caught.value)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["15", "16"], ["--save"], ["-s"], [""]])
def test_a_wrong_mode(arguments):
    with pytest.raises(UsageError, match="neither --save-domain nor --restore-domain"):
        parse(arguments)


LARGEST = {
    "stream_fd": 2**31 - 1,
    "back_fd": 2**31 - 1,
    "domid": 0x7FEF,
    "flags": 2**32 - 1,
    "callbacks": 2**32 - 1,
    "stream_type": 2,
    "hvm": 1,
    "pae": 1,
    "superpages": 1,
    "store_domid": 0xFFFF,
    "console_domid": 0xFFFF,
    "store_evtchn": 2**64 - 1,
    "console_evtchn": 2**64 - 1,
    "max_iters": 2**64 - 1,
    "max_factor": 2**64 - 1,
}
_PORTS = "store_evtchn store_domid console_evtchn console_domid"
NAMES = {
    "save, 4.14 and later": "stream_fd back_fd domid flags callbacks stream_type",
    "save, 4.11 to 4.13": "stream_fd back_fd domid flags hvm callbacks stream_type",
    "save, 4.7 to 4.10": "stream_fd back_fd domid max_iters max_factor flags hvm callbacks stream_type",
    "restore, 4.14 and later": f"stream_fd back_fd domid {_PORTS} callbacks stream_type",
    "restore, 4.11 to 4.13": f"stream_fd back_fd domid {_PORTS} hvm pae callbacks stream_type",
    "restore, 4.7 to 4.10": f"stream_fd back_fd domid {_PORTS} hvm pae superpages callbacks stream_type",
}
PLACES = [(form, at, name) for form, names in NAMES.items() for at, name in enumerate(names.split(), start=1)]


def with_value(form, at, text):
    words = FORMS[form][0].split()
    words[at] = text
    return words


@pytest.mark.parametrize(("form", "at", "name"), PLACES)
def test_every_value_has_its_bounds(form, at, name):
    lowest = NO_FD if name == "back_fd" else 0
    parse(with_value(form, at, str(lowest)))
    parse(with_value(form, at, str(LARGEST[name])))
    beyond = [str(lowest - 1), str(LARGEST[name] + 1), str(1 << 70), "9" * 5000]
    for text in [*beyond, "", "x", "0x10", "1.0", "1 2", "1_0", "+1", " 1", "1\n", "\u0661", "-0"]:
        with pytest.raises(UsageError) as caught:
            parse(with_value(form, at, text))
        mode = FORMS[form][0].split()[0]
        assert str(caught.value).startswith(f"The argument {name} of {mode} is {text!r} in "), text


class Untouchable:
    """Whatever the program would do after it has read its arguments."""

    def __init__(self, *_arguments):
        raise AssertionError("something was touched")


@pytest.mark.parametrize(
    "line", ["", "--help", SAVE, f"{SAVE} 15 16 2 1 184 3", f"{RESTORE} 11 20 x 1 0 2 0 800 1"]
)
def test_a_usage_error_touches_nothing(monkeypatch, capsys, line):
    for name in ("Stop", "PipeParent", "_protocol_fds", "serve", "_open_xen_domain"):
        monkeypatch.setattr(program, name, Untouchable)
    monkeypatch.setattr(program.signal, "signal", Untouchable)
    monkeypatch.setattr(sys, "argv", ["colo-save-helper", *line.split()])
    assert program.main() == 2
    out, err = capsys.readouterr()
    assert out == "", "stdout belongs to the protocol"
    assert err.startswith("colo-save-helper: The ") or f"{SAVE} came with" in err


def test_a_usage_error_of_the_program():
    done = subprocess.run(
        [sys.executable, "-m", "colo_helper.helper.main", SAVE, "1", "2"],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"colo-save-helper: {SAVE} came with 2 arguments: 1 2.\n")
