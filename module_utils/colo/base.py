"""One flow for every module that keeps a state: read, compare, predict or apply, read back."""

from __future__ import annotations

import json
import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from ansible.module_utils.basic import AnsibleModule


class Failure(Exception):  # noqa: N818  # it carries a sentence to the operator, it is not a kind of error
    """A sentence for the operator: what is wrong with which object, and what to do. ``fields`` are for programs."""

    def __init__(self, sentence: str, **fields: Any) -> None:  # noqa: ANN401
        super().__init__(sentence)
        self.sentence = sentence
        self.fields = fields


def host_name() -> str:
    """The host's own name, as its sentences shall call it."""
    return socket.gethostname().split(".")[0]


def render(state: Any) -> str:  # noqa: ANN401
    """A state as stable text for a diff."""
    return json.dumps(state, indent=2, sort_keys=True) + "\n"


def guarded(module: AnsibleModule, action: Callable[[], dict[str, Any]]) -> NoReturn:
    """Run ``action`` and exit with what it returns; a Failure or an OSError ends as one sentence."""
    try:
        result = action()
    except Failure as failure:
        module.fail_json(msg=failure.sentence, **failure.fields)
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or host_name()}: {error.strerror or error}.", errno=error.errno
        )
    module.exit_json(**result)


class DesiredState(ABC):
    """A thing on a host with a present state and a desired one; check mode and diff come from here."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    @abstractmethod
    def read(self) -> dict[str, Any]:
        """What is."""

    @abstractmethod
    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """What shall be, in the shape of ``read``. Raises Failure when it must not be brought about."""

    @abstractmethod
    def apply(self, before: dict[str, Any], desired: dict[str, Any]) -> None:
        """Bring ``desired`` about. Only called when it differs from ``before``, and never in check mode."""

    def finish(self) -> None:
        """Wait for what takes time, changed or not. Not called in check mode."""
        return

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return values; ``state`` is what was read back, or in check mode what is predicted."""
        return state

    def diff(self, before: dict[str, Any], after: dict[str, Any]) -> Any:  # noqa: ANN401
        """What ``--diff`` shows."""
        return {"before": render(before), "after": render(after)}

    def converge(self) -> dict[str, Any]:
        """The flow; returns the arguments of exit_json."""
        before = self.read()
        desired = self.desired(before)
        changed = before != desired
        after = desired
        if not self.module.check_mode:
            if changed:
                self.apply(before, desired)
            self.finish()
            after = self.read()
        return {"changed": changed, "diff": self.diff(before, after), **self.result(after)}

    def run(self) -> NoReturn:
        """Converge and exit."""
        guarded(self.module, self.converge)
