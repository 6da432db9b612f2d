"""The commands of ``colo-helper`` but ``attach``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from colo_helper import __version__
from colo_helper.control.look import STATE_ROOT, known_vms, look
from colo_helper.control.protocol import CAPTURE_S, LONGEST_CAPTURE_S, VERBS


def dispatch(arguments: Sequence[str]) -> int:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(
        prog="colo-helper", description="COLO fault-tolerant VMs on Xen: the hosts' side."
    )
    parser.add_argument("--version", action="version", version=f"colo-helper {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the replicator of a VM (systemd does this)")
    run.add_argument("vm")
    attach = commands.add_parser("attach", help="forced command of the user colo (sshd runs it)")
    attach.add_argument("vm")
    status = commands.add_parser("status", help="show what is")
    status.add_argument("vm", nargs="?")
    status.add_argument("--json", action="store_true", help="the whole state as JSON")
    exporter = commands.add_parser("exporter", help="answer Prometheus (systemd runs it)")
    exporter.add_argument("address")
    exporter.add_argument("port", type=_whole(1, 65535))
    commands.add_parser("receive", help="take a VM from xl migrate at the peer (systemd does this)")
    commands.add_parser(
        "guard", help="keep xendomains from starting VMs that may run elsewhere (systemd does this at boot)"
    )
    ctl = commands.add_parser("ctl", help="ask the replicator of a VM for something; prints its JSON answer")
    ctl.add_argument("vm")
    ctl.add_argument("verb", choices=VERBS)
    ctl.add_argument("--reason", default="", help="why, for the record")
    ctl.add_argument(
        "--forced", action="store_true", help="you answer for it that no other copy of the VM runs"
    )
    ctl.add_argument(
        "--seconds",
        type=_whole(1, LONGEST_CAPTURE_S),
        default=CAPTURE_S,
        help=f"how long 'capture' lasts ({CAPTURE_S})",
    )
    again = commands.add_parser(
        "replay", help="say which checkpoints the packets of a capture asked for, and why"
    )
    again.add_argument("capture", type=Path, metavar="CAPTURE.pcapng")
    for side in ("secondary", "primary"):
        again.add_argument(
            f"--{side}-ms",
            type=_whole(1, 3_600_000),
            help=f"how long what the {side} has to say may be awaited",
        )
    probe = commands.add_parser("probe", help="measure the way to the peer of a VM, or say why there is none")
    _add_probe_arguments(probe)
    chosen = parser.parse_args(arguments)
    commands_by_name: dict[str, Callable[[argparse.Namespace], int]] = {
        "run": _run,
        "exporter": _exporter,
        "guard": _guard,
        "receive": _receive,
        "replay": _replay,
        "ctl": _ctl,
        "probe": _probe,
        "status": _status,
    }
    return commands_by_name[chosen.command](chosen)


def _run(chosen: argparse.Namespace) -> int:
    from colo_helper.replication.runner import run  # noqa: PLC0415

    return run(chosen.vm)


def _exporter(chosen: argparse.Namespace) -> int:
    from colo_helper.exporter.server import serve  # noqa: PLC0415

    return serve(chosen.address, chosen.port)


def _guard(_chosen: argparse.Namespace) -> int:
    from colo_helper.guard.boot import main  # noqa: PLC0415

    return main()


def _receive(_chosen: argparse.Namespace) -> int:
    from colo_helper.channel.receive import main  # noqa: PLC0415

    return main()


def _replay(chosen: argparse.Namespace) -> int:
    from colo_helper.proxy.replay import show  # noqa: PLC0415

    return show(chosen.capture, chosen.secondary_ms, chosen.primary_ms)


def _add_probe_arguments(probe: argparse.ArgumentParser) -> None:
    probe.add_argument("vm")
    probe.add_argument("--json", action="store_true", help="the whole report as JSON")
    probe.add_argument("--name", default="the peer", help="the peer's name, for sentences")
    probe.add_argument("--address", help="the peer; its address in the VM's configuration when not given")
    probe.add_argument("--port", type=_whole(1, 65535), default=22)
    probe.add_argument("--heartbeat-address", help="the peer in a second network")
    probe.add_argument("--key-file", type=Path, help="another key than the VM's")
    probe.add_argument("--echoes", type=_whole(1, 10_000), default=100, help="round trips of 64 bytes (100)")
    probe.add_argument(
        "--size-bytes", type=_whole(0, 120 << 20), default=16 << 20, help="each way (16 MiB); 0: none"
    )
    probe.add_argument(
        "--timeout-s", type=_whole(1, 600), default=20, help="of the connection and each answer (20)"
    )


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 12 or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _probe(chosen: argparse.Namespace) -> int:
    from colo_helper.channel.peer import PeerAddress  # noqa: PLC0415
    from colo_helper.channel.probe import nowhere, probe  # noqa: PLC0415
    from colo_helper.replication.config import CONFIG, ConfigError, load_config  # noqa: PLC0415

    name, address, port, heartbeat = chosen.name, chosen.address, chosen.port, chosen.heartbeat_address
    problem = ""
    if not address:
        try:
            config = load_config(Path(CONFIG.format(vm=chosen.vm)), chosen.vm)
        except ConfigError as error:
            problem = f"{error} Give the peer's address, or protect the VM."
        else:
            name, address, port = config.peer_name, config.peer_address, config.peer_port
            heartbeat = config.peer_heartbeat_address
            if not address:
                problem = (
                    f"The configuration of {chosen.vm} on its secondary names no address of {name}: give one."
                )
    if problem:
        report = nowhere(chosen.vm, "no_address", problem)
    else:
        peer = PeerAddress(name, address, port, key_file=chosen.key_file, heartbeat_address=heartbeat or None)
        report = probe(peer, chosen.vm, chosen.echoes, chosen.size_bytes, chosen.timeout_s)
    _say(json.dumps(report, indent=1) if chosen.json else _probed(report))
    return 1 if report["error"] or (report["heartbeat"] or {}).get("error") else 0


def _probed(report: dict[str, Any]) -> str:
    """A report of a probe in sentences."""
    if report["error"]:
        return str(report["error"]["sentence"])
    rtt, speed, second = report["rtt_ms"], report["throughput_mb_s"], report["heartbeat"]
    lines = [
        f"{report['peer']} ({report['address']} port {report['port']}), host key {report['host_key']}",
        f"connected in {report['connect_ms']:.0f} ms, {report['cipher']}",
        f"round trip of 64 bytes: {rtt['p50']:.2f} ms, 99 of 100 within {rtt['p99']:.2f} ms",
    ]
    if speed:
        lines.append(
            f"throughput: {speed['to_peer']:.1f} MB/s to the peer, {speed['from_peer']:.1f} MB/s from it"
        )
    if second:
        failed = second["error"] and second["error"]["sentence"]
        lines.append(
            f"heartbeats: {failed or 'round trip ' + format(second['rtt_ms']['p50'], '.2f') + ' ms'}"
        )
    return "\n".join(lines)


def _ctl(chosen: argparse.Namespace) -> int:
    from colo_helper.control.client import ask  # noqa: PLC0415
    from colo_helper.control.protocol import RefusedError, refusal  # noqa: PLC0415

    try:
        answer = ask(
            chosen.vm, chosen.verb, reason=chosen.reason, forced=chosen.forced, seconds=chosen.seconds
        )
    except RefusedError as error:
        answer = refusal(error.code, str(error))
    _say(json.dumps(answer, indent=1))
    return 0 if answer.get("ok") is True else 1


def _status(chosen: argparse.Namespace) -> int:
    vm: str | None = chosen.vm
    names = [vm] if vm else known_vms(STATE_ROOT)
    found = [state for name in names if (state := _state_of(name))]
    if chosen.json:
        _say(json.dumps(found[0] if vm and found else found, indent=1))
    else:
        for state in found:
            _say("\n".join([_line(state), *(details(state) if vm else [])]))
    if vm and not found:
        sys.stderr.write(f"Nothing is known about a VM named {vm} on this host.\n")
        return 1
    return 0


def _state_of(vm: str) -> dict[str, Any] | None:
    try:
        return look(vm, STATE_ROOT)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return None


def _line(state: dict[str, Any]) -> str:
    last = state.get("last") or {}
    pause = f", last pause {last['pause_ms']:.0f} ms" if last else ""
    ended = "" if state["running"] else " (the replicator does not run)"
    return f"{state['vm']}: {state['role']}, {state['phase']}{ended}, epoch {state['epoch']}{pause}: {state['reason']}"


def details(state: dict[str, Any]) -> list[str]:
    """Say in sentences why the last checkpoint was made, when the next one comes, and what became of the packets."""
    lines = []
    if reason := state.get("maintenance"):
        lines.append(f"  Maintenance: {reason}. Nobody takes over by itself.")
    if why := (state.get("last") or {}).get("why"):
        lines.append(f"  Last checkpoint: {why}")
    if interval := state.get("interval"):
        lines.append(f"  Next within {interval['interval_ms']:.0f} ms: {interval['sentence']}")
    if packets := state.get("packets"):
        causes = ", ".join(
            f"{count} {name.removeprefix('asked_')}"
            for name, count in packets.items()
            if name.startswith("asked_") and count
        )
        lines.append(
            f"  Packets: {packets['released']} of {packets['primary']} have left, {packets['waiting']} wait; "
            f"checkpoints that they asked for: {causes or 'none'}"
        )
        if moved := packets.get("moved"):
            lines.append(
                f"  Connections that go on from an earlier takeover, with their numbers moved: {moved}"
            )
    return lines


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
