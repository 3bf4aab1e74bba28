"""The connection of a device to the fleet API of a SuperLink, by Flower's own client."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message, Metadata
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import fab_from_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedexp.devices.flower.failures import Away, Refused, Rejected, RunEnded, UnknownNode
from fedexp.devices.flower.objects import contents_of, ids_of, inflated, without_content
from fedexp.simulation.flower.messages import identify, number

R = TypeVar("R")
_MAX_FAB = 10 << 20  # bytes of an app bundle, Flower's own limit
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"}


@dataclass(frozen=True)
class FleetTask:
    """A message that waits for this node, whose content has not been loaded yet.

    Attributes:
        metadata: of the message.
        tree: Flower's names of all objects that make up the message.
    """

    metadata: Metadata
    tree: Any


class FleetLink:
    """A device's way to its server. Every call may raise what ``flower.failures`` has.

    Args:
        server: ``HOST:PORT``.
        ca: the certificate, or certificates, that the server's own must come from; PEM.
        key: the node's private key in OpenSSH's form, as ``flower-supernode`` takes it.
        timeout: seconds that one request may take without a byte from the server.

    Raises:
        ValueError: ``key`` or ``ca`` is not that.
    """

    def __init__(self, server: str, ca: bytes, key: bytes, *, timeout: float = 30.0) -> None:
        private = _private_key(key)
        self.server = server
        self.public_key = public_key_to_bytes(private.public_key())
        self._client = FleetHttpClient(
            f"https://{server}",
            interceptors=[NodeAuthHttpInterceptor(private, private.public_key())],
            verify=_trusting(ca),
            timeout=timeout,
        )
        self._node = Node()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def activate(self) -> int:
        """Say that this node is there; its id.

        Raises:
            UnknownNode: the server has no such key, or some process uses it now.
        """
        request = ActivateNodeRequest(
            public_key=self.public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        self._node = Node(node_id=self._call(self._client.ActivateNode, request).node_id)
        return int(self._node.node_id)

    def deactivate(self, node_id: int) -> None:
        """Say that node ``node_id``, which has this key, goes."""
        self._call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=node_id))

    def heartbeat(self) -> bool:
        """Say that this node is still there; whether the server knows it."""
        request = SendNodeHeartbeatRequest(
            node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        return bool(self._call(self._client.SendNodeHeartbeat, request).success)

    def next_task(self) -> FleetTask | None:
        """The next message for this node, if there is one."""
        found = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not found.messages_list:
            return None
        message = message_from_proto(found.messages_list[0])
        return FleetTask(message.metadata, found.message_object_trees[0])

    def load(self, task: FleetTask, limit: int) -> Message:
        """The whole message of ``task``.

        Raises:
            ValueError: it would take more than ``limit`` bytes, or is damaged.
        """
        run_id, message_id = task.metadata.run_id, task.metadata.message_id

        def pull(object_id: str) -> bytes | None:
            request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
            found = self._call(self._client.PullObject, request)
            return found.object_content if found.object_available else None

        contents = contents_of(task.tree, pull, limit)
        confirmation = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run_id, message_object_id=message_id
        )
        self._call(self._client.ConfirmMessageReceived, confirmation)
        identify(run_id)
        return number(inflated(task.tree.object_id, contents, limit), task.tree.object_id)

    def run_config(self, run_id: int) -> dict[str, Any]:
        """The run config, as Flower's own node makes it: that of the app, changed by the run's.

        The app's bundle is read for its ``pyproject.toml``; its code is neither stored nor run.

        Raises:
            ValueError: the bundle is none.
        """
        asked = GetRunRequest(node=self._node, run_id=run_id)
        run = run_from_proto(self._call(self._client.GetRun, asked).run)
        request = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run_id)
        fab = fab_from_proto(self._call(self._client.GetFab, request).fab)
        if len(fab.content) > _MAX_FAB:
            raise ValueError(f"the app has {len(fab.content)} bytes, at most {_MAX_FAB} are read.")
        return dict(get_fused_config_from_fab(fab.content, run))

    def send(self, reply: Message, seconds: float) -> int:
        """Send a reply, which took ``seconds`` to make; the bytes of its objects that went.

        Raises:
            Rejected: the server does not take it.
        """
        number(reply, reply.object_id)
        tree, contents = ids_of(reply)
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(without_content(reply))],
            message_object_trees=[tree],
            clientapp_runtime_list=[seconds],
        )
        answer = self._call(self._client.PushMessages, request)
        return sum(self._push(reply, answer, contents, wanted=set(answer.objects_to_push)))

    def _push(
        self, reply: Message, answer: Any, contents: dict[str, Any], wanted: set[str]
    ) -> Iterator[int]:
        for object_id, part in contents.items():
            if object_id in wanted:
                request = PushObjectRequest(
                    node=self._node,
                    run_id=reply.metadata.run_id,
                    session_id=answer.session_id,
                    object_id=object_id,
                    object_content=part.deflate(),
                )
                self._call(self._client.PushObject, request)
                yield len(request.object_content)

    def _call(self, method: Callable[[Any], R], request: Any) -> R:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            raise self._failure(error.response) from error
        except httpx.TransportError as error:
            raise self._unreached(error) from error
        except (httpx.HTTPError, ValueError) as error:  # of a server that speaks otherwise
            raise Away(f"{self.server} gives no sound answer: {_line(error)}") from error

    def _failure(self, response: httpx.Response) -> Exception:
        """What a status other than 200 means."""
        status, route = response.status_code, response.request.url.path.rpartition("/")[2]
        said = " ".join(response.text.split())[:200]
        if status == httpx.codes.UNAUTHORIZED and route == "activate-node":
            return Refused(
                f"{self.server} does not accept this machine's signature. Set its clock, which "
                "may be wrong."
            )
        if status == httpx.codes.UNAUTHORIZED or (status == 412 and route == "activate-node"):
            return UnknownNode(
                f"{self.server} does not accept this node's key: it is not registered there, was "
                "revoked, or another process uses it now. Give node.pub to whoever runs the server."
            )
        if status == httpx.codes.FORBIDDEN:
            return RunEnded(said)
        if status == httpx.codes.NOT_FOUND:
            return Refused(f"{self.server} is no server of ours: it has no {route} (404).")
        if status == httpx.codes.TOO_MANY_REQUESTS or status in _LATER:
            wait = response.headers.get("retry-after", "")
            asked = float(wait) if wait.isdecimal() else 0.0
            return Away(f"{self.server} is busy or restarts ({status})", wait=min(asked, 300.0))
        return Rejected(f"{self.server} answers {route} with {status}: {said}")

    def _unreached(self, error: httpx.TransportError) -> Exception:
        """What a connection that fails means."""
        cause = _tls_error(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Refused(
                f"{self.server} shows a certificate that ca.crt does not vouch for: "
                f"{cause.verify_message or cause.reason}."
            )
        if getattr(cause, "reason", None) in _NO_TLS:
            return Refused(f"{self.server} does not speak TLS. Name the port of `fedexp serve`.")
        early = isinstance(error, httpx.ConnectError) and (
            cause is not None or isinstance(_root(error), ConnectionResetError)
        )
        return Away(f"{self.server} is not there: {_line(error)}", in_handshake=early)


_LATER = {
    httpx.codes.REQUEST_TIMEOUT,
    httpx.codes.BAD_GATEWAY,
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
}


def _private_key(key: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        private = load_ssh_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"node.key: no private key of OpenSSH: {_line(error)}") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ValueError("node.key: must be an ECDSA key. Make one with --new-key.")
    return private


def _trusting(ca: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise ValueError(f"ca.crt: no certificate in PEM: {_line(error)}") from None
    return context


def _root(error: BaseException) -> BaseException:
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The error of TLS behind an error of the HTTP client."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
