"""One faulty client of four: the round goes on, and it counts once as a failure or not at all."""

import io
import pickle
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from builders import Single, content, grid_of, merging_if, partition
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedexp.records import from_record, to_record
from fedexp.rounds import Round
from fedexp.runs.rows import row_of
from fedexp.simulation import SerialGrid
from fedexp.strategies import Adapted, Extension, FedAdam, FedAvg, FedExP, Scaffold

MODEL = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}
W, B = np.full((3, 2), 0.1, np.float32), np.full(2, 0.1, np.float32)


class Touching:
    """Leaves a file where its pickle is loaded."""

    path = ""

    def __reduce__(self):
        return open, (self.path, "w")


def record(**arrays):
    made = ArrayRecord()
    for name, x in arrays.items():
        made[name] = x if isinstance(x, Array) else Array(np.asarray(x))
    return made


def body(w=W, arrays=None, metrics=None, **others):
    arrays = record(w=w, b=B) if arrays is None else arrays
    values = {"num-examples": 10, "train-loss": 1.0, "control-step": 2.0}
    values = values if metrics is None else metrics
    return RecordDict({"arrays": arrays, "metrics": MetricRecord(values), **others})


def reports(**changes):
    values = {"num-examples": 10, "train-loss": 1.0, "control-step": 2.0}
    return body(metrics=values | {k.replace("_", "-"): x for k, x in changes.items()})


def encoded(x, version=None):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(x), version=version)
    return stream.getvalue()


def raw(data, dtype="float32", shape=(3, 2), stype="numpy.ndarray"):
    return body(Array(dtype=dtype, shape=shape, stype=stype, data=data))


