"""Canaries: each private name of Flower, PyTorch and Ray exists and is what the fence relies on.

When a new release breaks one, its message names the function of the fence to look at. The other
tests: the list is complete, a name that is gone crashes nothing, and the off switch works.
"""

import ast
import inspect
import json
import logging
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.superlink.grid import http_grid
from private_names import private_names
from torch.autograd import profiler

from fedexp.simulation.flower import lazy_arrays, profiler_marks
from fedexp.simulation.flower.client_apps import has_mods, is_of_client_fn
from fedexp.simulation.flower.contents import Content, content_of
from fedexp.simulation.flower.lazy_arrays import LazyArray, put, record_of
from fedexp.simulation.flower.messages import copy_of, empty_run, identify, message_with, number
from fedexp.simulation.flower.switch import Patch, is_plain

ROOT = Path(__file__).parents[2]
SIMULATION = ROOT / "fedexp" / "simulation"
FENCE = [*sorted((SIMULATION / "flower").glob("*.py")), SIMULATION / "ray" / "private.py"]
HAS_RAY = find_spec("ray") is not None
if HAS_RAY:
    from fedexp.simulation.ray import cluster, private

CANARIES: dict[str, tuple[str, str, Callable[[], None]]] = {}  # name -> package, function, check


def canary(package: str, function: str, *names: str) -> Callable[[Callable[[], None]], None]:
    """Register a check of ``names``, which ``function`` of the fence uses."""

    def register(check: Callable[[], None]) -> None:
        CANARIES.update(dict.fromkeys(names, (package, function, check)))

    return register


@canary("flwr", "flower/lazy_arrays.py: put", "_data")
def _the_dict_inside_a_record():
    metrics = MetricRecord({"x": 1.0})
    record = ArrayRecord()
    assert record.__dict__["_data"] == {}
    assert record.object_id == ArrayRecord().object_id
    record.__dict__["_data"]["w"] = Array(np.zeros(2))
    assert list(record) == ["w"]
    assert record.object_id == ArrayRecord({"w": Array(np.zeros(2))}).object_id
    content = RecordDict()
    content.__dict__["_data"]["metrics"] = metrics
    assert content == RecordDict({"metrics": metrics})


@canary(
    "flwr",
    "flower/sizes.py: check_size, and inflation.py: measured",
    "flwr.supercore.inflatable.inflatable_object.get_object_body",
    "flwr.supercore.inflatable.inflatable_object.get_object_head_values_from_object_content",
    "flwr.superlink.grid.http_grid",
    "flwr.common.constant.ErrorCode",
    "flwr.common.serde_utils.metadata_from_proto",
    "flwr.proto.message_pb2.Message",
    "http_grid.inflate_object_from_contents",
)
def _the_objects_that_a_reply_is_stored_as():
    array = Array(np.zeros((2, 3), np.float32))
    (chunk,) = array.children
    kind, children, _ = get_object_head_values_from_object_content(array.deflate())
    assert (kind, children) == ("Array", [chunk])
    body = json.loads(get_object_body(array.deflate(), Array))
    assert body["arraychunk_ids"] == [0]
    assert (body["shape"], body["dtype"]) == ([2, 3], "float32")
    given = list(inspect.signature(http_grid.inflate_object_from_contents).parameters)
    assert given[:2] == ["object_id", "object_contents"]
    reply = number(Message(RecordDict(), 7, "train"), "id")
    body = ProtoMessage.FromString(get_object_body(reply.deflate(), Message))
    assert metadata_from_proto(body.metadata).dst_node_id == 7
    assert ErrorCode.MESSAGE_UNAVAILABLE


@canary(
    "flwr",
    "flower/uploads.py: Uploads",
    "flwr.supercore.inflatable.inflatable_utils.ObjectPullError",
    "flwr.supercore.inflatable.inflatable_utils.ObjectUnavailableError",
    "http_grid.pull_objects",
)
def _what_flowers_grid_does_while_a_reply_is_on_its_way():
    given = list(inspect.signature(http_grid.pull_objects).parameters)
    assert given[:2] == ["object_ids", "pull_object_fn"]
    source = inspect.getsource(http_grid.HttpGrid.pull_messages)
    assert "except ObjectPullError" in source
    assert "'the id'" in str(ObjectPullError("the id", "why"))
    assert not issubclass(ObjectUnavailableError, ObjectPullError)


