"""Keys and certificates of a site: one authority, one server, a key for each node."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
LOCAL = ("localhost", "127.0.0.1", "::1")  # SuperLink and gate call each other by these


@dataclass(frozen=True)
class Signed:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def new_authority(days: int = AUTHORITY_DAYS, now: datetime | None = None) -> Signed:
    """A certificate authority that signs itself.

    Args:
        days: how long it is valid.
        now: the time of issue; the present if None.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedexp site authority")])
    usage = _usage(signs_certificates=True)
    builder = (
        _dated(days, now)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Signed(key, builder.sign(key, hashes.SHA256()))


def new_server(
    authority: Signed,
    hosts: Sequence[str],
    days: int = SERVER_DAYS,
    now: datetime | None = None,
) -> Signed:
    """A server's key and the certificate that ``authority`` gives it.

    Args:
        authority: signs it.
        hosts: names or addresses; those of the machine itself are always added, because Flower's
            own processes verify the certificate against ``127.0.0.1``.
        days: how long it is valid, but never longer than the authority.
        now: the time of issue; the present if None.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names = list(dict.fromkeys([*hosts, *LOCAL]))
    end = authority.certificate.not_valid_after_utc
    builder = (
        _dated(days, now, end)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName(list(map(_general, names))), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
    )
    return Signed(key, builder.sign(authority.key, hashes.SHA256()))


def new_node_key() -> ec.EllipticCurvePrivateKey:
    """A key as Flower's SuperNodes use: ECDSA on the curve P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def node_key_file(key: ec.EllipticCurvePrivateKey) -> bytes:
    """What ``flower-supernode --auth-supernode-private-key`` reads: OpenSSH's form, no password."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def key_file(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key of the authority or the server: PKCS #8 in PEM, no password."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def certificate_file(certificate: x509.Certificate) -> bytes:
    """The certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def public_line(key: ec.EllipticCurvePublicKey, name: str) -> str:
    """What ``flwr supernode register`` reads: a line of OpenSSH's form that ends with ``name``."""
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{line.decode('ascii')} {name}"


def read_public_line(line: str, owner: str) -> ec.EllipticCurvePublicKey:
    """The public key in ``line``.

    Raises:
        ValueError: it holds none, or not one on P-384; ``owner`` names the file.
    """
    remedy = "Make one with `fedexp device --new-key` or `ssh-keygen -t ecdsa -b 384`."
    try:
        key = serialization.load_ssh_public_key(line.encode("utf-8"))
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{owner}: holds no public key in OpenSSH's form. {remedy}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError(f"{owner}: must be an ECDSA key on the curve P-384. {remedy}")
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """What ``ssh-keygen -lf`` prints, to be compared by telephone: ``SHA256:…``."""
    blob = base64.b64decode(public_line(key, "").split()[1])
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii")
    return f"SHA256:{digest.rstrip('=')}"


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _general(host: str) -> x509.GeneralName:
    if is_address(host):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def _dated(days: int, now: datetime | None, end: datetime | None = None) -> x509.CertificateBuilder:
    """A builder with dates; a day early, since the clocks of devices differ."""
    start = (now or datetime.now(UTC)).replace(microsecond=0)
    until = start + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(days=1))
        .not_valid_after(min(until, end) if end else until)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
