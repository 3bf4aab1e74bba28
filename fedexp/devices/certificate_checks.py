"""What can be wrong with a server's certificates, found before anything is started."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from fedexp.devices import pki
from fedexp.devices.private_files import check_private
from fedexp.devices.site import Site

_RENEW = "Run `fedexp provision {0} --renew-server`"


def check_certificates(site: Site, now: datetime | None = None) -> datetime:
    """Check dates, names, key and signature; return when the first certificate ends.

    Flower itself finds these only when the first run hangs: with an expired certificate its
    SuperLink stays up, and clients read "unavailable".

    Args:
        site: whose certificates.
        now: the present if None.

    Raises:
        ValueError: something is wrong, in one line.
    """
    now = now or datetime.now(UTC)
    authority, server = _certificate(site.ca_certificate), _certificate(site.server_certificate)
    renew = _RENEW.format(site.folder)
    _check_dates(site.ca_certificate, authority, now, "Make a new site: nodes need its ca.crt")
    _check_dates(site.server_certificate, server, now, renew)
    if missing := [host for host in (*site.hosts, *pki.LOCAL) if not _names(server, host)]:
        raise ValueError(f"{site.server_certificate}: is not for {missing[0]}. {renew}.")
    try:
        server.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise ValueError(
            f"{site.server_certificate}: was not signed by {site.ca_certificate}. {renew}."
        ) from None
    check_private(site.server_key)
    if _public_of(site.server_key) != server.public_key():
        raise ValueError(
            f"{site.server_key}: does not belong to {site.server_certificate}. {renew}."
        )
    return min(authority.not_valid_after_utc, server.not_valid_after_utc)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise ValueError(f"{path}: holds no certificate. Restore it from a copy.") from None


def _check_dates(path: Path, certificate: x509.Certificate, now: datetime, remedy: str) -> None:
    if now > certificate.not_valid_after_utc:
        raise ValueError(f"{path}: expired on {certificate.not_valid_after_utc:%F}. {remedy}.")
    if now < certificate.not_valid_before_utc:
        raise ValueError(
            f"{path}: is valid from {certificate.not_valid_before_utc:%F} only. Set the clock."
        )


def _names(certificate: x509.Certificate, host: str) -> bool:
    """Whether the certificate is for ``host``."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    if pki.is_address(host):
        return ipaddress.ip_address(host) in found.get_values_for_type(x509.IPAddress)
    return host.lower() in map(str.lower, found.get_values_for_type(x509.DNSName))


def _public_of(path: Path) -> object:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), None).public_key()
    except (ValueError, TypeError):
        raise ValueError(f"{path}: holds no private key. Restore it from a copy.") from None