@canary("flwr", "flower/lazy_arrays.py: LazyArray, and contents.py: Content", "__qualname__")
def _the_class_name_in_the_header():
    x = np.arange(3.0)

    class Renamed(Array):
        pass

    own = Array(x)
    renamed = Renamed(dtype=own.dtype, shape=own.shape, stype=own.stype, data=own.data)
    assert renamed.deflate() != own.deflate(), "the class name is in no header any more"
    assert LazyArray(x).deflate() == own.deflate()
    assert Array.inflate(LazyArray(x).deflate(), LazyArray(x).children).data == own.data
    assert Content({}).deflate() == RecordDict().deflate()
    assert set(vars(own)) >= {"dtype", "shape", "stype", "data"}, "fields are plain attributes"
    assert lazy_arrays._is_lazy()


@canary(
    "flwr",
    "flower/unencoded.py: unencoded",
    "ArrayRecord.from_torch_state_dict",
    "ArrayRecord.from_numpy_ndarrays",
)
def _the_ways_to_make_an_array_record():
    firsts = {"from_torch_state_dict": "state_dict", "from_numpy_ndarrays": "ndarrays"}
    for name, first in firsts.items():
        assert isinstance(vars(ArrayRecord)[name], classmethod)
        parameters = inspect.signature(getattr(ArrayRecord, name)).parameters
        assert list(parameters) == [first, "keep_input"]
        assert parameters["keep_input"].kind is inspect.Parameter.KEYWORD_ONLY
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ArrayRecord, name, staticmethod(_raise_as_asked))
            with pytest.raises(_AsAsked):
                ArrayRecord({"w": torch.zeros(1)} if first == "state_dict" else [np.zeros(1)])


class _AsAsked(Exception):
    pass


def _raise_as_asked(*_: Any, **__: Any) -> None:
    raise _AsAsked


@canary(
    "flwr",
    "flower/messages.py: identify",
    "flwr.supercore.task_identity.TaskIdentity",
    "TaskIdentity.task_id",
    "TaskIdentity.run_id",
    "TaskIdentity.node_id",
)
def _the_identity_of_a_process():
    from flwr.supercore.task_identity import TaskIdentity

    run_id = TaskIdentity.run_id
    identify(77)
    try:
        sent = Message(RecordDict(), 5, "train").metadata
        assert (sent.run_id, sent.src_node_id, sent.src_task_id) == (77, 1, 1)
    finally:
        identify(run_id)


@canary("flwr", "flower/messages.py: empty_run, check_run, copy_of", "flwr.supercore.run.Run")
def _a_run_of_a_grid():
    run = empty_run(3)
    assert run.run_id == 3
    assert (copy_of(run), copy_of(run) is run) == (run, False)
    assert "Run" in str(inspect.signature(Grid.set_run))


@canary("flwr", "flower/messages.py: message_with", "Message(metadata=)")
def _a_message_of_given_metadata():
    asked = Message(RecordDict(), 5, "train")
    content = RecordDict({"m": MetricRecord({"x": 1.0})})
    made = message_with(asked.metadata, content)
    assert (made.metadata, made.content) == (asked.metadata, content)


@canary("flwr", "flower/messages.py: number", "_message_id")
def _the_id_of_a_message():
    message = Message(RecordDict(), 5, "train")
    assert message.metadata.__dict__["_message_id"] == message.metadata.message_id
    assert number(message, "m-1").metadata.message_id == "m-1"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "m-1"


@canary("flwr", "flower/client_apps.py: has_mods", "_mods")
def _the_mods_of_an_app():
    def mod(message, context, call_next):
        return call_next(message, context)

    assert ClientApp(mods=[mod])._mods == [mod]
    assert ClientApp()._mods == []


@canary("flwr", "flower/client_apps.py: is_of_client_fn", "_call")
def _the_client_fn_of_an_app():
    assert ClientApp()._call is None
    assert ClientApp(client_fn=lambda context: None)._call is not None


@canary(
    "torch",
    "flower/profiler_marks.py: skip_idle_marks",
    "_profiler_enabled",
    "profiler.record_function",
)
def _the_marks_of_an_optimizer():
    assert torch.autograd._profiler_enabled() is False
    weight = torch.zeros(1, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler, "record_function", _raise_as_asked)
        with pytest.raises(_AsAsked):
            torch.optim.SGD([weight], lr=0.1).step()


@canary(
    "ray",
    "ray/private.py: without_idle_processes",
    "ray._private.node.Node",
    "Node.start_monitor",
    "Node.start_api_server",
    "Node.start_log_monitor",
    "_webui_url",
)
def _the_processes_that_a_node_starts():
    from ray._private.node import Node

    for name in ("start_monitor", "start_log_monitor"):
        assert list(inspect.signature(vars(Node)[name]).parameters) == ["self"]
    source = inspect.getsource(Node)
    assert "self.start_monitor()" in source
    assert "self.start_log_monitor()" in source
    assert "self.start_api_server(\n" in source
    inspect.signature(vars(Node)["start_api_server"]).bind(
        None, include_dashboard=False, raise_on_failure=False
    )
    assert "return self._webui_url" in source


