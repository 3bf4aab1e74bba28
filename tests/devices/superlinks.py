"""A site on loopback: certificates, keys of nodes, a SuperLink, and devices as processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)
from cryptography.x509.oid import NameOID

from fedexp.devices.node_folder import new_key

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",  # seconds; an answer takes a SuperLink 9 ms
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    made = _certificate(name, name, key, timedelta(days=2))
    made = made.add_extension(x509.BasicConstraints(True, None), critical=True)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return key, made.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lasts: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + lasts)
    )


@dataclass
class TestSite:
    """Files and processes of one site, all on loopback."""

    __test__ = False
    path: Path
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.key, self.certificate = authority()
        self.ca = self.path / "ca.crt"
        self.ca.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        self.environment = {
            **os.environ,
            **ENVIRONMENT,
            "FLWR_HOME": str(self.path / "flwr"),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'devices'}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def server_files(
        self, *, lasts: timedelta = timedelta(days=1), host: str = "localhost"
    ) -> tuple[Path, Path]:
        """A certificate for ``host``, and 127.0.0.1 if that is localhost, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names: list[x509.GeneralName] = [x509.DNSName(host)]
        if host == "localhost":
            names.append(x509.IPAddress(ip_address("127.0.0.1")))
        made = _certificate(name, self.certificate.subject, key, lasts)
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        files = self.path / f"{host}{lasts.days}.crt", self.path / f"{host}{lasts.days}.key"
        files[0].write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM))
        pkcs8 = PrivateFormat.PKCS8
        files[1].write_bytes(key.private_bytes(Encoding.PEM, pkcs8, NoEncryption()))
        return files

    def node(self, name: str, *, host: str = "127.0.0.1", port: int = 0) -> Path:
        """The folder of a node."""
        folder = self.path / "nodes" / name
        new_key(folder)
        (folder / "ca.crt").write_bytes(self.ca.read_bytes())
        (folder / "node.toml").write_text(
            f'server = "{host}:{port or self.port}"\nname = "{name}"\n'
        )
        return folder

    def superlink(self, *files: Path) -> subprocess.Popen[Any]:
        """A SuperLink with these server files, once it answers."""
        certificate, key = files or self.server_files()
        (self.path / "flwr").mkdir(exist_ok=True)
        (self.path / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.ca}"\n'
        )
        process = self.start(
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--ssl-ca-certfile", str(self.ca), "--ssl-certfile", str(certificate)),
            *("--ssl-keyfile", str(key), "--enable-supernode-auth"),
            *("--database", str(self.path / "state.db")),
            log="superlink.log",
        )
        wait_for(lambda: _listens(self.port), 60, process, self.path / "superlink.log")
        return process

    def register(self, *folders: Path) -> None:
        """Let nodes in, as ``flwr supernode register`` does."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with self.control() as client:
            for folder in folders:
                public = load_ssh_public_key((folder / "node.pub").read_bytes())
                pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
                client.RegisterNode(RegisterNodeRequest(public_key=pem, name=folder.name))

    def control(self) -> Any:
        """Flower's client of the SuperLink's control API."""
        from flwr.supercore.control import ControlHttpClient

        return ControlHttpClient.from_server_address(
            f"127.0.0.1:{self.port}", False, self.ca.read_bytes(), ()
        )

    def submit(self, app: Path, **config: Any) -> int:
        """Start a run of an app, as ``flwr run`` does in five seconds more; its id."""
        from hashlib import sha256

        from flwr.cli.build import build_fab_from_disk
        from flwr.common.serde import user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.fab_pb2 import Fab

        with warnings.catch_warnings():  # Flower calls pathspec by a deprecated name
            warnings.simplefilter("ignore", DeprecationWarning)
            bundle = build_fab_from_disk(app)
        given = {name.replace("_", "-"): x for name, x in config.items()}
        request = StartRunRequest(
            fab=Fab(hash_str=sha256(bundle).hexdigest(), content=bundle),
            override_config=user_config_to_proto(given),
            app_spec="",
        )
        with self.control() as client:
            return int(client.StartRun(request).run_id)

    def device(self, folder: Path, *args: str) -> subprocess.Popen[Any]:
        """``fedexp device`` as a process, which writes to a log beside its folder."""
        return self.start(
            *(sys.executable, "-m", "fedexp", "device", str(folder), *args),
            log=f"{folder.name}.log",
        )

    def start(self, *command: str, log: str) -> subprocess.Popen[Any]:
        """A process of this site."""
        file = (self.path / log).open("ab")
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=self.path,
            start_new_session=True,
        )
        file.close()
        self.processes.append(process)
        return process

    def log(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End what was started, children included."""
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def site(path: Path) -> Iterator[TestSite]:
    made = TestSite(path)
    try:
        yield made
    finally:
        made.close()


def _listens(port: int) -> bool:
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0


def wait_for(
    holds: Any,
    seconds: float,
    process: subprocess.Popen[Any] | None = None,
    log: Path | None = None,
) -> None:
    """Wait until ``holds()``, as long as ``process`` lives."""
    end = time.monotonic() + seconds
    while not holds():
        dead = process is not None and process.poll() is not None
        if dead or time.monotonic() > end:
            text = log.read_text(errors="replace")[-3000:] if log and log.exists() else ""
            raise AssertionError(f"it does not hold{' and the process ended' * dead}: {text}")
        time.sleep(0.1)
