"""The repository's files and a host that a test describes."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible.module_utils

REPOSITORY = Path(__file__).resolve().parents[3]
ansible.module_utils.__path__.append(str(REPOSITORY / "module_utils"))


def utility(name: str) -> Any:
    """A module of module_utils/colo, which ansible only finds through the line above."""
    return importlib.import_module(f"ansible.module_utils.colo.{name}")


def load(path: Path) -> Any:
    """Import a file of the repository that is in no package."""
    name = f"colo_under_test_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


Runner = Callable[..., dict[str, Any]]


@dataclass
class FakeHost:
    """What commands answer: by their words, or by what a test puts into ``answers``."""

    root: Path
    units: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    domains: dict[str, tuple[int, str]] | None = field(default_factory=dict)
    #: Those whose device model has ended, by number.
    headless: set[int] = field(default_factory=set)
    info: str = ""
    answers: dict[str, Callable[[list[str]], tuple[int, str, str]]] = field(default_factory=dict)
    calls: list[list[str]] = field(default_factory=list)

    def run_command(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        argv = argv[3:] if Path(argv[0]).name == "timeout" else argv
        words = [Path(argv[0]).name, *argv[1:]]
        self.calls.append(words)
        if words[0] in self.answers:
            return self.answers[words[0]](words)
        if words[:2] == ["systemctl", "show"]:
            active, sub, result = self.units.get(words[-1], ("inactive", "dead", "success"))
            return 0, f"ActiveState={active}\nSubState={sub}\nResult={result}\n", ""
        if words[0] == "systemctl":
            return 0, "", ""
        if words == ["xl", "list"]:
            return self._list()
        if words == ["xl", "info"]:
            return (0, self.info, "") if self.info else (1, "", "no Xen")
        raise AssertionError(f"the module ran {words}")

    def _list(self) -> tuple[int, str, str]:
        if self.domains is None:
            return 1, "", "xl: cannot open /dev/xen/privcmd"
        for domid in {domid for domid, _ in self.domains.values()} - self.headless:
            process = self.root / "proc" / f"9{domid}"
            process.mkdir(exist_ok=True)
            (process / "cmdline").write_bytes(b"xen-qemu-system-i386\0-xen-domid\0%d\0" % domid)
        head = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n"
        rows = [
            f"{name:<40} {domid:>5}   100     1     {state}      12.4"
            for name, (domid, state) in self.domains.items()
        ]
        return 0, head + "\n".join(rows) + "\n", ""

    def ran(self, *words: str) -> bool:
        return list(words) in self.calls
