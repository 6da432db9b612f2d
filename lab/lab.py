"""The lab as a whole: up, down, reset, status; and finding what a killed command left behind."""

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pyroute2 import netns

from lab import accel, guests, network, processes, seed, ssh
from lab.errors import LabError
from lab.host import READY, WITH_GUEST, Host
from lab.image import Image, ensure_image
from lab.inventory import write_inventory
from lab.recipe import recipe_for
from lab.settings import HOSTS, NAMES, RUN_ROOT, Settings, namespace_of

_BOOT_TIMEOUT_S = 600
_GUEST_TIMEOUT_S = 300
#: The guest of the snapshot `with-guest`.
_GUEST = "h1"
_ANSWER_TIMEOUT_S = 60
_NEEDED_BYTES = 5 * 2**29
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "debootstrap": "debootstrap",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "mke2fs": "e2fsprogs",
    "unshare": "util-linux",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a lab was made with, by host; kept in `.lab/lab.json` once all hosts have their snapshot."""

    debian: dict[str, int]
    image: dict[str, str]
    ports: dict[str, int]
    accelerator: list[str]


class Lab:
    """The lab of one checkout."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self.settings = settings
        self._say = say

    def up(
        self,
        debian: Sequence[int] | None = None,
        first_port: int | None = None,
        hosts: int | None = None,
    ) -> None:
        """The hosts running and answering; made from nothing, or back from their snapshot.

        `debian`: the release of all hosts, or of each in order; `hosts`: how many. What is not said is as it is, and 12 and two
        for a new lab.
        """
        check_machine()
        with self._lock():
            self.reclaim()
            plan = self._plan()
            known = plan.debian if plan else {}
            count = hosts or len(known) or len(HOSTS)
            wished = releases_of(debian, count) if debian else releases_like(known, count)
            recipes = {name: recipe_for(release) for name, release in wished.items()}
            for recipe in set(recipes.values()):
                ensure_image(recipe, self.settings.cache, self._say)
            accelerator, why = accel.choose()
            releases = {name: recipe.debian for name, recipe in recipes.items()}
            images = {name: recipe.image_digest for name, recipe in recipes.items()}
            wanted = (releases, images, accelerator)
            made_so = plan is not None and (plan.debian, plan.image, plan.accelerator) == wanted
            if plan and made_so and all(host.has_snapshot(READY) for host in self._hosts(plan)):
                write_inventory(self.settings, plan.ports)  # what it says may be newer than the lab
                if all(host.pid for host in self._hosts(plan)):
                    self._on_all(plan, self._greet)
                    self._say(f"{_and(plan.ports)} are running already")
                else:
                    self._back_to_snapshot(plan)
                return
            self._stop_all()
            self._say(why)
            self._make(
                Plan(releases, images, _choose_ports(self.settings, list(releases), first_port), accelerator)
            )

    def reset(self, *, with_guest: bool = False) -> None:
        """The hosts as they were right after the first boot, whatever has happened to them.

        `with_guest`: with the guest h1 running on the first host. Its boot takes a minute under software emulation
        (its kernel comes through an I/O port), so it is done once and saved.
        """
        check_machine()
        with self._lock():
            self.reclaim()
            plan = self._require_plan()
            first = self._host(plan, HOSTS[0])
            if not with_guest:
                self._back_to_snapshot(plan)
            else:
                if not first.has_snapshot(WITH_GUEST):
                    self._save_guest(plan, first)
                self._back_to_snapshot(plan, {first.name: WITH_GUEST})
                ssh.run(self.settings, first.name, f"xl unpause {_GUEST}", _ANSWER_TIMEOUT_S)

    def keep(self, tag: str) -> None:
        """Save the hosts as they are at one moment, with what they say to each other: a state that `restore` goes back to.

        No HVM or PVH guest may be running on either: pause them.
        """
        with self._lock():
            plan = self._require_plan()
            hosts = self._hosts(plan)
            for host in hosts:
                host.stand_still()
            try:
                self._on_all(plan, lambda name: self._host(plan, name).take_snapshot(tag))
            finally:
                for host in hosts:
                    host.go_on()

    def restore(self, tag: str) -> None:
        """The hosts as `keep` saved them, whatever has happened to them; the network and what else is in it stay."""
        with self._lock():
            plan = self._require_plan()
            self._drop_ssh_masters()
            for host in self._hosts(plan):
                host.power_off()
            self._load(plan, dict.fromkeys(plan.ports, tag))

    def _save_guest(self, plan: Plan, first: Host) -> None:
        """Boot the guest once and save its host."""
        self._back_to_snapshot(plan)
        self._say(f"booting the guest {_GUEST} for the first time (about a minute under software emulation)")
        guests.create(self.settings, _GUEST, first.name)
        guests.wait_answer(self.settings, _GUEST, _GUEST_TIMEOUT_S)
        # QEMU refuses to load what it saved while its processor ran a nested guest.
        ssh.run(self.settings, first.name, f"xl pause {_GUEST}", _ANSWER_TIMEOUT_S)
        first.take_snapshot(WITH_GUEST)

    def down(self, *, purge: bool = False) -> None:
        """Nothing of the lab runs any more; `purge` removes disks, keys and snapshots too."""
        check_root("lab down")
        with self._lock():
            self._stop_all()
            if purge:
                for path in self.settings.state_dir.iterdir():
                    if path.name != "lock":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def reclaim(self) -> None:
        """Remove what labs left behind: of this checkout, when nothing of it is whole; of others, when the checkout is gone."""
        known = {path.name for path in RUN_ROOT.glob("*")} if RUN_ROOT.exists() else set()
        spaces = {name.removeprefix("colo-") for name in netns.listnetns() if name.startswith("colo-")}
        for lab_id in known | processes.lab_ids() | spaces:
            if lab_id == self.settings.lab_id:
                if self._plan() is None and self._stop_all():
                    self._say("removed what an interrupted command had left")
            elif _is_orphan(lab_id):
                _remove(lab_id)
                self._say(f"removed the lab {lab_id}, whose checkout is gone")

    @property
    def names(self) -> tuple[str, ...]:
        """The hosts of the lab that is up."""
        return tuple(self._require_plan().ports)

    def host(self, name: str) -> Host:
        """A host of the lab that is up."""
        plan = self._require_plan()
        if name not in plan.ports:
            raise LabError(f"the lab has no host {name}; it has {_and(plan.ports)}")
        return self._host(plan, name)

    def power_on(self, name: str) -> None:
        """Boot a host that was powered off, from its own disk."""
        host = self.host(name)
        if host.pid is not None:
            raise LabError(f"{name} is running already")
        host.start(self._require_plan().accelerator)
        host.wait_booted(_BOOT_TIMEOUT_S)

    def status(self) -> list[dict[str, str]]:
        """One row per host: name, state, pid, ssh port."""
        plan = self._plan()
        if plan is None:
            return [{"host": name, "state": "not made", "pid": "-", "ssh": "-"} for name in HOSTS]
        rows = []
        for host in self._hosts(plan):
            pid = host.pid
            state = "off" if pid is None else "frozen" if processes.is_stopped(pid) else "running"
            rows.append(
                {
                    "host": host.name,
                    "state": state,
                    "pid": str(pid or "-"),
                    "ssh": f"127.0.0.1:{host.ssh_port}",
                }
            )
        return rows

    def _make(self, plan: Plan) -> None:
        settings = self.settings
        self._check_space(len(plan.ports))
        self._plan_path.unlink(missing_ok=True)
        seed.make_keys(settings, plan.ports)
        ssh.write_config(settings, plan.ports)
        write_inventory(settings, plan.ports)
        network.ensure_namespace(settings)
        self._mark_run_dir()
        started = time.monotonic()
        self._say(
            f"booting {_and(plan.ports)} for the first time (about two minutes under software emulation)"
        )

        def first_boot(name: str) -> None:
            host = self._host(plan, name)
            seed.write_seed(settings, name)
            host.create_disk()
            host.start(plan.accelerator)
            host.wait_booted(_BOOT_TIMEOUT_S)
            self._greet(name)
            self._say(f"{name} is up ({time.monotonic() - started:.0f} s)")

        try:
            self._on_all(plan, first_boot)
            self._on_all(plan, lambda name: self._host(plan, name).take_snapshot(READY))
        except BaseException:
            self._stop_all()
            raise
        _write_json(self._plan_path, asdict(plan))
        self._say(
            f"{_and(plan.ports)} are saved as the state that resets go back to ({time.monotonic() - started:.0f} s)"
        )

    def _back_to_snapshot(self, plan: Plan, special: dict[str, str] | None = None) -> None:
        """All hosts to the snapshot `ready`, or to the one that `special` names for a host."""
        self._stop_all()
        network.ensure_namespace(self.settings)
        self._mark_run_dir()
        self._load(plan, {**dict.fromkeys(plan.ports, READY), **(special or {})})

    def _load(self, plan: Plan, snapshots: dict[str, str]) -> None:
        """Hosts that are off go on from their snapshots, together."""
        started = time.monotonic()
        self._on_all(plan, lambda name: self._host(plan, name).start(plan.accelerator, snapshots[name]))
        for host in self._hosts(plan):
            host.go_on()
        self._on_all(plan, self._greet)
        self._say(f"{_and(plan.ports)} are back at their snapshot ({time.monotonic() - started:.1f} s)")

    def _greet(self, name: str) -> None:
        """The host answers and its clock is right (a snapshot brings the clock of its day)."""
        ssh.run(
            self.settings,
            name,
            f"date -s @{time.time():.3f} >/dev/null && xl list >/dev/null",
            _ANSWER_TIMEOUT_S,
        )

    def _stop_all(self) -> bool:
        self._drop_ssh_masters()
        return _remove(self.settings.lab_id)

    def _drop_ssh_masters(self) -> None:
        # A master of Ansible's or of a test's would hold on to a connection that the host has forgotten.
        for path in self.settings.ssh_dir.glob("*"):
            subprocess.run(
                ["ssh", "-o", f"ControlPath={path}", "-O", "exit", "lab"], capture_output=True, check=False
            )

    def _host(self, plan: Plan, name: str) -> Host:
        image = Image(self.settings.cache / f"image-{plan.image[name]}")
        return Host(self.settings, name, image, plan.ports[name])

    def _hosts(self, plan: Plan) -> list[Host]:
        return [self._host(plan, name) for name in plan.ports]

    def _on_all(self, plan: Plan, action: Callable[[str], None]) -> None:
        """Run an action for all hosts at once; the first failure is raised when all have ended."""
        with ThreadPoolExecutor(len(plan.ports)) as pool:
            for future in [pool.submit(action, name) for name in plan.ports]:
                future.result()

    @property
    def _plan_path(self) -> Path:
        return self.settings.state_dir / "lab.json"

    def _plan(self) -> Plan | None:
        if not self._plan_path.exists():
            return None
        plan = Plan(**json.loads(self._plan_path.read_text()))
        return plan if isinstance(plan.image, dict) else None  # one release for both: made by an older lab

    def _require_plan(self) -> Plan:
        plan = self._plan()
        if plan is None:
            raise LabError("this checkout has no lab yet: run `make lab-up`")
        return plan

    def _mark_run_dir(self) -> None:
        """Sockets' directory, with the checkout's name in it so that others can tell when it is an orphan."""
        (self.settings.run_dir / "ssh").mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.settings.run_dir / "checkout").write_text(str(self.settings.checkout))

    def _check_space(self, hosts: int) -> None:
        free = shutil.disk_usage(self.settings.state_dir).free
        needed = hosts * _NEEDED_BYTES
        if free < needed:
            raise LabError(
                f"{self.settings.state_dir} has {free // 2**20} MiB free and {hosts} hosts with snapshots take up to "
                f"{needed // 2**20} MiB: make room first"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One lab command at a time per checkout."""
        self.settings.state_dir.mkdir(exist_ok=True)
        with (self.settings.state_dir / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("another lab command of this checkout is at work; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def releases_of(debian: Sequence[int], hosts: int) -> dict[str, int]:
    """The Debian release of each host: one number is meant for all."""
    names = NAMES[:hosts]
    if len(debian) not in (1, hosts):
        raise LabError(
            f"{len(debian)} Debian releases for the hosts {_and(names)}: give one, or one for each"
        )
    return dict(zip(names, tuple(debian) * hosts if len(debian) == 1 else debian, strict=True))


def releases_like(known: dict[str, int], hosts: int) -> dict[str, int]:
    """The releases that the hosts have; a new one has the first host's, and 12 when there is none."""
    first = next(iter(known.values()), 12)
    return {name: known.get(name, first) for name in NAMES[:hosts]}


def _and(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}"


def check_root(what: str) -> None:
    """Network namespaces and images need root."""
    if os.geteuid() != 0:
        raise LabError(f"{what} needs root (network namespace, taps, image): run it again as `sudo make ...`")


def check_machine() -> None:
    """Root, programs, /dev/net/tun: or a sentence with the command that mends it."""
    check_root("the lab")
    missing = sorted({package for program, package in _PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        raise LabError(
            f"programs of the lab are missing: run `apt-get install --no-install-recommends {' '.join(missing)}`"
        )
    if not Path("/dev/net/tun").exists():
        raise LabError("/dev/net/tun is missing: run `modprobe tun`")


def _remove(lab_id: str) -> bool:
    """Kill a lab's processes, remove its namespace and sockets; whether there was any of it."""
    directory = RUN_ROOT / lab_id
    running = processes.kill_all(lab_id, directory)
    removed = network.remove_namespace(namespace_of(lab_id))
    if directory.exists():
        shutil.rmtree(directory)
    return running or removed


def _is_orphan(lab_id: str) -> bool:
    marker = RUN_ROOT / lab_id / "checkout"
    return marker.exists() and not (Path(marker.read_text()) / ".lab").exists()


def _choose_ports(settings: Settings, names: Sequence[str], first_port: int | None) -> dict[str, int]:
    """Ssh ports on loopback: the given ones, or some in a row that follow from the checkout and are free."""
    if first_port is not None:
        return {name: first_port + index for index, name in enumerate(names)}
    start = 20000 + int(settings.lab_id, 16) % 5000 * len(NAMES)
    for candidate in range(start, start + 200, len(NAMES)):
        ports = {name: candidate + index for index, name in enumerate(names)}
        if all(network.port_is_free(port) for port in ports.values()):
            return ports
    raise LabError(
        f"no {len(names)} free ports from {start} on 127.0.0.1 for the hosts' ssh: choose with `lab up --ssh-port N`"
    )


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.rename(path)
