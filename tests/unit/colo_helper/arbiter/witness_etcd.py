"""Real etcds on loopback, set up as the role colo_witness does it: its own configuration, certificates of its own module."""

import contextlib
import os
import shutil
import subprocess
from datetime import UTC, datetime

import jinja2
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from colo_helper.arbiter.etcd import Identity
from tests.unit.ansible.module_host import REPOSITORY, utility

authority = utility("authority")
TEMPLATES = REPOSITORY / "roles" / "colo_witness" / "templates"


def put_identity(directory, signer, subject, names, server=False, now=None, days=30):
    """Key, certificate and authority as the role colo_certificate leaves them; the certificate may have been made long ago."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    wanted = authority.Wanted(subject, tuple(names), server, days, 1)
    pem = authority.sign(signer, key.public_key(), wanted, now or datetime.now(UTC))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "key.pem").write_bytes(private)
    (directory / "certificate.pem").write_text(pem)
    (directory / "ca.pem").write_text(signer.pem)
    return Identity(*(str(directory / f"{name}.pem") for name in ("ca", "certificate", "key")))


def environment(name, client_url, peer_url, cluster, certificates, data):
    """What the role's template makes of it, with other directories."""
    loader = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined)
    loader.filters["hash"] = lambda text, _kind: text
    text = loader.get_template("etcd.env.j2").render(
        inventory_hostname=name,
        __colo_witness_url=client_url,
        __colo_witness_peer_url=peer_url,
        __colo_witness_cluster=cluster,
        colo_certificate_signed={"authority": "0123456789abcdef0"},
    )
    text = text.replace("/etc/colo/witness", str(certificates)).replace("/var/lib/etcd/colo", str(data))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@contextlib.contextmanager
def etcd(directory, name, client_url, peer_url, cluster):
    """One that runs, with its certificates in ``directory``/NAME; it may not answer yet."""
    assert shutil.which("etcd"), "etcd-server is not installed: run make setup"
    settings = environment(name, client_url, peer_url, cluster, directory / name, directory / f"{name}.data")
    with contextlib.ExitStack() as ends:
        log = ends.enter_context((directory / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            ["etcd"], env={"PATH": os.environ["PATH"], **settings}, stdout=log, stderr=log
        )
        ends.callback(process.wait)
        ends.callback(process.kill)
        yield process
