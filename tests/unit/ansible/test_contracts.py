"""What is documented is what is there: modules, roles, playbooks, operations pages."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule

from tests.unit.ansible.module_host import REPOSITORY, load

MODULES = sorted(path.stem for path in (REPOSITORY / "library").glob("*.py"))
ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir())
PLAYBOOKS = sorted(path.name for path in (REPOSITORY / "playbooks").glob("*.yml"))


class ArgumentSpecSeenError(Exception):
    """Carries what a module hands to AnsibleModule."""


@pytest.fixture
def spec_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(name: str) -> dict[str, Any]:
        def init(_self: AnsibleModule, **options: Any) -> None:
            raise ArgumentSpecSeenError(options)

        monkeypatch.setattr(AnsibleModule, "__init__", init)
        with pytest.raises(ArgumentSpecSeenError) as seen:
            load(REPOSITORY / "library" / f"{name}.py").main()
        options: dict[str, Any] = seen.value.args[0]
        return options

    return call


def documented(options: dict[str, Any]) -> dict[str, Any]:
    """DOCUMENTATION's options in the form of an argument_spec."""
    keys = ("type", "required", "default", "choices", "elements")
    spec = {}
    for name, option in options.items():
        spec[name] = {key: option[key] for key in keys if key in option}
        if "suboptions" in option:
            spec[name]["options"] = documented(option["suboptions"])
    return spec


def without_no_log(options: dict[str, Any]) -> dict[str, Any]:
    """An argument_spec without what DOCUMENTATION has no word for."""
    return {
        name: {
            key: without_no_log(value) if key == "options" else value
            for key, value in option.items()
            if key != "no_log"
        }
        for name, option in options.items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_documentation_is_the_argument_spec(name: str, spec_of: Any) -> None:
    module = load(REPOSITORY / "library" / f"{name}.py")
    documentation = yaml.safe_load(module.DOCUMENTATION)
    given = spec_of(name)
    assert documentation["module"] == name
    assert documented(documentation.get("options", {})) == without_no_log(given["argument_spec"])
    assert given["supports_check_mode"] is True
    assert documentation["attributes"]["check_mode"]["support"] == "full"


@pytest.mark.parametrize("name", MODULES)
def test_examples_use_documented_options_and_returns_have_samples(name: str) -> None:
    module = load(REPOSITORY / "library" / f"{name}.py")
    options = yaml.safe_load(module.DOCUMENTATION).get("options", {})
    tasks = [task for task in yaml.safe_load(module.EXAMPLES) if name in task]
    assert tasks
    assert all(set(task[name] or {}) <= set(options) for task in tasks)
    assert all("sample" in value and value["returned"] for value in yaml.safe_load(module.RETURN).values())


@pytest.mark.parametrize("name", ROLES)
def test_defaults_are_the_optional_argument_specs(name: str) -> None:
    role = REPOSITORY / "roles" / name
    options = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    assert defaults == {
        key: option["default"] for key, option in options.items() if not option.get("required")
    }
    assert all(key.startswith(f"{name}_") for key in options)


@pytest.mark.parametrize("name", ROLES)
def test_a_truth_may_be_said_as_text(name: str) -> None:
    """With -e NAME=false it is one, and every text is true; what a module or keyword gets, it takes for a truth by itself."""
    role = REPOSITORY / "roles" / name
    options = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]
    truths = [key for key, option in options["options"].items() if option["type"] == "bool"]
    used = [
        line.strip()
        for path in sorted(role.glob("[thv]*/*"))
        for line in path.read_text().splitlines()
        for truth in truths
        if re.search(rf"\b{truth}\b(?! \| bool)", line)
    ]
    assert [line for line in used if not re.fullmatch(r'\w+: "\{\{ \w+ \}\}"', line)] == []


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_playbook_has_its_header_and_begins_with_the_checks(name: str) -> None:
    text = (REPOSITORY / "playbooks" / name).read_text()
    assert text.startswith("---\n# Purpose: ")
    assert "\n# Usage: " in text
    assert "\n# Variables: " in text
    if name != "checks.yml":
        assert yaml.safe_load(text)[0]["import_playbook"] == "checks.yml"
        assert (REPOSITORY / "docs" / "operations" / name.replace(".yml", ".md")).is_file()


