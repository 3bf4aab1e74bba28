import numpy as np
import pytest
import torch
from builders import record
from flwr.app import ConfigRecord, Message, RecordDict
from torch import nn

from fedexp.clients import ClientSettings, Examples, client_app, load_arrays, module_arrays, sgd
from fedexp.simulation import SerialGrid

torch.set_num_threads(1)


def model(context=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 3))


def data(context):
    rng = np.random.default_rng(int(context.node_config["partition-id"]))
    x = torch.from_numpy(rng.normal(size=(30, 4)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 3, 30))
    return Examples(x, y, torch.arange(20)), Examples(x, y, torch.arange(20, 30))


RUN = {"local-steps": 3, "batch-size": 8, "learning-rate": 0.1, "seed": 5}


def ask(app, kind="train", num_nodes=2, run_config=RUN, nodes=None, **config):
    """Replies of nodes in order; config keys with underscores for hyphens."""
    values = {"server-round": 1} | {k.replace("_", "-"): v for k, v in config.items()}
    body = RecordDict(
        {"arrays": record(module_arrays(model())), "config": ConfigRecord(values)}
        if kind != "query"
        else {}
    )
    grid = SerialGrid(app, num_nodes, run_config=run_config)
    return list(
        grid.send_and_receive([Message(body, n, kind) for n in nodes or grid.get_node_ids()])
    )


def trained(reply):
    return {k: x.numpy() for k, x in reply.content["arrays"].items()}


def assert_same(a, b):
    assert list(a) == list(b)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_client_replies_all_arrays_and_its_metrics():
    (reply, _) = ask(client_app(model, data))
    got, start = trained(reply), module_arrays(model())
    assert list(got) == list(start)
    assert [x.dtype for x in got.values()] == [x.dtype for x in start.values()]
    assert got["1.num_batches_tracked"] == 3
    metrics = reply.content["metrics"]
    assert metrics["num-examples"] == 20
    assert metrics["learning-rate"] == pytest.approx(0.1)
    assert 0 < metrics["train-loss"] < 10


def test_a_message_overrides_the_run_config():
    (reply, _) = ask(client_app(model, data), learning_rate=0.25, local_steps=5)
    assert reply.content["metrics"]["learning-rate"] == 0.25
    assert trained(reply)["1.num_batches_tracked"] == 5


def test_a_client_is_a_function_of_message_partition_seed_and_round():
    replies = ask(client_app(model, data))
    again = ask(client_app(model, data))
    backwards = ask(client_app(model, data), nodes=[3, 2])
    for p in (0, 1):
        assert_same(trained(replies[p]), trained(again[p]))
        assert_same(trained(replies[p]), trained(backwards[1 - p]))
    changed = [
        ask(client_app(model, data), server_round=2)[0],
        ask(client_app(model, data), run_config=RUN | {"seed": 6})[0],
        replies[1],
    ]
    for reply in changed:
        assert not np.array_equal(trained(reply)["0.weight"], trained(replies[0])["0.weight"])


def test_torchs_global_generator_is_left_alone_and_not_listened_to():
    first = trained(ask(client_app(model, data))[0])
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    second = trained(ask(client_app(model, data))[0])
    assert torch.equal(before, torch.random.get_rng_state())
    assert_same(first, second)


def test_a_reply_is_not_touched_by_the_next_client():
    app = client_app(model, data)
    first, _ = ask(app)
    before = {k: x.copy() for k, x in trained(first).items()}
    ask(app)
    assert_same(before, trained(first))


def test_evaluation_is_on_the_test_examples_and_moves_nothing():
    replies = ask(client_app(model, data), "evaluate")
    metrics = replies[0].content["metrics"]
    assert metrics["num-examples"] == 10
    assert set(metrics) == {"num-examples", "eval-loss", "eval-accuracy"}
    assert dict(metrics) == dict(ask(client_app(model, data), "evaluate")[0].content["metrics"])