@canary(
    "ray",
    "ray/private.py: print_plainly",
    "ray._private.ray_logging.global_worker_stdstream_dispatcher",
)
def _the_handler_that_prints_workers_lines():
    from ray._private import log_monitor, worker
    from ray._private.ray_logging import WorkerStandardStreamDispatcher

    source = inspect.getsource(worker)
    assert 'add_handler(\n                "ray_print_logs"' in source
    assert 'remove_handler("ray_print_logs")' in source
    lines = inspect.getsource(log_monitor)
    assert all(f'"{key}": ' in lines for key in ("pid", "is_err", "lines"))
    got = []
    dispatcher = WorkerStandardStreamDispatcher()
    dispatcher.add_handler("x", got.append)
    dispatcher.emit({"pid": 1})
    dispatcher.remove_handler("x")
    dispatcher.emit({"pid": 2})
    assert got == [{"pid": 1}]


@canary("ray", "ray/private.py: start", "_system_config", "RAY_worker_niceness")
def _settings_of_rays_own_programs():
    import ray

    assert 'kwargs.pop("_system_config"' in inspect.getsource(ray.init)
    program = Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server"
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        names = [*private._settings(), "worker_niceness"]
        assert [name for name in names if text.find(name.encode()) < 0] == []


@canary(
    "ray",
    "ray/private.py: write_note, read_note, wipe_note",
    "ray.experimental.internal_kv",
    "_internal_kv_put",
    "_internal_kv_get",
    "_internal_kv_del",
)
def _rays_store_of_small_values():
    from ray.experimental import internal_kv

    for name, arguments in (("put", (b"k", b"v")), ("get", (b"k",)), ("del", (b"k",))):
        inspect.signature(getattr(internal_kv, f"_internal_kv_{name}")).bind(*arguments)


@canary("ray", "ray/private.py: ready", "__ray_ready__")
def _the_call_that_says_an_actor_has_started():
    import ray.actor

    assert "def __ray_ready__(self)" in inspect.getsource(ray.actor)


