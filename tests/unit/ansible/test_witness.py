"""The witness: what its group means for an inventory, its certificates, and what an etcd that is there is taken for."""

import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.ansible.module_host import REPOSITORY, FakeHost, Runner, load, utility
from tests.unit.ansible.test_host_modules import GROUP, OWNER

authority, witness = utility("authority"), utility("witness")
FILTERS = load(REPOSITORY / "filter_plugins" / "colo_witness.py").FilterModule().filters()
NOW = datetime.now(UTC)
H1 = {"primary": "xa", "secondary": "xb"}
W1 = {"w1": {"colo_witness_address": "192.0.2.13"}}
W3 = {**W1, "w2": {"colo_witness_address": "192.0.2.14"}, "w3": {"colo_witness_address": "2001:db8::15"}}
DERIVED = {
    "endpoints": ["https://192.0.2.13:2379"],
    "ca": "/etc/colo/arbiter/ca.pem",
    "certificate": "/etc/colo/arbiter/certificate.pem",
    "key": "/etc/colo/arbiter/key.pem",
}
OWN = {"endpoints": ["https://etcd.example:2379"], "ca": "/ca", "certificate": "/c", "key": "/k"}


# What follows from the inventory.


def test_where_witnesses_are_asked_whatever_the_order_of_the_inventory() -> None:
    assert FILTERS["colo_witness_urls"](["w3", "w1"], W3) == [
        "https://192.0.2.13:2379",
        "https://[2001:db8::15]:2379",
    ]
    cluster = "w1=https://192.0.2.13:2380,w2=https://192.0.2.14:2380,w3=https://[2001:db8::15]:2380"
    assert FILTERS["colo_witness_cluster"](["w3", "w2", "w1"], W3) == cluster


@pytest.mark.parametrize(
    ("vm", "general", "witnesses", "arbiter"),
    [
        ({}, None, ["w1"], DERIVED),
        ({}, None, [], {}),
        ({}, {"lease_s": 5}, ["w1"], {**DERIVED, "lease_s": 5}),
        ({"arbiter": {"lease_s": 20}}, {"lease_s": 5}, ["w1"], {**DERIVED, "lease_s": 20}),
        ({}, OWN, ["w1"], OWN),
        ({"arbiter": {"lease_s": 20}}, OWN, ["w1"], {**OWN, "lease_s": 20}),
        ({"arbiter": OWN}, {"lease_s": 5}, ["w1"], OWN),
        ({"arbiter": {}}, OWN, ["w1"], {}),
        ({}, {}, ["w1"], {}),
    ],
)
def test_the_arbiter_of_a_vm(vm: Any, general: Any, witnesses: list[str], arbiter: Any) -> None:
    assert FILTERS["colo_arbiter_of"](vm, general, witnesses, W1) == arbiter
    assert not FILTERS["colo_witness_problems"](witnesses, {"h1": {**H1, **vm}}, general, W1)


def test_the_derived_arbiter_is_what_the_replicators_take() -> None:
    from colo_helper.replication.config import parse_config  # noqa: PLC0415

    found = FILTERS["colo_arbiter_of"](H1, None, ["w1", "w2", "w3"], W3)
    config = {"format": 1, "vm": "h1", "role": "secondary", "peer": {"name": "xa"}, "peer_timeout_ms": 5000}
    parsed = parse_config({**config, "bridge": "xenbr0", "arbiter": {**found, "host": "xb"}}, "h1").arbiter
    assert parsed is not None
    assert parsed.endpoints[2] == "https://[2001:db8::15]:2379"


