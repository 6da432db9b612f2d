"""A connection to a host that is not there: each module is answered at once, as its documentation says that it answers.

What is left of a playbook's time is what the controller needs. Hosts are named as bench.fleet names them.
"""

from __future__ import annotations

import ast
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = r"""
name: answers
short_description: Answers of hosts that are not there
description:
  - Every module is answered at once, with the samples of its documentation.
author: COLO for Xen authors
extends_documentation_fragment: [connection_pipelining]
options: {}
"""

_LIBRARY = Path(__file__).resolve().parents[2] / "library"
_MODULE = re.compile(rb"\bansible_module='(?:ansible\.\w+\.)?(\w+)'")
_PARAMS = re.compile(rb"^params=(.*),$", re.MULTILINE)
_HOST = re.compile(r"x(\d+)(a|b)")


@cache
def samples(module: str) -> dict[str, Any]:
    """What a module of ours returns when all is well, by its documentation; of another one that nothing was changed."""
    path = _LIBRARY / f"{module}.py"
    if not path.is_file():
        return {}
    (returned,) = re.findall(r'^RETURN = r"""\n(.*?)^"""', path.read_text(), re.DOTALL | re.MULTILINE)
    return {name: one["sample"] for name, one in yaml.safe_load(returned).items()}


def answer(host: str, module: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return a module's result on a host."""
    found = {"changed": False, **samples(module)}
    match module:
        case "colo_preflight_info":
            digest = os.environ["COLO_BENCH_DIGEST"]
            found |= {"ok": True, "helper": {"digest": digest, "releases": [digest]}}
        case "colo_vm_info":
            number, side = _HOST.fullmatch(host).groups()  # type: ignore[union-attr]
            role = "primary" if side == "a" else "secondary"
            (sample,) = found["vms"]
            found["vms"] = [
                {
                    **sample,
                    "name": name,
                    "state": {**sample["state"], "vm": name, "role": role},
                    "config": {
                        **sample["config"],
                        "vm": name,
                        "role": role,
                        "peer": {"name": f"x{number}{'b' if side == 'a' else 'a'}"},
                    },
                }
                for name in params.get("names") or [f"v{number}"]
            ]
        case "colo_channel":
            found["vm"] = params["vm"]
        case "find":
            found["files"] = []
    return found


class Connection(ConnectionBase):
    """See the module."""

    transport = "answers"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(
        self,
        cmd: str,
        in_data: bytes | None = None,
        sudoable: bool = True,  # noqa: ARG002  (Ansible's signature)
    ) -> tuple[int, bytes, bytes]:
        """Answer for the module in ``in_data``."""
        name = _MODULE.search(in_data or b"")
        if not name:
            raise NotImplementedError(f"no module is asked for: {cmd}")
        text = _PARAMS.search(in_data or b"")
        assert text, "Ansible's way to hand parameters over has changed"
        params = json.loads(ast.literal_eval(text[1].decode()))["ANSIBLE_MODULE_ARGS"]
        result = answer(self._play_context.remote_addr, name[1].decode(), params)
        return 0, json.dumps(result).encode(), b""

    def put_file(self, in_path: str, out_path: str) -> None:
        """There is nowhere to put it."""
        raise NotImplementedError(f"{in_path} would be sent to {out_path}")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """There is nothing to fetch."""
        raise NotImplementedError(f"{in_path} would be fetched to {out_path}")

    def close(self) -> None:
        """Nothing is open."""
        self._connected = False
