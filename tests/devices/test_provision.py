"""What `fedexp provision` makes: names, modes, keys that other programs read, one authority."""

import json
import os
import shutil
import stat
import subprocess
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sites import new_site

from fedexp import cli
from fedexp.devices import pki, provision
from fedexp.devices.certificate_checks import check_certificates
from fedexp.devices.private_files import write_private
from fedexp.devices.site import Site, read_nodes

needs_ssh_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")


@pytest.fixture
def site(tmp_path):
    return new_site(tmp_path / "site", "anna", "bob")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def content(folder):
    """All files below ``folder``."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_site_has_its_files_and_no_other(site):
    names = {path.relative_to(site.folder).as_posix() for path in content(site.folder)}
    node = {"node.toml", "ca.crt", "node.key", "node.pub"}
    assert names == {
        *("site.toml", "nodes.json", "ca/ca.key", "ca/ca.crt"),
        *("server/server.key", "server/server.crt"),
        *(f"nodes/{name}/{file}" for name in ("anna", "bob") for file in node),
    }
    assert (site.folder / "state").is_dir()
    assert [path.name for path in site.folder.parent.iterdir()] == ["site"]


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077])
def test_folders_and_private_keys_are_for_their_owner_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        site = new_site(tmp_path / "site", "anna")
        provision.add(site, "bob")
        provision.renew_server(site)
    finally:
        os.umask(before)
    for path in [site.folder, *site.folder.rglob("*")]:
        if path.is_dir():
            assert mode(path) == 0o700, path
        elif path.suffix == ".key" or path.name == "nodes.json":
            assert mode(path) == 0o600, path
        else:
            assert mode(path) == 0o644, path


def test_a_private_file_was_never_readable_for_others(tmp_path, monkeypatch):
    seen = []
    real = os.fdopen

    def fdopen(fd, *args):
        seen.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return real(fd, *args)

    monkeypatch.setattr(os, "fdopen", fdopen)
    write_private(tmp_path / "key", b"secret")
    assert seen == [0o600]


def test_a_node_is_told_the_server_and_its_name_and_nothing_secret(site):
    told = tomllib.loads((site.node_folder("anna") / "node.toml").read_text())
    assert told == {"server": f"localhost:{site.port}", "name": "anna"}
    assert (site.node_folder("anna") / "ca.crt").read_bytes() == site.ca_certificate.read_bytes()


def test_a_node_of_an_ipv6_server_is_told_an_address_in_brackets(tmp_path):
    assert Site(tmp_path, ("2001:db8::1",)).server == "[2001:db8::1]:8443"


def test_flowers_own_functions_read_the_keys(site):
    from flwr.cli.supernode.register import try_load_public_key

    folder = site.node_folder("anna")
    private = serialization.load_ssh_private_key((folder / "node.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert try_load_public_key(folder / "node.pub") == public


@needs_ssh_keygen
def test_ssh_keygen_finds_the_same_public_key_and_fingerprint(site):
    folder = site.node_folder("anna")
    entry = read_nodes(site)[0]
    public = subprocess.check_output(["ssh-keygen", "-y", "-f", folder / "node.key"], text=True)
    assert public.split() == entry.public_key.split()[:2]
    line = subprocess.check_output(["ssh-keygen", "-lf", folder / "node.pub"], text=True)
    assert line.split()[1:3] == [entry.fingerprint, "anna"]


@needs_openssl
@pytest.mark.parametrize(
    "names", [["-verify_hostname", "localhost"], ["-verify_ip", "127.0.0.1"], ["-verify_ip", "::1"]]
)
def test_openssl_trusts_the_server_by_every_name(site, names):
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", *names]
    command += ["-CAfile", site.ca_certificate, site.server_certificate]
    assert subprocess.check_output(command, text=True).endswith("OK\n")


def test_renewal_keeps_the_authority_and_the_nodes(site):
    before = content(site.folder)
    provision.renew_server(site)
    after = content(site.folder)
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed == {"server.key", "server.crt"}
    assert before.keys() == after.keys()
    assert check_certificates(site) > datetime.now(UTC) + timedelta(days=300)


def test_a_certificate_never_outlives_its_authority(site):
    provision.renew_server(site, days=100 * 365)
    ends = provision.expiries(site)
    assert ends["server"] == ends["authority"]


def test_a_new_name_of_the_server_comes_with_a_renewal(site, capsys):
    cli.main(["provision", str(site.folder), "--renew-server", "--host", "fl.example.org"])
    assert f"write fl.example.org:{site.port} into their node.toml" in capsys.readouterr().out
    changed = Site.of(site.folder)
    assert changed.hosts == ("fl.example.org",)
    check_certificates(changed)


def test_a_site_is_never_made_again(site, tmp_path):
    before = content(tmp_path)
    with pytest.raises(ValueError, match="its authority is never replaced"):
        provision.create(site, ["carl"])
    assert content(tmp_path) == before


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="there already and not empty"):
        new_site(folder, "anna")
    assert content(tmp_path) == {folder / "thesis.txt": b"years"}


def test_a_site_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pki, "new_node_key", full)
    with pytest.raises(OSError, match="No space"):
        new_site(tmp_path / "site", "anna")
    assert not list(tmp_path.iterdir())


def test_nodes_are_added_and_revoked(site):
    provision.add(site, "clinic")
    provision.revoke(site, "bob")
    entries = {entry.name: entry for entry in read_nodes(site)}
    assert list(entries) == ["anna", "bob", "clinic"]
    assert [name for name, entry in entries.items() if entry.revoked] == ["bob"]
    assert len({entry.fingerprint for entry in entries.values()}) == 3
    assert (site.node_folder("bob") / "node.key").is_file()  # nothing is deleted


def test_a_node_may_keep_its_key_to_itself(site, tmp_path):
    key = pki.new_node_key()
    (tmp_path / "dora.pub").write_text(pki.public_line(key.public_key(), "dora@laptop") + "\n")
    entry = provision.add(site, "dora", tmp_path / "dora.pub")
    assert entry.public_key == pki.public_line(key.public_key(), "dora")
    files = {path.name for path in site.node_folder("dora").iterdir()}
    assert files == {"node.toml", "ca.crt", "node.pub"}
    with pytest.raises(ValueError, match="is the key of 'dora' already"):
        provision.add(site, "doris", tmp_path / "dora.pub")
    assert not site.node_folder("doris").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not a key", "holds no public key in OpenSSH's form"),
        (
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFVOqLLBY9SD0E4s5iYCsfCSHBUjBMUIHhFl6fgZLCHW x",
            "P-384",
        ),
        (
            pki.public_line(ec.generate_private_key(ec.SECP256R1()).public_key(), "x"),
            "must be an ECDSA key on the curve P-384",
        ),
    ],
)
def test_a_public_key_of_another_kind_is_refused(site, tmp_path, text, said):
    (tmp_path / "x.pub").write_text(text)
    with pytest.raises(ValueError, match=said):
        provision.add(site, "x", tmp_path / "x.pub")


def fails(capsys, *words):
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, words)])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--add", "anna"], "there is a node of this name"),
        (["--add", "../x"], "'../x' cannot be a node's name"),
        (["--revoke", "carl"], "no such node. Known: ['anna', 'bob']"),
        (["--add", "x", "--revoke", "anna"], "one thing at a time"),
        (["--add", "x", "--host", "y"], "--host has no meaning for --add"),
        (["--revoke", "anna", "--days", "3"], "--days has no meaning for --revoke"),
        (["--renew-server", "--host", "a b"], "'a b' is neither a host name nor an address"),
        (["--host", "localhost"], "its authority is never replaced"),
        ([], "--host is missing"),
        (["--public-key", "x"], "--public-key has no meaning for a new site"),
        (["--add", "x", "--public-key", "no/such"], "No such file"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(site, capsys, words, said):
    before = content(site.folder)
    assert said in fails(capsys, "provision", site.folder, *words)
    assert content(site.folder) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts = [", "is not TOML"),
        ("hosts = []", "no host"),
        ("hosts = 'x'", "must be a list of names"),
        ("hosts = ['https://x:1']", "neither a host name nor an address"),
        ("hosts = ['x']\nport = 0", "must be a whole number from 1"),
        ("hosts = ['x']\nport = 70000", "must be between 1 and 65535"),
        ("hosts = ['x']\nport = 9191", "the ports must differ"),
        ("hosts = ['x']\nports = 1", "unknown ['ports']. Known: ['hosts', 'inner-port',"),
    ],
)
def test_a_site_file_that_cannot_be_is_named(tmp_path, capsys, text, said):
    (tmp_path / "site.toml").write_text(text)
    assert said in fails(capsys, "serve", tmp_path)


def test_commands_say_what_they_did(tmp_path, capsys):
    folder = tmp_path / "site"
    cli.main(["provision", str(folder), "--host", "fl.example.org", "--nodes", "anna,bob,clinic"])
    out = capsys.readouterr().out
    year = datetime.now(UTC) + timedelta(days=365)
    assert all(str(folder / "nodes" / name) in out for name in ("anna", "bob", "clinic"))
    assert f"The certificate of the server ends on {year:%F}." in out
    cli.main(["provision", str(folder), "--add", "dora"])
    assert f"whose key is {read_nodes(Site.of(folder))[-1].fingerprint}" in capsys.readouterr().out
    cli.main(["provision", str(folder), "--revoke", "dora"])
    assert "Revoked dora" in capsys.readouterr().out
    assert "was revoked on" in fails(capsys, "provision", folder, "--revoke", "dora")


def test_a_damaged_list_of_nodes_is_named_and_kept(site, capsys):
    (site.folder / "nodes.json").write_text("[{")
    assert "nodes.json: cannot be read" in fails(capsys, "provision", site.folder, "--add", "x")
    assert (site.folder / "nodes.json").read_text() == "[{"
    (site.folder / "nodes.json").write_text(json.dumps([{"name": "x"}]))
    assert "Restore it from a copy" in fails(capsys, "serve", site.folder)


class TestServeChecksCertificatesFirst:
    """Each is one line, before a process is started."""

    def test_expired(self, site, capsys):
        provision.renew_server(site, days=1, now=datetime.now(UTC) - timedelta(days=10))
        said = fails(capsys, "serve", site.folder)
        assert "server.crt: expired on" in said
        assert f"Run `fedexp provision {site.folder} --renew-server`" in said

    def test_not_yet_valid(self, site, capsys):
        provision.renew_server(site, now=datetime.now(UTC) + timedelta(days=10))
        assert "Set the clock" in fails(capsys, "serve", site.folder)

    def test_for_another_host(self, site, capsys):
        replace(site, hosts=("localhost", "fl.example.org")).save()
        assert "server.crt: is not for fl.example.org" in fails(capsys, "serve", site.folder)

    def test_of_another_key(self, site, capsys):
        write_private(site.server_key, pki.key_file(ec.generate_private_key(ec.SECP256R1())))
        assert "server.key: does not belong to" in fails(capsys, "serve", site.folder)

    def test_of_another_authority(self, site, tmp_path, capsys):
        other = new_site(tmp_path / "other")
        for name in ("server_key", "server_certificate"):
            shutil.copy(getattr(other, name), getattr(site, name))
        assert "server.crt: was not signed by" in fails(capsys, "serve", site.folder)

    def test_with_an_open_key(self, site, capsys):
        site.server_key.chmod(0o640)
        assert "other users can read this key (mode 640)" in fails(capsys, "serve", site.folder)

    @pytest.mark.parametrize("name", ["server_certificate", "ca_certificate", "server_key"])
    def test_damaged(self, site, capsys, name):
        write_private(getattr(site, name), b"-----BEGIN NOTHING-----\n")
        assert "Restore it from a copy" in fails(capsys, "serve", site.folder)

    @pytest.mark.parametrize("name", ["server_certificate", "ca_certificate", "server_key"])
    def test_missing(self, site, capsys, name):
        getattr(site, name).unlink()
        assert "No such file" in fails(capsys, "serve", site.folder)


def test_serve_of_no_site_is_one_line(tmp_path, capsys):
    assert "holds no site" in fails(capsys, "serve", tmp_path)


def test_the_authority_may_be_kept_elsewhere(site, capsys):
    site.ca_key.unlink()
    provision.add(site, "carl")
    check_certificates(site)
    assert "Bring the authority's key back" in fails(
        capsys, "provision", site.folder, "--renew-server"
    )


def test_certificates_are_of_the_form_that_strict_clients_want(site):
    authority = x509.load_pem_x509_certificate(site.ca_certificate.read_bytes())
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    server = x509.load_pem_x509_certificate(site.server_certificate.read_bytes())
    verifier = (
        x509.verification.PolicyBuilder()
        .store(x509.verification.Store([authority]))
        .build_server_verifier(x509.DNSName("localhost"))
    )
    assert verifier.verify(server, []) == [server, authority]