def registered(steps: object) -> list[str]:
    """The names that plays, blocks and tasks register."""
    if isinstance(steps, list):
        return [name for step in steps for name in registered(step)]
    if not isinstance(steps, dict):
        return []
    inner = [name for value in steps.values() for name in registered(value)]
    return [*inner, *([steps["register"]] if isinstance(steps.get("register"), str) else [])]


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_what_a_playbook_registers_no_other_task_overwrites(name: str) -> None:
    """A task that is skipped overwrites what another one has found."""
    names = registered(yaml.safe_load((REPOSITORY / "playbooks" / name).read_text()))
    assert sorted(names) == sorted(set(names))


def test_maintenance_goes_on_only_where_the_side_before_was_told() -> None:
    plays = yaml.safe_load((REPOSITORY / "playbooks" / "maintenance.yml").read_text())
    primaries, secondaries = next(play["tasks"] for play in plays if play["name"] == "Tell the primaries")
    assert (
        "colo_maintenance_names(colo_maintenance_vms | difference(colo_maintenance_refused), 'primary')"
        in (primaries["loop"])
    )
    refused = primaries["vars"]["colo_maintenance_refused"]
    assert "attribute='colo_told_secondary', default={}) | colo_maintenance_failed }}" in refused
    assert "colo_maintenance_names(colo_maintenance_ended, 'secondary')" in secondaries["loop"]
    ended = secondaries["vars"]["colo_maintenance_ended"]
    assert "attribute='colo_told_primary', default={}) | colo_maintenance_told }}" in ended


def test_both_hosts_are_asked_before_a_protection_ends() -> None:
    tasks = yaml.safe_load((REPOSITORY / "roles" / "colo_vm" / "tasks" / "protected.yml").read_text())
    end = next(at for at, task in enumerate(tasks) if task["name"].startswith("End the present protection"))
    asked = {task["colo_vm"]["role"]: task["when"] for task in tasks[:end] if task.get("check_mode")}
    assert asked == {side: f"inventory_hostname == colo_vm_{side}" for side in ("primary", "secondary")}


def test_how_a_host_is_switched_off_is_looked_at_before_it_is_written() -> None:
    """All VMs of the two hosts use the one file."""
    tasks = yaml.safe_load((REPOSITORY / "roles" / "colo_vm" / "tasks" / "protected.yml").read_text())
    written = next(at for at, task in enumerate(tasks) if "colo_files" in task)
    asked = [task["colo_vm"]["fencing"] for task in tasks[:written]]
    assert asked == ["{{ __colo_vm_fencing }}"] * 2


def test_both_hosts_are_asked_before_a_switch_over() -> None:
    tasks = yaml.safe_load((REPOSITORY / "playbooks" / "tasks" / "switch_over.yml").read_text())
    steps = [task for task in tasks if "ansible.builtin.include_role" in task]
    asked, handed, protected = steps
    assert asked["ansible.builtin.include_role"]["apply"] == {"check_mode": True, "diff": False}
    assert asked["vars"] == protected["vars"]
    assert handed["vars"]["colo_vm_state"] == "standby"


def test_an_upgrade_that_fails_on_one_host_does_not_go_on_to_the_other() -> None:
    steps = yaml.safe_load((REPOSITORY / "playbooks" / "tasks" / "upgrade_vm.yml").read_text())
    block = next(step["block"] for step in steps if "block" in step)
    changing = [
        task
        for task in block
        if "colo_maintenance" in task
        or "wait_replicating" not in task.get("colo_replicator", "wait_replicating")
    ]
    assert len(changing) == 3
    for task in changing:
        result = task["register"]
        assert task["loop_control"]["break_when"] == f"{result} is failed or {result} is unreachable"


def test_a_host_that_dies_during_an_upgrade_is_told_with_what_is_left_to_do() -> None:
    """Ansible rescues nothing when a host is unreachable."""
    steps = yaml.safe_load((REPOSITORY / "playbooks" / "tasks" / "upgrade_vm.yml").read_text())
    upgrade = next(step for step in steps if "block" in step)
    assert upgrade["ignore_unreachable"] is True
    asking = [at for at, task in enumerate(upgrade["block"]) if "delegate_to" in task]
    assert len(asking) == 4
    for at in asking:
        task, after = upgrade["block"][at : at + 2]
        assert after["ansible.builtin.include_tasks"] == "upgrade_gone.yml"
        assert after["vars"] == {"colo_upgrade_asked": f"{{{{ {task['register']} }}}}"}
    assert "It may be left in maintenance" in upgrade["rescue"][0]["ansible.builtin.fail"]["msg"]