def test_a_query_answers_the_partition():
    metrics = [r.content["metrics"] for r in ask(client_app(model, data), "query", num_nodes=3)]
    assert [m["partition-id"] for m in metrics] == [0, 1, 2]
    assert {m["num-partitions"] for m in metrics} == {3}


def test_a_loss_that_blows_up_is_an_error_reply_with_a_remedy():
    (reply, _) = ask(client_app(model, data), learning_rate=1e30, local_steps=9)
    assert reply.has_error()
    assert "learning-rate 1e+30" in reply.error.reason


def test_the_optimizer_and_the_loss_are_the_callers():
    seen = []

    def optimizer(params, settings):
        seen.append(settings)
        return torch.optim.Adam(params, lr=settings.lr)

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.5)

    own = ask(client_app(model, data, optimizer, loss))[0]
    assert seen[0] == ClientSettings(3, 8, 0.1)
    plain = ask(client_app(model, data, sgd))[0]
    assert not np.array_equal(trained(own)["0.weight"], trained(plain)["0.weight"])


def test_a_model_is_built_once_per_run_config():
    built = []

    def counted(context):
        built.append(dict(context.run_config))
        return model()

    app = client_app(counted, data)
    ask(app)
    ask(app)
    ask(app, run_config=RUN | {"seed": 6})
    assert len(built) == 2


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 3, bias=False)
        self.decode = nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("scratch", torch.ones(2), persistent=False)


def test_a_tied_weight_travels_once_and_scratch_buffers_stay_at_home():
    assert list(module_arrays(Tied())) == ["encode.weight", "kept"]


def test_a_loaded_tied_weight_stays_tied():
    tied = Tied()
    load_arrays(tied, {"encode.weight": np.full((3, 3), 2.0), "kept": np.zeros(2)})
    assert tied.decode.weight is tied.encode.weight
    assert tied.decode.weight.dtype == torch.float32
    assert float(tied.decode.weight.detach().sum()) == 18


def test_loaded_arrays_are_copies_even_of_read_only_memory():
    module, arrays = nn.Linear(2, 1, bias=False), {"weight": np.ones((1, 2), np.float32)}
    arrays["weight"].flags.writeable = False
    load_arrays(module, arrays)
    with torch.no_grad():
        module.weight += 1
    assert arrays["weight"].tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"bias": np.ones(1)}, "do not fit"),
        ({"weight": np.ones((2, 1))}, r"'weight' has shape \(2, 1\), the module's is \(1, 2\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        load_arrays(nn.Linear(2, 1, bias=False), arrays)


def odd(what):
    """Data of which partition 1 is odd."""

    def data_of(context):
        examples, test = data(context)
        if int(context.node_config["partition-id"]) != 1:
            return examples, test
        inputs = examples.inputs.clone()
        inputs[7] = float("nan")
        rows = examples.rows[:0] if what == "empty" else examples.rows
        return Examples(inputs, examples.targets, rows), Examples(inputs, test.targets, rows)

    return data_of


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_client_without_examples_fails_alone_and_says_so(kind):
    first, second, third = ask(client_app(model, odd("empty")), kind, num_nodes=3)
    assert not first.has_error()
    assert not third.has_error()
    assert "no training examples" in second.error.reason or "no examples" in second.error.reason


def test_the_reason_of_a_loss_that_is_nan_is_the_true_one():
    app = client_app(lambda context: nn.Sequential(nn.Linear(4, 3)), odd("nan"))
    body = {"arrays": record(module_arrays(nn.Sequential(nn.Linear(4, 3))))}
    grid = SerialGrid(app, 2, run_config=RUN | {"local-steps": 9})
    content = RecordDict(body | {"config": ConfigRecord({"server-round": 1})})
    good, bad = grid.send_and_receive([Message(content, n, "train") for n in (2, 3)])
    assert not good.has_error()
    assert "1 of its 20 rows hold NaN or infinity" in bad.error.reason
    assert "smaller" not in bad.error.reason