@pytest.mark.parametrize(
    ("witnesses", "variables", "vm", "general", "sentence"),
    [
        (["w1", "w2"], W3, {}, None,
         "The group colo_witnesses has 2 hosts (w1, w2): an even number survives no more failures than one less, and more can "
         "fail. Have one, three or five."),
        (["w1"], {"w1": {}}, {}, None,
         "w1 has no colo_witness_address: the IP address at which the Xen hosts reach the witness."),
        (["w1"], {"w1": {"colo_witness_address": "witness.example"}}, {}, None,
         "colo_witness_address of w1 is 'witness.example', not an IP address: the witness shall not depend on a name server."),
        (["w1", "w2", "w3"], {**W3, "w2": W1["w1"]}, {}, None,
         "colo_witness_address of w2 is 192.0.2.13, which is that of w1."),
        (["xb"], {"xb": W1["w1"]}, {}, None,
         "xb is a witness and a host of h1: when it dies, nobody is left to say who may run. Take a host that runs neither "
         "copy (colo_witness_on_host: true allows it all the same, for tests)."),
        ([], {}, {}, {"lease_s": 5},
         "colo_vms: the arbiter of h1 has no endpoints: give them, or put the hosts of a witness into the group "
         "colo_witnesses."),
        ([], {}, {}, ["https://etcd.example:2379"],
         "colo_arbiter is not a mapping of settings: see docs/operations/protect.md."),
        (["w1"], W1, {"arbiter": "w1"}, None,
         "colo_vms: arbiter of h1 is not a mapping of settings: see docs/operations/protect.md."),
        (["w1"], W1, {"output": "free"}, None,
         "colo_vms: output of h1 is 'free', and it has an arbiter: what leaves at once cannot be stopped when the lease ends. "
         "Use compare or hold, or 'arbiter: {}' for a VM that shall have none."),
        (["w1"], W1, {"arbiter": {"lease_s": 2}}, None, "colo_vms: lease_s of h1 is 2: give whole seconds, from 3 to 600."),
        (["w1"], W1, {}, {"lease_s": "10"}, "colo_vms: lease_s of h1 is '10': give whole seconds, from 3 to 600."),
        (["w1"], {**W1, "xa": {"colo_host_watchdog_s": 7}}, {}, None,
         "colo_host_watchdog_s of xa is 7, and the lease of h1 lasts 10 s: Xen has to restart a frozen host before the other "
         "has the VM. Give at most 6, or the VM a longer lease."),
        (["w1"], {**W1, "xb": {"colo_host_watchdog_s": 3}}, {"arbiter": {"lease_s": 4}}, None,
         "colo_host_watchdog_s of xb is 3, and the lease of h1 lasts 4 s: Xen has to restart a frozen host before the other "
         "has the VM. Give at most 2, or the VM a longer lease."),
        ([], {"xa": {"colo_host_watchdog_s": 1}}, {}, None,
         "colo_host_watchdog_s of xa is 1: give a whole number from 2 to 300, or 0 for none."),
        ([], {"xb": {"colo_host_watchdog_s": "long"}}, {}, None,
         "colo_host_watchdog_s of xb is 'long': give a whole number from 2 to 300, or 0 for none."),
    ],
)  # fmt: skip
def test_what_cannot_work(witnesses: list[str], variables: Any, vm: Any, general: Any, sentence: str) -> None:
    problems = FILTERS["colo_witness_problems"]
    assert problems(witnesses, {"h1": {**H1, **vm}}, general, variables) == [sentence]


def test_a_watchdog_that_is_first_or_whose_vms_have_no_lease_is_fine() -> None:
    problems = FILTERS["colo_witness_problems"]
    assert not problems(["w1"], {"h1": H1}, None, {**W1, "xa": {"colo_host_watchdog_s": 6}})
    assert not problems([], {"h1": H1}, None, {"xa": {"colo_host_watchdog_s": 300}})


def test_a_witness_on_a_host_may_be_allowed_and_nonsense_is_left_to_the_other_checks() -> None:
    problems = FILTERS["colo_witness_problems"]
    assert not problems(["xb"], {"h1": H1}, None, {"xb": {**W1["w1"], "colo_witness_on_host": True}})
    assert not problems(["xb"], {"h1": H1}, None, {"xb": {**W1["w1"], "colo_witness_on_host": "yes"}})
    assert problems(["xb"], {"h1": H1}, None, {"xb": {**W1["w1"], "colo_witness_on_host": "false"}})
    assert not problems([], ["no mapping"], None, {})
    assert not problems([], {"h1": "no mapping"}, None, {})


def test_only_those_restart_that_run_with_what_was() -> None:
    def host(look: str, written: bool, started: bool) -> dict[str, Any]:
        return {
            "colo_witness_look": {"installed": look != "new", "outdated": look == "outdated"},
            "colo_witness_written": {"changed": written},
            "colo_witness_started": {"changed": started},
        }

    variables = {
        "c": host("runs", True, False),
        "a": host("runs", True, False),
        "left by the last run": host("outdated", False, False),
        "same": host("runs", False, False),
        "started now": host("runs", True, True),
        "foretold": host("new", True, False),
        "not in the play": {},
    }
    assert FILTERS["colo_witness_restarts"](variables, variables) == ["a", "c", "left by the last run"]