def test_an_upgrade_asks_each_host_whether_it_is_outdated() -> None:
    """Releases of two distributions have different digests."""
    steps = yaml.safe_load((REPOSITORY / "playbooks" / "tasks" / "upgrade_vm.yml").read_text())
    conditions = next(step["when"] for step in steps if "block" in step)
    assert conditions[-1] == "colo_upgrade_found.results | selectattr('outdated') | length > 0"


@pytest.mark.parametrize("name", ["site", "purge"])
def test_what_was_written_is_loaded_although_a_host_fails_later(name: str) -> None:
    plays = yaml.safe_load((REPOSITORY / "playbooks" / f"{name}.yml").read_text())
    with_handlers = [play for play in plays if "colo_channel" in yaml.safe_dump(play)]
    assert with_handlers
    assert all(play["force_handlers"] is True for play in with_handlers)


@pytest.mark.parametrize("name", sorted(set(ROLES) - {"colo_witness"}))  # of those there are three at most
def test_no_role_of_many_hosts_copies_the_variables_of_all_of_them(name: str) -> None:
    """Ansible's lookup `template` does, each time."""
    for path in (REPOSITORY / "roles" / name).rglob("*.yml"):
        assert "lookup('ansible.builtin.template'" not in path.read_text(), path


def test_playbooks_pass_ansibles_syntax_check() -> None:
    command = [
        Path(sys.executable).with_name("ansible-playbook"),
        "--syntax-check",
        "-i",
        "inventory/example",
    ]
    paths = [f"playbooks/{name}" for name in PLAYBOOKS]
    done = subprocess.run([*command, *paths], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("playbook: ") == len(PLAYBOOKS)


def played(playbook: str, inventory: Path | str, *options: str) -> subprocess.CompletedProcess[str]:
    """One run of a playbook as an operator's, from the checkout."""
    command = [
        Path(sys.executable).with_name("ansible-playbook"),
        "-i",
        inventory,
        f"playbooks/{playbook}.yml",
        *options,
    ]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Say which VM: -e colo_vm=NAME. The inventory's colo_vms has: h1."),
        (["-e", "colo_vm=h7"], "colo_vms has no VM h7; it has: h1."),
        (
            ["-e", "colo_vm=h1"],
            "This cannot be undone: confirm it with the VM's name, playbooks/failover.yml -e colo_vm=h1 -e colo_confirm=h1.",
        ),
    ],
)
def test_failover_asks_for_the_vm_and_its_confirmation_before_any_host(
    arguments: list[str], sentence: str
) -> None:
    done = played("failover", "inventory/example", *arguments)
    assert done.returncode != 0
    assert sentence in " ".join(done.stdout.split())
    assert "xa" not in done.stdout


