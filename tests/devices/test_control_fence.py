"""Each name of Flower that `fedexp.devices.flower.control` uses, against the installed release."""

import inspect

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.proto import control_pb2, fab_pb2, node_pb2, run_pb2
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode

from fedexp.devices.flower import control


def test_the_client_is_made_from_an_address_and_a_certificate():
    names = list(inspect.signature(ControlHttpClient.from_server_address).parameters)
    assert names[:4] == ["server_address", "insecure", "root_certificates", "interceptors"]


@pytest.mark.parametrize(
    "call",
    ["RegisterNode", "UnregisterNode", "ListNodes", "StartRun", "ListRuns", "StopRun"],
)
def test_a_call_takes_its_request(call):
    assert list(inspect.signature(getattr(ControlHttpClient, call)).parameters) == [
        "self",
        "request",
    ]
    assert hasattr(control_pb2, f"{call}Request")


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (control_pb2.RegisterNodeRequest, {"public_key", "name"}),
        (control_pb2.UnregisterNodeRequest, {"node_id"}),
        (control_pb2.StartRunRequest, {"fab", "override_config"}),
        (control_pb2.ListRunsRequest, {"run_id"}),
        (control_pb2.ListRunsResponse, {"run_dict"}),
        (control_pb2.ListNodesResponse, {"nodes_info"}),
        (fab_pb2.Fab, {"hash_str", "content"}),
        (node_pb2.NodeInfo, {"node_id", "name", "status", "public_key"}),
        (run_pb2.Run, {"status", "bytes_sent", "bytes_recv"}),
        (run_pb2.RunStatus, {"status", "sub_status", "details"}),
    ],
)
def test_a_message_has_the_fields_that_are_used(message, fields):
    assert fields <= set(message.DESCRIPTOR.fields_by_name)


def test_the_numbers_and_words_are_flowers():
    assert ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE == control._TAKEN
    assert ApiErrorCode.RUN_ALREADY_FINISHED == control._FINISHED
    assert NodeStatus.UNREGISTERED == "unregistered"
    assert NodeStatus.REGISTERED == "registered"
    assert (NodeStatus.ONLINE, NodeStatus.OFFLINE) == ("online", "offline")


def test_an_app_is_built_from_its_folder():
    assert list(inspect.signature(build_fab_from_disk).parameters) == ["app"]