# Certificates.


@pytest.fixture
def openssl(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host with the real openssl, whose files are the test's own."""

    def real(words: list[str]) -> tuple[int, str, str]:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert shutil.which("openssl"), "openssl is not installed: run make setup"
    host.answers["openssl"] = real
    monkeypatch.setattr(utility("certificate"), "OWNER", OWNER)
    return host


class Pair:
    """A host and the controller: what the role colo_certificate does with the two modules."""

    def __init__(self, host: FakeHost, run: Runner) -> None:
        self.run = run
        self.directory = host.root / "arbiter"
        self.authority = host.root / "inventory" / ".colo-authority"
        self.wanted: dict[str, Any] = {"subject": "xa", "names": ["xa", "192.0.2.11"]}

    def converge(self, *, check: bool = False, **wanted: Any) -> list[dict[str, Any]]:
        where = {"directory": str(self.directory), "group": GROUP}
        key = self.run("colo_certificate", check=check, **where)
        signed = self.run(
            "colo_authority",
            check=check,
            directory=str(self.authority),
            request=key["request"],
            present=key["certificate"],
            **{**self.wanted, **wanted},
        )
        had = self.run(
            "colo_certificate",
            check=check,
            certificate=signed["certificate"],
            authority=signed["authority"],
            **where,
        )
        results = [key, signed, had]
        assert not [result for result in results if result.get("failed")], results
        assert "PRIVATE KEY" not in json.dumps(results)
        return results

    def changed(self, **options: Any) -> list[bool]:
        return [result["changed"] for result in self.converge(**options)]

    def context(self) -> ssl.SSLContext:
        """Raises what Python's ssl, as strict as it can be, has against them."""
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_cert_chain(self.directory / "certificate.pem", self.directory / "key.pem")
        return context


@pytest.fixture
def pair(openssl: FakeHost, run: Runner) -> Pair:
    return Pair(openssl, run)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def test_a_certificate_is_made_and_the_second_run_changes_nothing(pair: Pair) -> None:
    assert pair.changed() == [True, True, True]
    assert modes(pair.directory) == {"ca.pem": 0o600, "certificate.pem": 0o600, "key.pem": 0o600}
    assert stat.S_IMODE(pair.directory.stat().st_mode) == 0o700
    assert modes(pair.authority) == {"authority.pem": 0o600, ".gitignore": 0o644, ".lock": 0o644}
    assert stat.S_IMODE(pair.authority.stat().st_mode) == 0o700
    assert pair.context().get_ca_certs()
    before = {path: path.read_bytes() for path in pair.directory.iterdir()}
    assert pair.changed() == [False, False, False]
    assert {path: path.read_bytes() for path in pair.directory.iterdir()} == before


def test_a_dry_run_foretells_all_of_it_and_makes_nothing(pair: Pair) -> None:
    assert pair.changed(check=True) == [True, True, True]
    assert not pair.directory.exists()
    assert not pair.authority.exists()
    pair.converge()
    assert pair.changed(check=True) == [False, False, False]
    key, signed, had = pair.converge(check=True, names=["xa"])
    assert (key["changed"], signed["changed"], had["changed"]) == (False, True, True)
    assert signed["reasons"] == ["its names are xa, 192.0.2.11, not xa"]
    assert pair.changed() == [False, False, False]


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"names": ["xa", "192.0.2.99"]}, "its names are xa, 192.0.2.11, not xa, 192.0.2.99"),
        ({"subject": "xc"}, "it is for xa, not xc"),
        ({"server": True}, "it is for a client, not a server"),
        ({"days": 2000, "renew_days": 1999}, f"it ends on {NOW + timedelta(days=1095):%Y-%m-%d}"),
    ],
)
def test_a_certificate_that_will_not_do_is_renewed_for_the_same_key(
    pair: Pair, wanted: dict[str, Any], reason: str
) -> None:
    pair.converge()
    key = (pair.directory / "key.pem").read_bytes()
    assert pair.converge(**wanted)[1]["reasons"] == [reason]
    assert (pair.directory / "key.pem").read_bytes() == key
    assert pair.changed(**wanted) == [False, False, False]
    pair.context()


