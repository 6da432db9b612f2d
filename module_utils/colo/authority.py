"""A certificate authority of an inventory's own, on the controller: it signs what a host proves to have the key of.

What a certificate says is decided here; of a host's request only its public key counts.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo.base import DesiredState, Failure
from ansible.module_utils.colo.files import exclusive

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
    from cryptography.x509.oid import NameOID
except ImportError as error:
    IMPORT_ERROR: ImportError | None = error
else:
    IMPORT_ERROR = None

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

#: Key and certificate in one file, so that there is all of it or nothing.
FILE = "authority.pem"
AUTHORITY_DAYS = 7300
#: A host's clock may be so much late and still believe a certificate that was made just now.
_LATE = timedelta(days=1)
#: A renewal that gains less is none: a certificate does not last longer than its authority.
_GAIN = timedelta(days=1)


@dataclass(frozen=True)
class Wanted:
    """What a certificate shall say; ``names`` are DNS names and IP addresses. A server's is good for a client, too."""

    subject: str
    names: tuple[str, ...]
    server: bool
    days: int
    renew_days: int


@dataclass(frozen=True)
class Authority:
    """Whose signature counts."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        """The certificate, for those who shall believe it."""
        return to_pem(self.certificate)


def make_authority(now: datetime) -> Authority:
    """A new one; its name is new as well, so that nobody takes it for another."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"COLO certificate authority {secrets.token_hex(4)}")]
    )
    usage = _key_usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
    builder = _builder(name, name, key.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def pack_authority(authority: Authority) -> str:
    """Key and certificate as PEM."""
    key = authority.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key.decode("ascii") + authority.pem


def parse_authority(text: str) -> Authority:
    """What ``pack_authority`` made; raises ValueError."""
    data = text.encode()
    key = serialization.load_pem_private_key(data, None)
    certificate = x509.load_pem_x509_certificate(data)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("the key is not the certificate's")
    return Authority(certificate, key)


def parse_request(text: str) -> ec.EllipticCurvePublicKey:
    """The public key of a request that was signed with its private half; raises ValueError."""
    request = x509.load_pem_x509_csr(text.encode())
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("its key is not one on an elliptic curve")
    if not request.is_signature_valid:
        raise ValueError("it was not signed with the key that it names")
    return key


def sign(authority: Authority, key: ec.EllipticCurvePublicKey, wanted: Wanted, now: datetime) -> str:
    """A certificate for ``key`` as PEM; it does not outlive the authority."""
    until = min(now + timedelta(days=wanted.days), authority.certificate.not_valid_after_utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted.subject)])
    names = x509.SubjectAlternativeName([_general_name(text) for text in wanted.names])
    identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier.value)
    certificate = (
        _builder(name, authority.certificate.subject, key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_usages(wanted.server)), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return to_pem(certificate)


def why_new(
    present: str, key: ec.EllipticCurvePublicKey, authority: Authority, wanted: Wanted, now: datetime
) -> list[str]:
    """Why ``present`` (PEM) is not good enough; empty when it is."""
    if not present:
        return ["there is none"]
    try:
        certificate = x509.load_pem_x509_certificate(present.encode())
        said = describe(certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return ["what is there is no certificate of ours"]
    reasons = []
    if certificate.public_key() != key:
        reasons.append("the host has another key")
    if not _signed_by(certificate, authority):
        reasons.append(f"it is not of {_common_name(authority.certificate.subject)}")
    if said["subject"] != wanted.subject:
        reasons.append(f"it is for {said['subject']}, not {wanted.subject}")
    if set(names) != {_general_name(text) for text in wanted.names}:
        reasons.append(f"its names are {_listed(said['names'])}, not {_listed(wanted.names)}")
    if said["use"] != _use(wanted.server):
        reasons.append(f"it is for a {said['use']}, not a {_use(wanted.server)}")
    until = certificate.not_valid_after_utc
    new = min(now + timedelta(days=wanted.days), authority.certificate.not_valid_after_utc)
    if until - now < timedelta(days=wanted.renew_days) and new - until >= _GAIN:
        reasons.append(f"it ends on {until:%Y-%m-%d}")
    return reasons


def describe(certificate: x509.Certificate) -> dict[str, Any]:
    """What a certificate says, for a diff."""
    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return {
        "subject": _common_name(certificate.subject),
        "issuer": _common_name(certificate.issuer),
        "names": [str(name.value) for name in names],
        "use": _use(Usage.SERVER_AUTH in usages),
        "key": _fingerprint(certificate.public_key()),
        "not_after": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
    }


def to_pem(certificate: x509.Certificate) -> str:
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


class SignedCertificate(DesiredState):
    """A host's certificate, and the authority in a directory of the controller that it is of.

    The authority's file is made once and never written again.
    """

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        params = module.params
        self.directory = Path(params["directory"])
        self.path = self.directory / FILE
        self.request: str = params["request"]
        self.certificate: str = params["present"]
        self.wanted = Wanted(
            params["subject"],
            tuple(params["names"]),
            params["server"],
            params["days"],
            params["renew_days"],
        )
        self.new_authority: bool = params["new_authority"]
        self.reasons: list[str] = []

    def read(self) -> dict[str, Any]:
        """The authority and the certificate in words."""
        authority = self._load()
        return {
            "authority": authority
            and {
                "path": str(self.path),
                "subject": _common_name(authority.certificate.subject),
                "not_after": f"{authority.certificate.not_valid_after_utc:%Y-%m-%d}",
                "mode": f"{stat.S_IMODE(self.path.stat().st_mode):04o}",
            },
            "certificate": self._described(),
        }

    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """The present certificate, if it will do."""
        wanted = self.wanted
        if wanted.days <= wanted.renew_days:
            raise Failure(
                f"Certificates that last {wanted.days} days cannot be renewed {wanted.renew_days} days before they end: "
                "colo_certificate_days must be more than colo_certificate_renew_days."
            )
        if not self.request and not self.module.check_mode:
            raise Failure(
                f"There is no request of {wanted.subject} to sign: run the module colo_certificate there first."
            )
        now = datetime.now(UTC)
        authority = self._load()
        if authority:
            self._look_at_its_end(authority, now)
        self._refuse_another(authority, now)
        self.reasons = (
            why_new(self.certificate, self._key(), authority, wanted, now)
            if authority and self.request
            else [f"the authority in {self.directory} is new" if self.request else "the host has no key yet"]
        )
        new = {
            "subject": wanted.subject,
            "issuer": before["authority"]["subject"] if authority else "a new authority",
            "names": list(wanted.names),
            "use": _use(wanted.server),
            "key": _fingerprint(self._key()) if self.request else "not made yet",
            "not_after": f"{now + timedelta(days=wanted.days):%Y-%m-%d}",
        }
        return {
            "authority": {**before["authority"], "mode": "0600"} if authority else {"path": str(self.path)},
            "certificate": new if self.reasons else before["certificate"],
        }

    def apply(self, before: dict[str, Any], desired: dict[str, Any]) -> None:  # noqa: ARG002
        """Make the authority when there is none, and sign; the play signs for several hosts at once."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusive(self.directory / ".lock"):
            authority = self._load()
            if authority is None:
                authority = make_authority(datetime.now(UTC))
                _write_once(self.path, pack_authority(authority))
                # Inventories are kept in version control; this key is not for everybody who reads them.
                (self.directory / ".gitignore").write_text("*\n", encoding="utf-8")
            self.path.chmod(0o600)
        if self.reasons:
            self.certificate = sign(authority, self._key(), self.wanted, datetime.now(UTC))

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        """Certificates only. Empty what a dry run cannot know."""
        authority = self._load()
        foretold = self.module.check_mode and self.reasons
        return {
            "certificate": "" if foretold else self.certificate,
            "authority": authority.pem if authority else "",
            "not_after": (state["certificate"] or {}).get("not_after", ""),
            "reasons": self.reasons,
        }

    def _load(self) -> Authority | None:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            return parse_authority(text)
        except ValueError as error:
            raise Failure(
                f"{self.path} is no certificate authority of this role ({error}): bring it back from a backup, or see "
                "docs/operations/witness.md, a new authority."
            ) from None

    def _look_at_its_end(self, authority: Authority, now: datetime) -> None:
        end = authority.certificate.not_valid_after_utc
        if end <= now:
            raise Failure(
                f"The certificate authority {self.path} ended on {end:%Y-%m-%d}: move the file away and run again; a new one "
                "is made, and every certificate with it."
            )
        if end - now < timedelta(days=self.wanted.renew_days):
            self.module.warn(
                f"The certificate authority {self.path} ends on {end:%Y-%m-%d}, and all certificates with it: see "
                "docs/operations/witness.md, a new authority."
            )

    def _refuse_another(self, authority: Authority | None, now: datetime) -> None:
        """A certificate that works is replaced by one of another authority only when that is meant."""
        try:
            present = x509.load_pem_x509_certificate(self.certificate.encode())
        except ValueError:
            return
        works = self.request and present.not_valid_after_utc > now and present.public_key() == self._key()
        if self.new_authority or not works or (authority and _signed_by(present, authority)):
            return
        issuer = _common_name(present.issuer)
        here = f"is {_common_name(authority.certificate.subject)}" if authority else "is not there"
        raise Failure(
            f"{self.wanted.subject} has a certificate of {issuer}, and {self.path} {here}: with new certificates all protected "
            "VMs fall silent a while. Bring the authority's file there, from a backup or from who has it; when it is lost, "
            "see docs/operations/witness.md, a new authority: -e colo_certificate_new_authority=true."
        )

    def _key(self) -> ec.EllipticCurvePublicKey:
        try:
            return parse_request(self.request)
        except ValueError as error:
            raise Failure(f"The request of {self.wanted.subject} cannot be signed: {error}.") from None

    def _described(self) -> dict[str, Any] | None:
        try:
            return describe(x509.load_pem_x509_certificate(self.certificate.encode()))
        except (ValueError, x509.ExtensionNotFound):
            return None


def _write_once(path: Path, text: str) -> None:
    """Write a file that is not there; one that is there stays (a link is not made over it)."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
        os.link(stream.name, path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LATE)
        .not_valid_after(until)
    )


def _key_usage(
    *, digital_signature: bool, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _signed_by(certificate: x509.Certificate, authority: Authority) -> bool:
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _fingerprint(key: Any) -> str:  # noqa: ANN401  (any public key)
    """The beginning of a digest of a public key."""
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()[:16]


def _usages(server: bool) -> list[x509.ObjectIdentifier]:
    """The JSON gateway of etcd is a client of etcd itself, and shows it the server's certificate."""
    return [*([Usage.SERVER_AUTH] if server else []), Usage.CLIENT_AUTH]


def _use(server: bool) -> str:
    return "server" if server else "client"


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _common_name(name: x509.Name) -> str:
    return " ".join(str(attribute.value) for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME))


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names) or "none"
