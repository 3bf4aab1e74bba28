"""Flower's Control API: what `flwr supernode` and `flwr run` speak, without their start-up time.

One command of `flwr` takes 2.4 to 7 seconds, nearly all of it imports; a server that registers ten
nodes and a run that is watched need the same calls from a process that has them imported already.
Measured on two busy cores: 2 s for the imports, once; then 13 ms a call, and 0.4 s to send an app.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
from click import ClickException
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run
from flwr.supercore.control import ControlHttpClient

_TAKEN, _FINISHED = 23, 18  # Flower's codes of errors, as its own messages show them


class ControlError(RuntimeError):
    """The SuperLink refused a call; ``code`` is Flower's number of the reason, 0 if none."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Control:
    """Calls of one SuperLink.

    Args:
        address: ``HOST:PORT``.
        ca_certificate: PEM file of the authority that signed the SuperLink's certificate.
    """

    def __init__(self, address: str, ca_certificate: Path) -> None:
        self._address = address
        self._client = ControlHttpClient.from_server_address(
            address, False, ca_certificate.read_bytes(), ()
        )

    def __enter__(self) -> Control:
        """Return this client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its connections."""
        self._client.close()

    def register(self, public_key: bytes, name: str) -> bool:
        """Let a node in; False if its key is known already.

        Args:
            public_key: PEM, as the node sends it.
            name: shown in lists.
        """
        try:
            with self._plain_errors():
                self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))
        except ControlError as error:
            if error.code != _TAKEN:
                raise
            return False
        return True

    def unregister(self, node_id: int) -> None:
        """Shut a node out."""
        with self._plain_errors():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[NodeInfo]:
        """All nodes that are or were registered; ``status`` says which."""
        with self._plain_errors():
            return list(self._client.ListNodes(ListNodesRequest()).nodes_info)

    def start_run(self, app: Path, run_config: Mapping[str, bool | int | float | str]) -> int:
        """Send the app in the folder ``app`` and start it; the run's id."""
        try:
            with warnings.catch_warnings():  # Flower calls pathspec by a deprecated name
                warnings.simplefilter("ignore", DeprecationWarning)
                content = build_fab_from_disk(app)
        except (ClickException, OSError, ValueError) as error:
            said = error.message if isinstance(error, ClickException) else error
            line = " ".join(str(said).split())
            raise ValueError(f"{app}: is no Flower app: {line}") from None
        request = StartRunRequest(
            fab=Fab(hash_str=sha256(content).hexdigest(), content=content),
            override_config=user_config_to_proto(dict(run_config)),
        )
        with self._plain_errors():
            return int(self._client.StartRun(request).run_id)

    def run(self, run_id: int) -> Run:
        """What is known of a run."""
        with self._plain_errors():
            runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        found: Run = runs[run_id]
        return found

    def stop_run(self, run_id: int) -> bool:
        """End a run; False if it had ended already."""
        try:
            with self._plain_errors():
                self._client.StopRun(StopRunRequest(run_id=run_id))
        except ControlError as error:
            if error.code != _FINISHED:
                raise
            return False
        return True

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """What went wrong, in one line."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            code, said = _reason(error.response)
            raise ControlError(f"{self._address}: the SuperLink refused: {said}", code) from None
        except httpx.HTTPError as error:
            raise ConnectionError(
                f"{self._address}: no SuperLink answers ({error}). Is `fedexp serve` running?"
            ) from None


def _reason(response: httpx.Response) -> tuple[int, str]:
    """Flower's code and its line, or what else the server said."""
    try:
        said = json.loads(response.text)
        return int(said.get("code", 0)), f"{said['detail']} {said.get('extra', '')}".strip()
    except (ValueError, TypeError, KeyError, AttributeError):
        return 0, f"status {response.status_code}"