def test_another_key_needs_another_certificate(pair: Pair) -> None:
    pair.converge()
    (pair.directory / "key.pem").unlink()
    assert pair.converge()[1]["reasons"] == ["the host has another key"]
    pair.context()


@pytest.mark.parametrize("check", [True, False])
def test_a_certificate_that_works_is_replaced_by_another_authoritys_only_when_that_is_meant(
    pair: Pair, check: bool
) -> None:
    had = pair.converge()[1]
    (pair.authority / "authority.pem").rename(pair.authority / "old.pem")
    asked = {
        "directory": str(pair.authority),
        "request": pair.run("colo_certificate", directory=str(pair.directory), group=GROUP)["request"],
        "present": had["certificate"],
        **pair.wanted,
    }
    refused = pair.run("colo_authority", check=check, **asked)["msg"]
    assert refused.startswith("xa has a certificate of COLO certificate authority ")
    assert f"{pair.authority}/authority.pem is not there: with new certificates all protected VMs" in refused
    assert not (pair.authority / "authority.pem").exists()
    (pair.authority / "authority.pem").write_text(authority.pack_authority(authority.make_authority(NOW)))
    refused = pair.run("colo_authority", check=check, **asked)["msg"]
    assert f"{pair.authority}/authority.pem is COLO certificate authority " in refused
    assert pair.run("colo_authority", check=check, **asked, new_authority=True)["changed"] is True


def test_a_new_authority_is_made_when_that_is_meant(pair: Pair) -> None:
    pair.converge()
    (pair.authority / "authority.pem").rename(pair.authority / "old.pem")
    assert pair.converge(new_authority=True)[1]["reasons"] == [f"the authority in {pair.authority} is new"]
    assert pair.changed() == [False, False, False]
    pair.context()


def test_a_certificate_of_another_authority_that_has_ended_is_in_nobodys_way(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = pair.run("colo_certificate", directory=str(pair.directory), group=GROUP)["request"]
    monkeypatch.setattr(authority, "AUTHORITY_DAYS", 1)
    gone = authority.make_authority(NOW - timedelta(days=2))
    monkeypatch.setattr(authority, "AUTHORITY_DAYS", 7300)
    wanted = authority.Wanted("xa", ("xa", "192.0.2.11"), False, 1095, 365)
    ended = authority.sign(gone, authority.parse_request(request), wanted, NOW - timedelta(days=2))
    result = pair.run(
        "colo_authority", directory=str(pair.authority), request=request, present=ended, **pair.wanted
    )
    assert result["changed"] is True


def test_who_may_read_the_key_is_put_right(pair: Pair) -> None:
    pair.converge()
    (pair.directory / "key.pem").chmod(0o644)
    (pair.authority / "authority.pem").chmod(0o644)
    assert pair.changed() == [True, True, False]
    assert modes(pair.directory)["key.pem"] == modes(pair.authority)["authority.pem"] == 0o600


def test_an_authority_that_cannot_be_read_is_never_written_over(pair: Pair) -> None:
    pair.authority.mkdir(parents=True)
    (pair.authority / "authority.pem").write_text("somebody else's\n")
    request = pair.run("colo_certificate", directory=str(pair.directory), group=GROUP)["request"]
    result = pair.run("colo_authority", directory=str(pair.authority), subject="xa", request=request)
    assert result["failed"]
    assert result["msg"].startswith(
        f"{pair.authority}/authority.pem is no certificate authority of this role ("
    )
    assert (pair.authority / "authority.pem").read_text() == "somebody else's\n"
    with pytest.raises(FileExistsError):
        authority._write_once(pair.authority / "authority.pem", "new")


def test_an_authority_that_ends_is_told_and_certificates_end_with_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority, "AUTHORITY_DAYS", 100)
    first = pair.converge()
    assert first[1]["not_after"] == f"{NOW + timedelta(days=100):%Y-%m-%d}"
    second = pair.converge()
    assert [result["changed"] for result in second] == [False, False, False]
    assert f"{pair.authority}/authority.pem ends on" in str(second[1]["warnings"])
    monkeypatch.setattr(authority, "AUTHORITY_DAYS", -1)
    gone = authority.make_authority(NOW - timedelta(days=2))
    (pair.authority / "authority.pem").write_text(authority.pack_authority(gone))
    request = second[0]["request"]
    late = pair.run("colo_authority", directory=str(pair.authority), subject="xa", request=request)
    assert "ended on" in late["msg"]
    assert "move the file away" in late["msg"]