def zipped(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return raw(stream.getvalue())


def header(shape, descr="<f4", version=1, data=b""):
    """An array whose header claims what it likes."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    padded = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    length = len(padded).to_bytes(2 if version == 1 else 4, "little")
    return raw(b"\x93NUMPY" + bytes([version, 0]) + length + padded + data)


def raising(error):
    def fault():
        raise error

    return fault


def recursing():
    return recursing()


def of_dtype(dtype):
    return lambda: body(np.ones((3, 2)).astype(dtype))


OBJECTS = np.array([[Touching(), 1], [2, 3], [4, 5]], object)
SUMS = {"count": 1, "weight": 1e12, "sq-norm": 1e20, "norm": 1e10, "num-clipped": 0}

LEFT_OUT = {
    "an exception": raising(ZeroDivisionError("1/0")),
    "an exit": raising(SystemExit(3)),
    "an interrupt": raising(KeyboardInterrupt()),
    "an end of a generator": raising(GeneratorExit()),
    "no memory": lambda: np.ones(10**15),
    "endless recursion": recursing,
    "no message": lambda: None,
    "nothing": RecordDict,
    "no arrays": lambda: body(arrays=ArrayRecord()),
    "no metrics": lambda: RecordDict({"arrays": record(w=W, b=B)}),
    "an array too few": lambda: body(arrays=record(w=W)),
    "an array too many": lambda: body(arrays=record(w=W, b=B, z=B)),
    "other names": lambda: body(arrays=record(x=W, b=B)),
    "two models": lambda: body(more=record(w=W)),
    "two metric records": lambda: body(more=MetricRecord({"a": 1})),
    "a merged reply": lambda: RecordDict(
        {
            "fedexp-sums": MetricRecord(SUMS),
            "update-sum": record(w=W * 1e15, b=B),
            "buffer-sum": ArrayRecord(),
            "metrics": ConfigRecord({"json": "[]"}),
        }
    ),
    "NaN": lambda: body(W * np.nan),
    "infinity": lambda: body(W * np.inf),
    "an overflow": lambda: body(np.full((3, 2), 1e200)),
    "another shape": lambda: body(W.T),
    "a flat array": lambda: body(W.ravel()),
    "a scalar": lambda: body(np.float32(1)),
    "an empty array": lambda: body(W[:0]),
    **{f"dtype {x}": of_dtype(x) for x in ("complex64", "S3", "U3", "M8[s]", "V4")},
    "a structured dtype": lambda: raw(encoded(np.zeros((3, 2), [("a", "f4")]))),
    "a torch tensor": lambda: raw(b"\0" * 12, dtype="bfloat16", stype="torch"),
    "Python objects": lambda: raw(encoded(OBJECTS)),
    "Python objects, version 2": lambda: raw(encoded(OBJECTS, (2, 0))),
    "a pickle": lambda: raw(pickle.dumps(Touching())),
    "a zip": lambda: zipped(w=W),
    "a zip of objects": lambda: zipped(w=OBJECTS),
    "a zip's first bytes": lambda: raw(b"PK\x03\x04" + b"\0" * 100),
    "an empty zip": lambda: raw(b"PK\x05\x06" + b"\0" * 18),
    "no bytes": lambda: raw(b""),
    "noise": lambda: raw(np.random.default_rng(0).bytes(200)),
    "a shape of 4 petabytes": lambda: header((10**15,)),
    "a shape of 16 gigabytes": lambda: header((4 * 10**9,), version=2),
    "a negative shape": lambda: header((-1, 2), data=b"\0" * 24),
    "many parentheses": lambda: header("(" * 4000 + ")" * 4000),
    "a long header": lambda: header("(3,2)" + " " * 60_000, data=b"\0" * 24),
    "a header of a gigabyte": lambda: raw(b"\x93NUMPY\x02\0" + (1 << 30).to_bytes(4, "little")),
    "a subarray dtype": lambda: header((3, 2), [("a", "<f4", (2,))], data=b"\0" * 48),
    "a dtype of no size": lambda: header((3, 2), "|S0"),
    "an object dtype": lambda: header((3, 2), "|O", data=b"A" * 48),
    "bytes too many": lambda: raw(encoded(W) + b"\0" * 4),
    "bytes too few": lambda: raw(encoded(W)[:-4]),
    "an unknown version": lambda: header((3, 2), version=9, data=b"\0" * 24),
    **{
        f"num-examples {n}": lambda n=n: reports(num_examples=n)
        for n in (0, -1, float("nan"), float("inf"), 1e15, 2**62, [1, 2], [])
    },
    "no num-examples": lambda: body(metrics={"train-loss": 1.0}),
    "empty metrics": lambda: body(metrics={}),
    "final-loss NaN": lambda: reports(final_loss=float("nan")),
    "final-loss list": lambda: reports(final_loss=[1.0]),
    "ten thousand metrics": cache(lambda: reports(**{f"k{i}": 1.0 for i in range(10_000)})),
}
STEPS = {
    "no control-step": lambda: body(metrics={"num-examples": 10, "train-loss": 1.0}),
    **{
        f"control-step {x}": lambda x=x: reports(control_step=x)
        for x in (7.0, 1, -2.0, 0.0, [2.0], [], float("nan"), float("inf"))
    },
}
COUNTED = {
    **{f"dtype {x}": of_dtype(x) for x in ("f2", "f8", ">f4", "g", "i1", "i8", "u1", "?")},
    "another stype": lambda: raw(encoded(W), stype="unknown"),
    "another dtype and shape beside it": lambda: raw(encoded(W), "int8", (100,)),
    "a record more": lambda: body(**{"fedexp-sums": ConfigRecord({"a": 1})}),
    "buffers that are no names": lambda: body(**{"fedexp-buffers": ConfigRecord({"names": 3})}),
    "a train-loss list": lambda: reports(train_loss=[1.0, 2.0]),
    "a train-loss NaN": lambda: reports(train_loss=float("nan")),
    "a metric of its own": lambda: reports(auc=0.5),
    "names of the server's": lambda: reports(server_step_size=7.0, round=99, failed=1),
    **{
        f"a learning rate of {x}": lambda x=x: reports(learning_rate=x)
        for x in ([1.0], -1.0, float("nan"))
    },
}


class Network(Single):
    """Every reply goes through bytes, alone."""

    def __init__(self, *args, **kwargs):
        super().__init__(SerialGrid(*args, **kwargs))

    def pull_messages(self, message_ids):
        replies = self.grid.pull_messages(message_ids)
        for reply in replies:
            if not reply.has_error():
                reply.content = recorddict_from_proto(recorddict_to_proto(reply.content))
        return replies


def app_of(fault, bad):
    app = ClientApp()

    @app.train()
    def train(message, context):
        p = partition(context)
        if p == bad:
            answer = fault()
            return answer if answer is None else Message(answer, reply_to=message)
        now = from_record(message.content["arrays"])
        own = {"num-examples": 10 + p, "train-loss": 1.0, "control-step": 2.0, "learning-rate": 0.1}
        content = body(arrays=to_record({k: x + np.float32(0.1 * (p + 1)) for k, x in now.items()}))
        content["metrics"] = MetricRecord(own)
        return Message(content, reply_to=message)

    return app


# What a reply has to hold depends on the strategy only where it is merged, and for Scaffold.
# There FedAvg and FedAdam ask for the same, and FedAdam's state would keep what a fault brings.
PATHS = {
    "merged": (SerialGrid, {}, (FedExP, Scaffold, FedAdam)),
    "dropping": (SerialGrid, {"drop_beyond": 1e3}, (FedExP, Scaffold)),
    "network": (Network, {}, (FedExP, Scaffold)),
}


def outcomes(path, fault, tmp_path):
    """Strategy and metrics of each of two rounds; the faulty client comes first or in between."""
    Touching.path = str(tmp_path / "touched")
    grid, kwargs, strategies = PATHS[path]
    for make in strategies:
        strategy = make(fraction_evaluate=0.0, seed=0, **kwargs)
        app = app_of(fault, bad=2 if make is FedExP else 0)
        result = strategy.start(grid(app, 4), to_record(MODEL), num_rounds=2)
        assert not list(tmp_path.iterdir())
        assert all(np.isfinite(x).all() for x in from_record(result.arrays).values())
        assert len(result.train_metrics_clientapp) == 2
        for metrics in result.train_metrics_clientapp.values():
            yield make, metrics, (metrics["num-clients"], metrics["num-failures"])


every_path = pytest.mark.parametrize("path", PATHS)


@every_path
@pytest.mark.parametrize("fault", LEFT_OUT)
def test_a_reply_of_no_use_is_one_failure(fault, path, tmp_path):
    for _, metrics, counts in outcomes(path, LEFT_OUT[fault], tmp_path):
        assert counts == (3, 1)
        assert metrics["train-loss"] == pytest.approx(1.0)


@every_path
@pytest.mark.parametrize("fault", STEPS)
def test_so_is_one_whose_step_does_not_go_with_the_others(fault, path, tmp_path):
    for make, _, counts in outcomes(path, STEPS[fault], tmp_path):
        assert counts == ((3, 1) if make is Scaffold else (4, 0))


@every_path
@pytest.mark.parametrize("fault", COUNTED)
def test_an_odd_but_usable_reply_harms_nobody(fault, path, tmp_path):
    for _, metrics, counts in outcomes(path, COUNTED[fault], tmp_path):
        assert counts == (4, 0)
        assert metrics["train-loss"] == pytest.approx(1.0)
        assert metrics["server-step-size"] != 7.0
        assert metrics.get("learning-rate-std", 0.0) < 1e-12


LONG = {
    **{key: reports(**{key: 10**400}) for key in ("final_loss", "control_step", "train_loss")},
    **{f"{key} as text": reports(**{key: 10**5000}) for key in ("num_examples", "train_loss")},
    "in a list": reports(train_loss=[1, -(2**63) - 1]),
}


@pytest.mark.parametrize("path", ["merged", "dropping"])
@pytest.mark.parametrize("content", LONG.values(), ids=LONG)
def test_an_integer_that_no_network_would_bring_is_one_failure(content, path, tmp_path):
    for _, metrics, counts in outcomes(path, lambda: content, tmp_path):
        assert counts == (3, 1)
        assert metrics["train-loss"] == pytest.approx(1.0)


@pytest.mark.parametrize("grid", [SerialGrid, Network])
@pytest.mark.parametrize("size", [1e155, 1e200])
def test_an_update_whose_square_overflows_float64_is_one_failure(size, grid):
    model = {"w": np.zeros((3, 2)), "b": np.zeros(2)}
    app = app_of(lambda: body(np.full((3, 2), size)), bad=2)
    result = FedExP(fraction_evaluate=0.0).start(grid(app, 4), to_record(model), num_rounds=1)
    metrics = result.train_metrics_clientapp[1]
    assert (metrics["num-clients"], metrics["num-failures"]) == (3, 1)
    assert np.abs(result.arrays["w"].numpy()).max() < 1


def test_no_metric_of_a_client_changes_what_the_line_of_a_round_says_of_the_round():
    forged = MetricRecord({"round": 99, "failed": 1, "round-seconds": -1.0, "train-loss": 0.5})
    row = row_of(Round(3, ArrayRecord(), False, forged, forged, MetricRecord(), 2.0))
    expected = {"round": 3, "failed": False, "round-seconds": 2.0, "train-loss": 0.5}
    assert {key: row[key] for key in expected} == expected


@pytest.mark.parametrize("merges", [True, False])
def test_a_metric_whose_name_is_no_text_is_one_failure(merges):
    def train(message, context):
        reply = content({"w": np.ones(2)})
        if partition(context) == 0:
            reply["metrics"].__dict__["_data"][5] = 1  # past Flower's own check
        return reply

    grid = merging_if(merges, grid_of(3, train))
    result = FedAvg(fraction_evaluate=0.0).start(grid, to_record({"w": np.zeros(2)}), num_rounds=1)
    metrics = result.train_metrics_clientapp[1]
    assert (metrics["num-clients"], metrics["num-failures"]) == (2, 1)


@pytest.mark.parametrize("step", [5e-324, 1e300, -1.0, float("nan")])
def test_a_false_control_step_does_not_stay_in_the_server(step):
    def train(message, context):
        lies = partition(context) == 0 and message.content["config"]["server-round"] == 2
        return content({"w": np.ones(2)}, control_step=step if lies else 0.1)

    strategy = Scaffold(fraction_evaluate=0.0)
    result = strategy.start(grid_of(2, train), to_record({"w": np.zeros(2)}), num_rounds=4)
    counts = [m["num-clients"] for m in result.train_metrics_clientapp.values()]
    assert counts == [2, 1, 2, 2]
    assert np.isfinite(strategy.state["control-variate"]["w"]).all()


def test_a_step_whose_memory_is_not_finite_is_not_taken():
    @dataclass(frozen=True)
    class Overflows(Extension):
        def aggregate(self, received, stats, state):
            huge = np.array([np.inf if received.round.server_round == 2 else 1.0])
            return Adapted(stats, {"own": {"x": huge}})

    strategy = FedAvg(fraction_evaluate=0.0, extensions=[Overflows()])
    grid = grid_of(2, lambda message, context: content({"w": np.ones(2)}))
    result = strategy.start(grid, to_record({"w": np.zeros(2)}), num_rounds=3)
    assert [m["num-clients"] for m in result.train_metrics_clientapp.values()] == [2, 0, 2]
    assert strategy.state["own"]["x"].tolist() == [1.0]


def test_a_client_that_writes_to_the_arrays_it_got_writes_to_its_own():
    model, seen = ArrayRecord({"w": Array(np.zeros(3))}), []

    def train(message, context):
        array = message.content["arrays"]["w"]
        seen.append(array.numpy().tolist())
        array.data = b"xx"
        return content({"w": np.ones(3)})

    FedAvg(fraction_evaluate=0.0).start(merging_if(False, grid_of(3, train)), model, num_rounds=1)
    assert seen == [[0.0] * 3] * 3
    assert model["w"].numpy().tolist() == [0.0] * 3