@pytest.fixture(scope="module")
def silent_hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example inventory with hosts at a port where nobody listens."""
    inventory = yaml.safe_load((REPOSITORY / "inventory" / "example" / "hosts.yml").read_text())
    for group in inventory["all"]["children"].values():
        for host in group["hosts"].values():
            host |= {"ansible_host": "127.0.0.1", "ansible_port": 1}
    path = tmp_path_factory.mktemp("inventory") / "hosts.yml"
    path.write_text(yaml.safe_dump(inventory))
    return path


@pytest.mark.parametrize(
    ("playbook", "sentence"),
    [
        ("site", "xa does not answer on ssh (127.0.0.1:1). Both hosts of a VM must be up for this"),
        (
            "protect",
            "xa, the primary of h1, does not answer on ssh (127.0.0.1:1). A VM is protected by two hosts",
        ),
        (
            "unprotect",
            "xb, the secondary of h1, does not answer on ssh (127.0.0.1:1). If the primary is dead, run",
        ),
        (
            "verify",
            "xa, the primary of h1, does not answer on ssh (127.0.0.1:1), so nothing can be compared. If it",
        ),
        (
            "failover",
            "xb, the secondary of h1, does not answer on ssh (127.0.0.1:1), so nothing there can take",
        ),
        (
            "rotate",
            "xa does not answer on ssh (127.0.0.1:1). Keys are changed on both hosts of a VM; no key was changed",
        ),
        (
            "witness",
            "w1, a witness, does not answer on ssh (127.0.0.1:1). All hosts of the group colo_witnesses must",
        ),
        (
            "recover_host",
            "xa does not answer on ssh (127.0.0.1:1). It has to be installed, with Debian's Xen and",
        ),
        (
            "restart_host",
            "xa does not answer: bring it back; playbooks/status.yml shows which hosts answer. xb does not answer",
        ),
        ("switchover", "xa does not answer: bring it back; playbooks/status.yml shows which hosts answer."),
        (
            "rebalance",
            "Nothing was moved. xa does not answer: bring it back; playbooks/status.yml shows which hosts answer. xb does not",
        ),
    ],
)
def test_a_silent_host_is_told_in_a_sentence(silent_hosts: Path, playbook: str, sentence: str) -> None:
    names = (
        ["colo_host=xa", "colo_confirm=xa"]
        if playbook in ("restart_host", "recover_host")
        else ["colo_vm=h1", "colo_confirm=h1"]
    )
    options = [word for name in names for word in ("-e", name)]
    done = played(playbook, silent_hosts, *options)
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert sentence in said


@pytest.mark.parametrize("playbook", ["preflight", "site", "status"])
def test_an_inventory_without_hosts_is_refused(tmp_path: Path, playbook: str) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {hosts: {xa: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n")
    done = played(playbook, inventory)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert f"The inventory ({inventory}) has no hosts in the group colo_hosts. Say yours with -i" in said


def test_failover_reaches_the_primary_by_a_connection_of_its_own(silent_hosts: Path) -> None:
    command = [
        Path(sys.executable).with_name("ansible-playbook"),
        "-vvvv",
        "playbooks/failover.yml",
        "-i",
        silent_hosts,
    ]
    options = ["-e", "colo_vm=h1", "-e", "colo_confirm=h1"]
    done = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    begun = [line for line in done.stdout.splitlines() if "SSH: EXEC" in line and "ControlPath=none" in line]
    assert begun
    assert all("{{" not in line for line in begun)


def test_site_stops_at_the_first_batch_that_fails(silent_hosts: Path, tmp_path: Path) -> None:
    inventory = yaml.safe_load(silent_hosts.read_text())
    hosts = inventory["all"]["children"]["colo_hosts"]["hosts"]
    inventory["all"]["children"]["colo_hosts"]["hosts"] = dict.fromkeys(
        ("xa", "ya", "za", "xb", "yb"), hosts["xa"]
    )
    inventory["all"]["vars"]["colo_vms"] = {
        f"{pair}1": {"primary": f"{pair}a", "secondary": f"{pair}b"} for pair in "xy"
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    command = [
        Path(sys.executable).with_name("ansible-playbook"),
        "playbooks/site.yml",
        "-i",
        tmp_path / "hosts.yml",
    ]

    def asked(*options: str) -> set[str]:
        done = subprocess.run(
            [*command, *options], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        return {name for name in ("xa", "xb", "ya", "yb", "za") if f"[{name}]: UNREACHABLE!" in done.stdout}

    assert asked("-e", "colo_batch=1") == {"xa", "xb"}
    assert asked() == {"xa", "xb", "ya", "yb", "za"}


def test_the_witness_playbook_asks_for_a_witness_and_for_all_of_them(
    silent_hosts: Path, tmp_path: Path
) -> None:
    inventory = yaml.safe_load(silent_hosts.read_text())
    witnesses = inventory["all"]["children"].pop("colo_witnesses")
    command = [Path(sys.executable).with_name("ansible-playbook"), "playbooks/witness.yml", "-i"]

    def said(*options: str) -> str:
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
        arguments = [*command, tmp_path / "hosts.yml", *options]
        done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        return " ".join((done.stdout + done.stderr).split())

    assert "The inventory's group colo_witnesses has no hosts. Put one there" in said()
    hosts = {f"w{number}": {"colo_witness_address": f"192.0.2.{number}"} for number in (1, 2, 3)}
    inventory["all"]["children"]["colo_witnesses"] = {"hosts": {**hosts, "w1": witnesses["hosts"]["w1"]}}
    inventory["all"]["vars"] |= {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    assert "w3 of the group colo_witnesses is not in this run. What the others have" in said(
        "--limit=all,localhost,!w3"
    )


@pytest.mark.parametrize(
    ("name", "limit", "left_out"),
    [
        ("status", "xa,xb", "localhost"),
        ("site", "!xb", "localhost"),
        ("failover", "xb", "localhost"),
        ("failover", "all,localhost,!xb", "xb"),
        ("status", "all,localhost,!xb", ""),
    ],
)
def test_a_limit_that_leaves_out_who_is_needed_is_refused_before_any_host(
    silent_hosts: Path, name: str, limit: str, left_out: str
) -> None:
    """Plays of the controller would be left out without a word, and with them what they check and decide."""
    command = [
        Path(sys.executable).with_name("ansible-playbook"),
        f"playbooks/{name}.yml",
        "-i",
        silent_hosts,
    ]
    options = ["-e", "colo_vm=h1", "-e", "colo_confirm=h1", "--limit", limit]
    done = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert (f"--limit {limit} leaves out {left_out}. localhost checks and decides" in said) == bool(left_out)
    assert ("UNREACHABLE" in said) != bool(left_out)


def test_rotate_names_the_vms_there_are() -> None:
    done = played("rotate", "inventory/example", "-e", "colo_vm=h7")
    assert done.returncode != 0
    assert "colo_vms has no VM h7; it has: h1." in " ".join(done.stdout.split())
    assert "xa" not in done.stdout


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("preflight", 2, "xa does not answer on ssh. xb does not answer on ssh."),
        ("export", 0, "xb does not answer: what it has is as colo_vms said."),
        ("groups", 0, "ok: [localhost] => (item=xa: colo_silent)"),
        ("gather_logs", 0, "xa, xb did not answer: what is there is of the others only."),
        ("purge", 2, "Say which host: -e colo_host=NAME. The group colo_hosts has: xa, xb."),
        ("restart_host", 2, "Say which host: -e colo_host=NAME. The group colo_hosts has: xa, xb."),
        ("recover_host", 2, "Say which host: -e colo_host=NAME. The group colo_hosts has: xa, xb."),
    ],
)
def test_playbooks_that_look_say_which_hosts_are_silent(
    silent_hosts: Path, name: str, code: int, said: str
) -> None:
    done = played(name, silent_hosts)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in " ".join(done.stdout.split())


@pytest.mark.parametrize("playbook", ["restart_host", "recover_host"])
@pytest.mark.parametrize("option", [("-e", "colo_vm=h1"), ("--limit", "xa,localhost")])
def test_a_host_is_restarted_or_recovered_with_all_of_its_vms_and_their_hosts(
    silent_hosts: Path, option: tuple[str, str], playbook: str
) -> None:
    """colo_vm would take the place of each VM that is handed over, and a host that is left out would have its VM lost."""
    names = ["-e", "colo_host=xa", "-e", "colo_confirm=xa"]
    done = played(playbook, silent_hosts, *names, *option)
    assert done.returncode != 0
    assert "without colo_vm and without --limit." in " ".join(done.stdout.split())
    assert "UNREACHABLE" not in done.stdout


def test_a_restart_that_nobody_looked_after_is_no_success() -> None:
    tasks = yaml.safe_load((REPOSITORY / "playbooks" / "restart_host.yml").read_text())[-1]["tasks"]
    by_name = {task["name"]: task for task in tasks}
    wait, stop = (
        by_name[name] for name in ("Wait until its VMs have two copies again", "Stop when one has not")
    )
    assert "colo_restart_seen.vms is defined" in wait["until"]
    assert "colo_restart_seen.vms is defined" in stop["ansible.builtin.assert"]["that"]
    names = [task["name"] for task in tasks]
    assert names.index("Look at its VMs once more") > names.index("Have its VMs run on on their other hosts")
    assert names.index("Stop when one has come back, or has no second copy any more") < names.index(
        "Restart it"
    )


def test_what_is_written_is_there_where_it_was_asked_for(silent_hosts: Path, tmp_path: Path) -> None:
    """Ansible takes a path for one from the playbook's directory; an operator means the own one."""
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", silent_hosts]
    command += [REPOSITORY / "playbooks" / "export.yml", "-e", "colo_export_to=colo_vms.yml"]
    configured = {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "PWD": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **configured}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load((tmp_path / "colo_vms.yml").read_text())["colo_vms"]["h1"]["primary"] == "xa"
    place = "{{ [lookup('ansible.builtin.env', 'PWD'), "
    for name in ("export", "plan", "gather_logs"):
        assert place in (REPOSITORY / "playbooks" / f"{name}.yml").read_text()


@pytest.mark.parametrize(("wish", "code"), [("true", 2), ("false", 0)])
def test_status_shows_silent_hosts_and_says_by_its_exit_code_what_is_not_protected(
    silent_hosts: Path, wish: str, code: int
) -> None:
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", silent_hosts, "playbooks/status.yml"]
    done = subprocess.run(
        [*command, "-e", f"colo_status_fail={wish}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    said = " ".join(done.stdout.split())
    assert done.returncode == code
    assert "xa unreachable" in said
    assert "xa does not answer. xb does not answer." in said
    assert ("h1 is not protected: xa does not answer. xb does not answer." in said) == bool(code)