def test_what_is_no_request_is_not_signed(pair: Pair) -> None:
    pair.converge()
    call = {"directory": str(pair.authority), "subject": "xa"}
    assert pair.run("colo_authority", **call)["msg"] == (
        "There is no request of xa to sign: run the module colo_certificate there first."
    )
    assert pair.run("colo_authority", request="nonsense", **call)["msg"].startswith(
        "The request of xa cannot be signed: "
    )
    assert "colo_certificate_days must be more" in pair.run("colo_authority", days=365, **call)["msg"]


def test_a_host_without_openssl_and_a_key_that_is_none(pair: Pair, openssl: FakeHost) -> None:
    pair.directory.mkdir()
    (pair.directory / "key.pem").write_text("no key\n")
    result = pair.run("colo_certificate", directory=str(pair.directory), group=GROUP)
    assert f"If {pair.directory}/key.pem is no private key, remove it" in result["msg"]
    (pair.directory / "key.pem").unlink()
    openssl.answers["openssl"] = lambda _words: (127, "", "")
    result = pair.run("colo_certificate", directory=str(pair.directory), group=GROUP)
    assert result["msg"] == "There is no openssl on xa, which makes its key: apt install openssl."
    assert not (pair.directory / "key.pem").exists()


def test_certificates_go_when_no_vm_needs_them(pair: Pair, openssl: FakeHost) -> None:
    pair.converge()
    used = {"arbiter": {"key": str(pair.directory / "key.pem")}}
    (openssl.root / "vms" / "h1.json").write_text(json.dumps(used))
    call = {"directory": str(pair.directory), "state": "absent"}
    assert pair.run("colo_certificate", **call)["msg"] == (
        f"h1 on xa asks its arbiter with {pair.directory}/key.pem: run playbooks/unprotect.yml -e colo_vm=h1 first."
    )
    (openssl.root / "vms" / "h1.json").unlink()
    (pair.directory / "mine").write_text("")
    assert pair.run("colo_certificate", **call)["changed"] is True
    assert [path.name for path in pair.directory.iterdir()] == ["mine"]
    assert pair.run("colo_certificate", **call)["changed"] is False
    (pair.directory / "mine").unlink()
    assert pair.run("colo_certificate", **call)["changed"] is True
    assert not pair.directory.exists()
    assert pair.run("colo_certificate", **call)["changed"] is False


def test_ansible_does_not_take_the_authority_for_an_inventory(pair: Pair, tmp_path: Path) -> None:
    directory = tmp_path / "inventory"
    pair.converge()
    shutil.copy(REPOSITORY / "inventory" / "example" / "hosts.yml", directory)
    command = [Path(sys.executable).with_name("ansible-inventory"), "-i", directory, "--list"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)["_meta"]["hostvars"]) == {"xa", "xb", "w1"}
    assert "authority" not in done.stderr
    defaults = yaml.safe_load((REPOSITORY / "roles/colo_certificate/defaults/main.yml").read_text())
    assert Path(defaults["colo_certificate_authority"]).name == pair.authority.name


# An etcd that is there.


FACTS = {
    "name": "w1", "distribution": "debian 12", "installed": False, "ours": False, "active": False, "outdated": False,
    "settings": False, "other_unit": False, "data": (), "cluster": "", "answers": (), "protected": None,
}  # fmt: skip
OTHERS = "w1 has an etcd already that the role colo_witness has not made ("
CLUSTER = "w1=https://192.0.2.13:2380"