def found() -> set[str]:
    """Every private name in the fence's source."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FENCE]
    return {name for tree in trees for name in private_names(tree)}


def test_every_private_name_of_the_fence_has_a_canary_and_no_other():
    assert found() == set(CANARIES)


@pytest.mark.parametrize("name", sorted(CANARIES))
def test_the_name_is_there_and_is_what_we_rely_on(name):
    package, function, check = CANARIES[name]
    if package == "ray" and not HAS_RAY:
        pytest.skip("Ray is not installed")
    try:
        check()
    except Exception as error:
        pytest.fail(
            f"{name} has changed in {package} {version(package)}. Look at "
            f"fedexp/simulation/{function}. ({type(error).__name__}: {error})"
        )


def _forget_answers():
    """Let what is found out once per process be found out anew."""
    is_plain.cache_clear()
    lazy_arrays._is_lazy.cache_clear()


@pytest.fixture
def fresh():
    _forget_answers()
    yield
    _forget_answers()


@pytest.fixture
def plain(fresh, monkeypatch):
    monkeypatch.setenv("FEDEXP_PLAIN", "1")


class _WithoutData(dict[str, Any]):
    """As a record of a release whose dict inside has another name."""


def test_without_the_dict_inside_items_go_through_the_front():
    target = _WithoutData()
    put(target, [("a", 1), ("b", 2)])
    assert target == {"a": 1, "b": 2}


def _other_bytes(_: LazyArray) -> bytes:
    return b""


def test_an_array_of_another_form_is_encoded_at_once(fresh, monkeypatch, logged):
    monkeypatch.setattr(LazyArray, "data", property(_other_bytes))
    record = record_of({"w": np.arange(3.0)})
    assert type(record["w"]) is Array
    np.testing.assert_array_equal(record["w"].numpy(), np.arange(3.0))
    record_of({"w": np.zeros(1)})
    assert logged == [
        "Flower's Array has changed (['data', 'object_id']): arrays are encoded at once."
    ]


def test_an_array_that_cannot_be_made_lazily_is_encoded_at_once(fresh, monkeypatch, logged):
    monkeypatch.setattr(LazyArray, "__init__", _raise_as_asked)
    assert type(record_of({"w": np.zeros(1)})["w"]) is Array
    assert logged == ["Flower's Array has changed (['_AsAsked']): arrays are encoded at once."]


def test_an_app_that_cannot_be_asked_counts_as_one_with_mods():
    app = ClientApp()
    assert not has_mods(app)
    del app._mods
    assert has_mods(app)
    assert not has_mods(object())


def test_an_app_that_does_not_tell_its_client_fn_is_taken():
    app = ClientApp()
    del app._call
    assert not is_of_client_fn(app)
    assert not is_of_client_fn(None)


def test_a_method_that_is_gone_is_not_put_there(monkeypatch):
    class Owner:
        def stays(self):
            return "theirs"

    with Patch(Owner, stays=lambda self: "ours", gone=lambda self: None):
        assert Owner().stays() == "ours"
        assert not hasattr(Owner, "gone")
    assert Owner().stays() == "theirs"
    assert not hasattr(Owner, "gone")


def test_threads_that_leave_a_patch_in_any_order_leave_the_original():
    class Owner:
        def method(self):
            return "theirs"

    patch = Patch(Owner, method=lambda self: "ours")
    first, second = patch.__enter__(), patch.__enter__()
    first.__exit__()
    second.__exit__()
    assert Owner().method() == "theirs"


def test_a_profiler_that_cannot_be_asked_keeps_its_marks(monkeypatch):
    before = profiler.record_function
    monkeypatch.setattr(profiler, "record_function", before)
    monkeypatch.delattr(torch.autograd, "_profiler_enabled")
    profiler_marks.skip_idle_marks()
    assert profiler.record_function is before


needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")


@needs_ray
def test_a_node_of_another_module_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray._private.node", ModuleType("ray._private.node"))
    with private.without_idle_processes(shows_log=False):
        pass


@needs_ray
def test_a_node_without_a_process_of_that_name_keeps_the_others_away(monkeypatch):
    from ray._private.node import Node

    monkeypatch.delattr(Node, "start_monitor")
    theirs = Node.start_log_monitor
    with private.without_idle_processes(shows_log=False):
        assert not hasattr(Node, "start_monitor")
        assert Node.start_log_monitor is not theirs
    with private.without_idle_processes(shows_log=True):
        assert Node.start_log_monitor is theirs


@needs_ray
def test_a_dispatcher_that_is_gone_lets_ray_print(monkeypatch):
    from ray._private import ray_logging

    monkeypatch.delattr(ray_logging, "global_worker_stdstream_dispatcher")
    private.print_plainly()


@needs_ray
@pytest.mark.parametrize("gone", ["names", "module"])
def test_a_board_that_is_gone_knows_nobody(monkeypatch, gone):
    from ray.experimental import internal_kv

    if gone == "module":
        monkeypatch.delattr("ray.experimental.internal_kv")
        monkeypatch.setitem(sys.modules, "ray.experimental.internal_kv", None)
    else:
        for name in ("put", "get", "del"):
            monkeypatch.delattr(internal_kv, f"_internal_kv_{name}")
    private.write_note(b"board", "3")
    assert private.read_note(b"board") is None
    private.wipe_note(b"board")


@needs_ray
def test_an_actor_that_cannot_be_asked_is_not_waited_for():
    assert private.ready(object()) is None


@needs_ray
def test_ray_that_takes_no_settings_starts_without_them(logged):
    done: list[object] = []

    def init(**options: Any) -> None:
        if "_system_config" in options:
            raise RuntimeError("Unknown keyword argument\nMore")
        done.append(options)

    private.start(init, lambda: done.append("shutdown"), shows_log=False, num_cpus=2)
    assert done == ["shutdown", {"num_cpus": 2}]
    assert logged == [
        "Ray does not start with fedexp's settings (Unknown keyword argument): it tries again."
    ]


@needs_ray
def test_ray_that_does_not_start_at_all_says_why():
    with pytest.raises(_AsAsked):
        private.start(_raise_as_asked, lambda: None, shows_log=False)


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), ("", False)])
def test_the_switch_is_a_variable_of_the_environment(fresh, monkeypatch, value, expected):
    monkeypatch.setenv("FEDEXP_PLAIN", value)
    assert is_plain() is expected


def test_with_the_switch_everything_is_flowers_and_torchs_own(plain, monkeypatch):
    record = record_of({"w": np.arange(3.0)})
    assert type(record["w"]) is Array
    assert type(content_of({"a": record})) is RecordDict
    assert Patch(ArrayRecord, from_numpy_ndarrays=None).methods == {}
    before = profiler.record_function
    monkeypatch.setattr(profiler, "record_function", before)
    profiler_marks.skip_idle_marks()
    assert profiler.record_function is before


@needs_ray
def test_with_the_switch_ray_starts_as_it_is(plain, monkeypatch):
    from ray._private import ray_logging

    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    private.prepare_environment()
    assert "RAY_worker_niceness" not in os.environ
    given: list[dict[str, Any]] = []
    private.start(lambda **options: given.append(options), _raise_as_asked, shows_log=True, a=1)
    assert given == [{"a": 1}]
    handlers = list(ray_logging.global_worker_stdstream_dispatcher.handlers)
    private.print_plainly()
    assert ray_logging.global_worker_stdstream_dispatcher.handlers == handlers
    assert cluster.keep_store_mapped() is None  # and asks no Ray


SCRIPT = """
import hashlib, json, random, sys
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.autograd import profiler

