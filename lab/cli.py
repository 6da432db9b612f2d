"""`python -m lab`: the lab's verbs."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from functools import partial

from lab import guests, network, ssh
from lab.demo.run import run as run_demo
from lab.errors import LabError
from lab.image import ensure_image
from lab.lab import Lab, check_machine
from lab.recipe import RECIPES, recipe_for
from lab.settings import GUEST_PATHS, HOSTS, NAMES, PATHS, Settings, here

_RATE = re.compile(r"(\d+)([kmg]?)bit")
_SCALE = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}


def main(arguments: list[str] | None = None) -> int:
    """Parse, act, and turn a LabError into its sentence and exit code 1."""
    options = _parser().parse_args(arguments)
    settings = here()
    say = _quiet if options.quiet else partial(print, flush=True)
    lab = Lab(settings, say)
    try:
        verb: Callable[[Settings, Lab, argparse.Namespace], int | None] = options.run
        return verb(settings, lab, options) or 0
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; the next lab command removes what is half done", file=sys.stderr)
        return 130


def parse_rate(text: str) -> int:
    """Bits per second of `10mbit` and the like (tc's units)."""
    match = _RATE.fullmatch(text.lower())
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate: write 500kbit, 10mbit or 1gbit")
    return int(match[1]) * _SCALE[match[2]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description="Two real Xen hosts in QEMU.")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what went wrong")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(
        name: str, run: Callable[[Settings, Lab, argparse.Namespace], int | None], text: str
    ) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.set_defaults(run=run)
        return verb

    up = add("up", _up, "both hosts running: made from nothing, or back from their snapshot")
    up.add_argument(
        "--ssh-port", type=int, help="first of the ssh ports on 127.0.0.1 for a new lab (default: free ones)"
    )
    up.add_argument(
        "--hosts",
        type=int,
        choices=(len(HOSTS), len(NAMES)),
        help="how many (default: those there are, two for a new lab)",
    )
    image = add("image", _image, "build the disk image only")
    demo = add("demo", _demo, "the main job: install, protect, verify, pull the plug, fail over")
    for verb in (up, image, demo):
        verb.add_argument(
            "--debian",
            type=_releases,
            default=None if verb is up else (12,),
            help="release of both hosts, or of each in order (12,13); "
            f"there are {sorted(RECIPES)}"
            + (" (default: those that they have, 12 for new ones)" if verb is up else ""),
        )
    down = add("down", _down, "stop everything")
    down.add_argument("--purge", action="store_true", help="remove disks, keys and snapshots too")
    reset = add(
        "reset", lambda _s, lab, o: lab.reset(with_guest=o.guest), "both hosts as after their first boot"
    )
    reset.add_argument("--guest", action="store_true", help="with the guest h1 running on the first host")
    add("status", _status, "one line per host")
    login = add("ssh", _ssh, "log in to a host or run a command there")
    login.add_argument("host", choices=NAMES)
    login.add_argument("words", nargs=argparse.REMAINDER)
    client = add("client", _client, "run a command where the guests' clients are")
    client.add_argument("words", nargs=argparse.REMAINDER)
    create = add("create", lambda s, _l, o: guests.create(s, o.guest, o.host), "create a guest on a host")
    create.add_argument("guest", choices=guests.GUESTS)
    create.add_argument("host", choices=NAMES)
    ask = add("ask", _ask, "ask a guest's counting service from the client's place")
    ask.add_argument("guest", choices=guests.GUESTS)
    ask.add_argument("token", nargs="?", help="write this token instead of only reading")

    for name, run, text in (
        ("power-off", lambda _s, lab, o: lab.host(o.host).power_off(), "fault: pull a host's plug (SIGKILL)"),
        (
            "power-on",
            lambda _s, lab, o: lab.power_on(o.host),
            "boot a host that was powered off, from its own disk",
        ),
        (
            "freeze",
            lambda _s, lab, o: lab.host(o.host).freeze(),
            "fault: stop a host between two instructions (SIGSTOP)",
        ),
        ("thaw", lambda _s, lab, o: lab.host(o.host).thaw(), "let a frozen host go on"),
    ):
        add(name, run, text).add_argument("host", choices=NAMES)
    for name, plugged in (("cut", False), ("mend", True)):
        cable = add(
            name,
            partial(_cable, plugged),
            f"{'fault: ' if not plugged else ''}{name} a host's cable on a path",
        )
        cable.add_argument("path", choices=PATHS)
        cable.add_argument("host", choices=NAMES)
    narrow = add(
        "narrow",
        lambda s, _l, o: network.narrow(s, o.path, o.rate),
        "fault: limit a path's rate, e.g. 10mbit",
    )
    narrow.add_argument("path", choices=GUEST_PATHS)
    narrow.add_argument("rate", type=parse_rate)
    widen = add("widen", lambda s, _l, o: network.widen(s, o.path), "take the limit of `narrow` away")
    widen.add_argument("path", choices=GUEST_PATHS)
    return parser


def _releases(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _quiet(_sentence: str) -> None:
    """Progress is not wanted."""


def _up(_settings: Settings, lab: Lab, options: argparse.Namespace) -> None:
    lab.up(options.debian, options.ssh_port, options.hosts)


def _image(settings: Settings, _lab: Lab, options: argparse.Namespace) -> None:
    check_machine()
    for release in options.debian:
        print(ensure_image(recipe_for(release), settings.cache, partial(print, flush=True)).directory)


def _demo(settings: Settings, lab: Lab, options: argparse.Namespace) -> int:
    return run_demo(settings, lab, options.debian)


def _down(_settings: Settings, lab: Lab, options: argparse.Namespace) -> None:
    lab.down(purge=options.purge)


def _status(_settings: Settings, lab: Lab, _options: argparse.Namespace) -> int:
    rows = lab.status()
    for row in rows:
        print(f"{row['host']}  {row['state']:<9} pid {row['pid']:<8} ssh {row['ssh']}")
    return 0 if all(row["state"] == "running" for row in rows) else 3


def _ssh(settings: Settings, lab: Lab, options: argparse.Namespace) -> None:
    lab.host(options.host).require_pid()
    command = ssh.command(settings, options.host, *options.words)
    os.execvp(command[0], command)  # noqa: S606 # ssh takes over this terminal


def _client(settings: Settings, _lab: Lab, options: argparse.Namespace) -> None:
    command = ["ip", "netns", "exec", settings.netns, *(options.words or ["bash"])]
    os.execvp(command[0], command)  # noqa: S606 # the command takes over this terminal


def _ask(settings: Settings, _lab: Lab, options: argparse.Namespace) -> None:
    client = guests.Client(settings, options.guest)
    try:
        answer = client.write(options.token) if options.token else client.read()
    except OSError as error:
        raise LabError(
            f"{options.guest} at {guests.GUESTS[options.guest]} does not answer: {error}"
        ) from error
    print(f"counter={answer.counter} writes={answer.writes} last={answer.last} chain={answer.chain:08x}")


def _cable(plugged: bool, _settings: Settings, lab: Lab, options: argparse.Namespace) -> None:
    lab.host(options.host).set_cable(options.path, plugged=plugged)