def judged(**facts: Any) -> list[str]:
    found: list[str] = witness.problems(witness.Facts(**{**FACTS, **facts}), CLUSTER)
    return found


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"distribution": "debian 13", "installed": True},
        {"installed": True, "ours": True, "active": True, "data": ("colo",), "cluster": CLUSTER},
        {"data": ("colo",), "cluster": CLUSTER},
        {"data": ("colo",)},
        {"cluster": "w0=https://192.0.2.1:2380"},
    ],
    ids=["nothing", "only installed", "ours", "removed, data kept", "restored", "a record without data"],
)
def test_a_host_that_can_be_a_witness(facts: dict[str, Any]) -> None:
    assert judged(**facts) == []


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"distribution": "debian 11"}, "w1: the distribution is debian 11, not debian 12 or 13: "),
        ({"active": True, "answers": ("192.0.2.13:2379",)}, f"{OTHERS}etcd.service runs)."),
        ({"answers": ("192.0.2.13:2379",)}, f"{OTHERS}something answers at 192.0.2.13:2379)."),
        ({"settings": True, "data": ("default",)},
         f"{OTHERS}data in /var/lib/etcd/default; /etc/default/etcd sets something)."),
        ({"ours": True, "other_unit": True}, f"{OTHERS}/etc/systemd/system/etcd.service is there)."),
        ({"ours": True, "data": ("colo",), "cluster": f"{CLUSTER},w2=https://192.0.2.14:2380"},
         f"w1 has data of the witnesses {CLUSTER},w2=https://192.0.2.14:2380, and the inventory says {CLUSTER}: "),
    ],
)  # fmt: skip
def test_a_host_that_cannot(facts: dict[str, Any], sentence: str) -> None:
    (found,) = judged(**facts)
    assert found.startswith(sentence)


def test_a_witness_that_is_needed_stays() -> None:
    def going(**facts: Any) -> list[str]:
        found: list[str] = witness.removal_problems(witness.Facts(**{**FACTS, **facts}))
        return found

    assert going(ours=True, protected=("h1", "h2")) == [
        "w1 keeps the lease of h1, h2, whose primary falls silent without it: run playbooks/unprotect.yml -e colo_vm=h1 first."
    ]
    assert going(ours=True, protected=()) == going(ours=True, protected=None) == going() == []


def test_settings_and_leases_as_they_are_read() -> None:
    assert not witness.sets_something("## etcd(1) daemon options\n\n# ETCD_NAME=x\n")
    assert witness.sets_something("# x\nETCD_NAME=default\n")
    keys = ["L2NvbG8vaDEvbGVhc2U=", "L2NvbG8vaDEvcmVjb3Jk", "L2NvbG8vaDIvcmVjb3Jk"]
    assert witness.leases({"kvs": [{"key": key} for key in keys]}) == ("h1",)
    assert witness.leases({}) == ()


def test_the_facts_of_a_fresh_host(host: FakeHost, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness.platform, "node", lambda: "w1")
    for name in ("DROP_IN", "ENVIRONMENT", "OTHER_UNIT", "SETTINGS", "PROGRAM", "DATA"):
        monkeypatch.setattr(witness, name, host.root / name.lower())
    (host.root / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    host.answers["systemctl"] = lambda _words: (0, "ActiveState=inactive\n", "")
    call = {"cluster": CLUSTER, "client_url": "https://127.0.0.1:1", "peer_url": "https://127.0.0.1:2"}
    result = run("colo_witness_info", **call)
    assert (result["installed"], result["ours"], result["active"], result["data"]) == (False,) * 4
    assert result["problems"] == result["removal_problems"] == []
    (host.root / "data" / "colo" / "member").mkdir(parents=True)
    (host.root / "data" / "colo.cluster").write_text("w0=https://192.0.2.1:2380\n")
    (host.root / "drop_in").write_text("")
    result = run("colo_witness_info", **call)
    assert result["cluster"] == "w0=https://192.0.2.1:2380"
    assert (result["ours"], result["protected"]) == (True, None)
    assert len(result["problems"]) == 1
    assert result["outdated"] is False
    asked: list[str] = []
    monkeypatch.setattr(witness, "ask_leases", lambda url: asked.append(url) or ("h1",))
    (host.root / "environment").write_text("# A=B\nETCD_ADVERTISE_CLIENT_URLS=https://192.0.2.13:2379\n")
    alone = run("colo_witness_info")
    assert (alone["protected"], alone["problems"]) == (["h1"], [])
    assert asked == ["https://192.0.2.13:2379"]


def test_an_etcd_that_was_started_before_its_configuration_is_outdated(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DROP_IN", "ENVIRONMENT"):
        monkeypatch.setattr(witness, name, host.root / name)
    assert not witness.is_outdated("@1000")
    witness.ENVIRONMENT.write_text("")
    os.utime(witness.ENVIRONMENT, (1000.9, 1000.9))
    assert witness.is_outdated("@999")
    assert not witness.is_outdated("@1000")
    assert not witness.is_outdated("")
