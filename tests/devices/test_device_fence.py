"""Canaries: each private name of Flower that the device's fence uses is there and does its part.

A test that fails says which function of ``fedexp/devices/flower`` to look at.
"""

import ast
import inspect
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, Message, RecordDict
from private_names import private_names

from fedexp.devices.flower.objects import contents_of, ids_of, inflated
from fedexp.records import from_record, to_record
from fedexp.simulation.flower.messages import number
from fedexp.simulation.flower.sizes import check_size

FENCE = Path(__file__).parents[2] / "fedexp" / "devices" / "flower"
FILES = ("fleet.py", "objects.py")
# Every private name of the fence -> the function that uses it, and the parameters it relies on.
USED = (
    {
        "flwr.app.message.remove_content_from_message": ("objects.py: without_content", "message"),
        "flwr.common.config.get_fused_config_from_fab": ("fleet.py: run_config", "fab_file run"),
        "flwr.common.constant.HEARTBEAT_DEFAULT_INTERVAL": ("fleet.py: heartbeat", None),
        "flwr.common.serde.fab_from_proto": ("fleet.py: run_config", "fab"),
        "flwr.common.serde.message_from_proto": ("fleet.py: next_task", "message_proto"),
        "flwr.common.serde.message_to_proto": ("fleet.py: send", "message"),
        "flwr.common.serde.run_from_proto": ("fleet.py: run_config", "run_proto"),
        "flwr.proto.fab_pb2.GetFabRequest": ("fleet.py: run_config", "node hash_str run_id"),
        "flwr.proto.fleet_pb2.ActivateNodeRequest": (
            "fleet.py: activate",
            "public_key heartbeat_interval",
        ),
        "flwr.proto.fleet_pb2.DeactivateNodeRequest": ("fleet.py: deactivate", "node_id"),
        "flwr.proto.fleet_pb2.PullMessagesRequest": ("fleet.py: next_task", "node"),
        "flwr.proto.fleet_pb2.PushMessagesRequest": (
            "fleet.py: send",
            "node messages_list message_object_trees clientapp_runtime_list",
        ),
        "flwr.proto.heartbeat_pb2.SendNodeHeartbeatRequest": (
            "fleet.py: heartbeat",
            "node heartbeat_interval",
        ),
        "flwr.proto.message_pb2.ConfirmMessageReceivedRequest": (
            "fleet.py: load",
            "node run_id message_object_id",
        ),
        "flwr.proto.message_pb2.PullObjectRequest": ("fleet.py: load", "node run_id object_id"),
        "flwr.proto.message_pb2.PushObjectRequest": (
            "fleet.py: send",
            "node run_id session_id object_id object_content",
        ),
        "flwr.proto.node_pb2.Node": ("fleet.py: activate", "node_id"),
        "flwr.proto.run_pb2.GetRunRequest": ("fleet.py: run_config", "node run_id"),
        "flwr.supercore.primitives.asymmetric.public_key_to_bytes": (
            "fleet.py: FleetLink",
            "public_key",
        ),
        "flwr.supernode.fleet_http_client.FleetHttpClient": (
            "fleet.py: FleetLink",
            "base_url interceptors verify timeout",
        ),
        "flwr.supernode.node_auth_http_interceptor.NodeAuthHttpInterceptor": (
            "fleet.py: FleetLink",
            "private_key public_key",
        ),
    }
    | {
        f"flwr.supercore.inflatable.inflatable_object.{name}": (f"objects.py: {function}", given)
        for name, function, given in (
            ("get_all_nested_objects", "ids_of", "obj"),
            ("get_object_tree", "ids_of", "obj"),
            ("iterate_object_tree", "contents_of", "tree"),
            ("no_object_id_recompute", "ids_of", ""),
        )
    }
    | {
        "flwr.supercore.inflatable.inflatable_utils.inflate_object_from_contents": (
            "objects.py: inflated",
            "object_id object_contents",
        ),
    }
)
ROUTES = (
    "ActivateNode",
    "DeactivateNode",
    "SendNodeHeartbeat",
    "PullMessages",
    "PullObject",
    "ConfirmMessageReceived",
    "PushMessages",
    "PushObject",
    "GetRun",
    "GetFab",
)