from fedexp.clients import Examples, client_app, module_arrays
from fedexp.hypergradients import SGD, Hypergradient
from fedexp.records import from_record, to_record
from fedexp.strategies import FedExP

rng = torch.Generator().manual_seed(0)
examples = Examples(torch.randn(40, 4, generator=rng), torch.arange(40) % 3)
ours = client_app(lambda context: nn.Linear(4, 3), lambda context: (examples, examples))
theirs = ClientApp()


@theirs.train()
def train(message, context):
    module = nn.Linear(4, 3)
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    # PyTorch marks its steps, and it does without PyTorch's compiler, a second to import.
    optimizer = Hypergradient(module.parameters(), SGD(0.1 * context.node_id))
    nn.functional.cross_entropy(module(examples.inputs), examples.targets).backward()
    optimizer.step()
    context.state["seen"] = arrays = ArrayRecord(module.state_dict())
    marks_are_torchs = profiler.record_function.__module__ == "torch.autograd.profiler"
    is_plain = type(arrays["weight"]) is Array and marks_are_torchs
    metrics = MetricRecord({"num-examples": 40, "is-plain": float(is_plain)})
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(content, reply_to=message)


def digest(grid, strategy):
    random.seed(0)  # by which Flower's FedAvg orders its nodes
    torch.manual_seed(0)
    first = to_record(module_arrays(nn.Linear(4, 3)))
    result = strategy.start(grid, first, num_rounds=2)
    arrays = from_record(result.arrays)
    digest = hashlib.sha256(b"".join(x.tobytes() for x in arrays.values())).hexdigest()
    return digest, result.train_metrics_clientapp[2].get("is-plain")


def digests(engine):
    config = {"local-steps": 2, "batch-size": 4}
    both = dict(fraction_train=0.5, fraction_evaluate=0.0)
    options = {"num_workers": 1} if engine == "RayGrid" else {}
    import fedexp.simulation

    Grid = getattr(fedexp.simulation, engine)
    with Grid(ours, 8, run_config=config, vectorize="auto", **options) as grid:
        first = digest(grid, FedExP(**both, seed=0))
        with Grid(theirs, 4, **options) as other:
            return first, digest(other, FedAvg(fraction_train=1.0, fraction_evaluate=0.0))
"""


@pytest.fixture(scope="module")
def expected() -> Any:
    """What both runs come to in this process, without the switch."""
    before = logging.getLogger("flwr").level
    logging.getLogger("flwr").setLevel(logging.ERROR)
    space: dict[str, Any] = {"__name__": "fence_script"}
    exec(compile(SCRIPT, "fence_script", "exec"), space)
    try:
        return space["digests"]("SerialGrid")
    finally:
        logging.getLogger("flwr").setLevel(before)


END = """
for engine in sys.argv[1:]:
    print(json.dumps(digests(engine)), flush=True)
"""
ENGINES = ["SerialGrid", *(["RayGrid"] if HAS_RAY else [])]


@pytest.fixture(scope="module")
def switched() -> dict[str, Any]:
    """What they come to with the switch, by engine: in one process, which takes long to start."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT + END, *ENGINES],
        env=os.environ | {"FEDEXP_PLAIN": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = done.stdout.splitlines()[-len(ENGINES) :]
    return dict(zip(ENGINES, map(json.loads, found), strict=True))


@pytest.mark.deploy
@pytest.mark.parametrize("engine", ENGINES)
def test_the_switch_changes_no_bit_of_a_result(engine, expected, switched):
    (ours, _), (theirs, is_plain) = switched[engine]
    assert (ours, theirs) == (expected[0][0], expected[1][0])
    assert (is_plain, expected[1][1]) == (1.0, 0.0)