@pytest.mark.parametrize("name", USED)
def test_a_private_name_takes_what_we_give(name):
    where, given = USED[name]
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute, None)
    assert found is not None, f"Flower has no {name} any more: see {where}"
    wanted = set((given or "").split())
    if descriptor := getattr(found, "DESCRIPTOR", None):
        known = set(descriptor.fields_by_name)
    else:
        known = set(inspect.signature(found).parameters) if callable(found) else set()
    assert wanted <= known, f"{name} takes no {sorted(wanted - known)} any more: see {where}"


def test_the_list_of_private_names_is_complete():
    used: set[str] = set()
    for file in FILES:
        used |= private_names(ast.parse((FENCE / file).read_text()))
    assert used == USED.keys()


@pytest.mark.parametrize("route", ROUTES)
def test_flowers_client_has_the_routes(route):
    from flwr.supernode.fleet_http_client import FleetHttpClient

    method = getattr(FleetHttpClient, route, None)
    assert method is not None, f"FleetHttpClient.{route} is gone: see fleet.py"
    assert list(inspect.signature(method).parameters) == ["self", "request"]
    assert "/v1/fleet/" in inspect.getsource(method)


def test_the_key_and_the_time_go_with_every_request():
    import httpx
    from flwr.supercore.protobuf.client import ProtobufRequestContext
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    key = ec.generate_private_key(ec.SECP384R1())
    request = httpx.Request("POST", "https://localhost")
    context = ProtobufRequestContext("", None, request)  # type: ignore[arg-type]
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(context, lambda _: httpx.Response(200))
    assert sum("flwr" in name or "flower" in name for name in request.headers) >= 3


def message(**arrays: object) -> Message:
    body = RecordDict({"arrays": to_record({k: np.asarray(x) for k, x in arrays.items()})})
    made = Message(body, 5, "train")
    return number(made, made.object_id)


def test_a_message_arrives_as_it_was_sent():
    sent = message(w=np.arange(6.0).reshape(2, 3), n=np.array(3))
    tree, objects = ids_of(sent)
    encoded = {object_id: part.deflate() for object_id, part in objects.items()}
    waits = iter([None])
    pulled = contents_of(tree, lambda i: next(waits, encoded[i]), 1 << 20)
    assert pulled == encoded
    arrived = inflated(tree.object_id, pulled, 1 << 20)
    assert arrived.metadata.message_type == "train"
    arrays = from_record(arrived.content.array_records["arrays"])
    assert arrays["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not pulled, "the encoded objects are let go"


def test_a_message_larger_than_the_limit_is_not_pulled():
    tree, objects = ids_of(message(w=np.zeros(1000)))
    encoded = {object_id: part.deflate() for object_id, part in objects.items()}
    with pytest.raises(ValueError, match="more than 4,000 bytes"):
        contents_of(tree, encoded.__getitem__, 4000)


def repeated(encoded: dict[str, bytes], times: int, shape: list[int]) -> dict[str, bytes]:
    """The array of a message names its one piece of bytes ``times`` times."""
    from flwr.supercore.inflatable.inflatable_object import get_object_body

    out = {}
    for object_id, content in encoded.items():
        if content.startswith(b"Array "):
            body = json.loads(get_object_body(content, Array))
            new = json.dumps({**body, "arraychunk_ids": [0] * times, "shape": shape}).encode()
            head = content[: content.index(b"\0")].rsplit(b" ", 1)[0]
            content = head + b" " + str(len(new)).encode() + b"\0" + new
        out[object_id] = content
    return out


@pytest.mark.parametrize(("times", "shape"), [(2_000_000, [1000]), (1, [10**9, 10**9]), (1, [-1])])
def test_what_an_array_would_become_is_looked_at_before_it_does(times, shape):
    sent = message(w=np.zeros(1000))
    tree, objects = ids_of(sent)
    encoded = {object_id: part.deflate() for object_id, part in objects.items()}
    check_size(encoded, 10_000)
    with pytest.raises(ValueError, match=r"its arrays need|declares the shape"):
        inflated(tree.object_id, repeated(encoded, times, shape), 1 << 20)


def test_damaged_objects_are_one_error():
    tree, objects = ids_of(message(w=np.zeros(3)))
    encoded = {object_id: part.deflate() for object_id, part in objects.items()}
    with pytest.raises(ValueError, match="cannot be read"):
        inflated(tree.object_id, dict.fromkeys(encoded, b"Array  2\0{}"), 1 << 20)
