"""Drop-in for Flower's FedAvg: the same calls, arrays and metrics."""

import inspect
import weakref

import numpy as np
import pytest
import torch
from builders import content, grid_of, partition, record, reply
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedexp.records import from_record
from fedexp.strategies import Constant, FedAvg, FedExP, FedOpt, ServerOptimizer

STRATEGIES = [FedOpt, FedAvg, FedExP]
MODEL = {
    "weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "temperature": np.asarray(0.7),
    "half": np.float16([1, 2, 3]),
    "bn.running_mean": np.zeros(3, np.float32),
    "bn.running_var": np.ones(3, np.float32),
    "bn.num_batches_tracked": np.asarray(0),
}


def start(strategy, grid, model=None, num_rounds=2, **kwargs):
    return strategy.start(grid, record(model or MODEL), num_rounds=num_rounds, **kwargs)


def train(message, context):
    """Move towards the client's own point; report a loss."""
    (sent,) = message.content.array_records.values()
    rng = np.random.default_rng(partition(context))
    arrays = {
        name: np.asarray(0.5 * x + rng.random(x.shape)).astype(x.dtype)
        for name, x in from_record(sent).items()
    }
    p = partition(context)
    return content(arrays, num_examples=10 + 7 * p, loss=float(p), many=[1.0 * p, 2.0])


def score(message, context):
    body = content({}, num_examples=1 + partition(context), accuracy=partition(context) / 4)
    del body["arrays"]
    return body


def arrays_of(result):
    return {name: x.numpy() for name, x in result.arrays.items()}


# --- the constructor ------------------------------------------------------------------------


def parameters():
    return list(inspect.signature(FlowerFedAvg.__init__).parameters.values())[1:]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_defaults_are_flowers(strategy):
    ours, theirs = strategy(), FlowerFedAvg()
    assert {name: getattr(ours, name) for name in vars(theirs)} == vars(theirs)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_argument_of_flowers_is_taken_in_its_place_and_by_its_name(strategy):
    names = [p.name for p in parameters()]
    values = [0.5, 0.25, 3, 4, 5, "tokens", "model", "settings", max, min]
    expected = vars(FlowerFedAvg(*values))
    for ours in (strategy(*values), strategy(**dict(zip(names, values, strict=True)))):
        assert {name: getattr(ours, name) for name in expected} == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_unknown_argument_is_refused(strategy):
    with pytest.raises(TypeError, match="fraction_fit"):
        strategy(fraction_fit=0.5)


def test_start_takes_flowers_arguments_in_their_place_and_by_their_name():
    names = list(inspect.signature(FlowerFedAvg.start).parameters)[1:]
    values = [grid_of(2, train), record(MODEL), 1, 60.0, ConfigRecord(), ConfigRecord(), None]
    strategy = FedExP(fraction_evaluate=0.0)
    by_place = strategy.start(*values)
    by_name = strategy.start(**dict(zip(names, values, strict=True)))
    assert arrays_of(by_place).keys() == arrays_of(by_name).keys()


# --- the same as Flower's FedAvg ---------------------------------------------------------------


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_fedavg_equals_flowers_on_the_same_replies(num_rounds):
    floats = {name: x for name, x in MODEL.items() if name != "bn.num_batches_tracked"}
    results = [
        start(strategy(), grid_of(5, train, score), floats, num_rounds)
        for strategy in (FedAvg, FedOpt, FlowerFedAvg)
    ]
    theirs = arrays_of(results[-1])
    for result in results[:-1]:
        ours = arrays_of(result)
        assert list(ours) == list(theirs)
        for name, x in theirs.items():
            tolerance = 1e-3 if x.dtype == np.float16 else 1e-6
            np.testing.assert_allclose(ours[name], x, rtol=tolerance, atol=tolerance)
            assert (ours[name].dtype, ours[name].shape) == (x.dtype, x.shape)
        for kind in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
            for server_round, metrics in getattr(results[-1], kind).items():
                got = getattr(result, kind)[server_round]
                for key, value in metrics.items():
                    assert got[key] == pytest.approx(value)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_names_order_shapes_and_dtypes_are_kept_integers_too(strategy):
    got = arrays_of(start(strategy(), grid_of(3, train)))
    assert list(got) == list(MODEL)
    for name, x in MODEL.items():
        assert (got[name].dtype, got[name].shape) == (x.dtype, x.shape)


def test_own_record_keys_are_used_both_ways():
    seen = []

    def own(message, context):
        seen.append((sorted(message.content.array_records), message.content["settings"]["lr"]))
        p = partition(context)
        metrics = MetricRecord({"tokens": 1 + 2 * p, "loss": 1.0})
        return RecordDict({"mine": record({"w": np.full(2, float(p))}), "report": metrics})

    def mean_loss(contents, key):
        assert key == "tokens"
        return MetricRecord({"total": sum(c["report"]["loss"] for c in contents)})

    strategy = FedAvg(
        weighted_by_key="tokens",
        arrayrecord_key="model",
        configrecord_key="settings",
        train_metrics_aggr_fn=mean_loss,
        fraction_evaluate=0.0,
    )
    result = start(
        strategy, grid_of(2, own), {"w": np.zeros(2)}, 1, train_config=ConfigRecord({"lr": 0.5})
    )
    assert seen == [(["model"], 0.5)] * 2
    np.testing.assert_allclose(arrays_of(result)["w"], 3 / 4)  # weights 1 and 3
    assert result.train_metrics_clientapp[1]["total"] == 2.0


def test_clients_count_equally_if_asked():
    strategy = FedAvg(weighted=False, fraction_evaluate=0.0)
    grid = grid_of(
        2,
        lambda m, c: content({"w": np.full(1, 1.0 * partition(c))}, num_examples=1 + partition(c)),
    )
    assert arrays_of(start(strategy, grid, {"w": np.zeros(1)}, 1))["w"] == pytest.approx(0.5)


def test_the_server_round_is_in_every_message():
    seen = []

    def own(message, context):
        seen.append(message.content["config"]["server-round"])
        return train(message, context)

    start(FedExP(fraction_evaluate=0.0), grid_of(2, own), num_rounds=3)
    assert seen == [1, 1, 2, 2, 3, 3]


# --- metrics and log lines ------------------------------------------------------------------


def unit_vectors(message, context):
    return content({"w": np.eye(4)[partition(context)]}, num_examples=5)


def test_the_metrics_of_a_round_are_those_of_the_formula():
    result = start(FedExP(epsilon=0.0), grid_of(4, unit_vectors), {"w": np.zeros(4)}, 1)
    metrics = result.train_metrics_clientapp[1]
    assert metrics["server-step-size"] == pytest.approx(2)
    assert metrics["update-norm"] == pytest.approx(0.5)
    assert metrics["mean-update-norm"] == pytest.approx(1)
    assert (metrics["num-clients"], metrics["num-failures"]) == (4, 0)
    np.testing.assert_allclose(arrays_of(result)["w"], 2 * 0.25)


def test_a_server_learning_rate_and_a_cap_are_heeded():
    grid = grid_of(4, unit_vectors)
    for strategy, eta in (
        (FedAvg(server_learning_rate=0.5), 0.5),
        (FedExP(max_step_size=1.5), 1.5),
    ):
        result = start(strategy, grid, {"w": np.zeros(4)}, 1)
        np.testing.assert_allclose(arrays_of(result)["w"], eta * 0.25)


def test_the_summary_names_the_rule_and_flowers_settings(logged):
    FedExP(0.5, epsilon=0.25, max_step_size=3.0).summary()
    text = "\n".join(logged)
    for part in (
        "FedExP",
        "Identity",
        "epsilon=0.25",
        "max_step_size=3.0",
        "Fraction: train (0.50)",
    ):
        assert part in text


# --- life with existing apps -----------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_second_start_is_like_the_first(strategy):
    own = {"epsilon": 0.1, "epsilon_decay": 0.5} if strategy is FedExP else {}
    twice = strategy(fraction_evaluate=0.0, seed=1, **own)
    results = [start(twice, grid_of(3, train), num_rounds=3) for _ in range(2)]
    assert results[0].train_metrics_clientapp == results[1].train_metrics_clientapp
    for a, b in zip(*(arrays_of(r).values() for r in results), strict=True):
        np.testing.assert_array_equal(a, b)


class Watching(FedExP):
    """As an existing app writes it: every method overridden, every one calls super()."""

    def __init__(self, note, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.note, self.losses = note, []

    def configure_train(self, server_round, arrays, config, grid):
        config["lr"] = 0.1 / server_round
        messages = super().configure_train(server_round, arrays, config, grid)
        assert isinstance(messages, list)
        return messages

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.losses.append([r.content["metrics"]["loss"] for r in replies if r.has_content()])
        arrays, metrics = super().aggregate_train(server_round, replies)
        metrics["note"] = self.note
        return arrays, metrics

    def configure_evaluate(self, server_round, arrays, config, grid):
        return super().configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round, replies):
        return super().aggregate_evaluate(server_round, list(replies))

    def summary(self):
        super().summary()


def test_a_subclass_that_looks_at_single_replies_gets_them():
    strategy = Watching(7, 1.0, epsilon=0.0)
    watched = start(strategy, grid_of(3, train, score))
    plain = start(FedExP(epsilon=0.0), grid_of(3, train, score))
    assert [sorted(losses) for losses in strategy.losses] == [[0.0, 1.0, 2.0]] * 2
    assert watched.train_metrics_clientapp[2]["note"] == 7
    for server_round, metrics in plain.evaluate_metrics_clientapp.items():
        assert watched.evaluate_metrics_clientapp[server_round] == pytest.approx(dict(metrics))
    for name, x in arrays_of(plain).items():
        np.testing.assert_allclose(arrays_of(watched)[name], x, rtol=1e-3)


def test_a_strategy_without_training_says_nothing_and_keeps_the_model(logged):
    result = start(FedExP(fraction_train=0.0, fraction_evaluate=0.0), grid_of(2, train))
    assert result.train_metrics_clientapp == {}
    assert not [line for line in logged if "no usable reply" in line]


def test_replies_are_read_once_and_one_is_alive_at_a_time():
    strategy, alive, most = prepared(FedExP()), weakref.WeakSet(), []

    def replies():
        for p in range(5):
            message = reply(content({"w": np.full(3, p + 1.0)}), node=p + 2)
            alive.add(message)
            most.append(len(alive))
            yield message
            del message

    strategy.aggregate_train(1, replies())
    assert most == [1] * 5


# --- bad replies ------------------------------------------------------------------------------


def prepared(strategy, model=None):
    """A strategy that has broadcast ``model``."""
    model = model or {"w": np.zeros(3)}
    strategy.configure_train(1, record(model), ConfigRecord(), grid_of(2, train))
    return strategy


def error(node):
    return Message(Error(2, "out of memory"), reply_to=Message(RecordDict(), node, "train"))


GOOD = {"w": np.ones(3)}
BAD = {
    "NaN": (content({"w": np.float64([0, np.nan, 0])}), "NaN or infinity"),
    "infinity": (content({"w": np.float64([0, np.inf, 0])}), "NaN or infinity"),
    "shape": (content({"w": np.ones(4)}), "has shape"),
    "keys": (content({"v": np.ones(3)}), "array names differ"),
    "zero weight": (content(GOOD, num_examples=0), "num-examples is 0"),
    "negative weight": (content(GOOD, num_examples=-1), "num-examples is -1"),
    "NaN weight": (content(GOOD, num_examples=float("nan")), "num-examples is nan"),
    "no weight": (RecordDict({"a": record(GOOD), "m": MetricRecord()}), "num-examples is None"),
    "nothing": (RecordDict(), "0 records"),
    "forged sums": (
        RecordDict({"fedexp-sums": MetricRecord({"count": 9, "weight": 1.0})}),
        "0 records",
    ),
}


@pytest.mark.parametrize("strategy", [FedAvg, FedExP])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_left_out_with_a_line_naming_its_node(strategy, kind, logged):
    body, reason = BAD[kind]
    with_bad = [reply(content(GOOD), 2), reply(body, 17), reply(content({"w": 3 * GOOD["w"]}), 3)]
    arrays, metrics = prepared(strategy()).aggregate_train(1, iter(with_bad))
    without = [with_bad[0], with_bad[2]]
    expected, _ = prepared(strategy()).aggregate_train(1, iter(without))
    np.testing.assert_array_equal(arrays["w"].numpy(), expected["w"].numpy())
    assert (metrics["num-clients"], metrics["num-failures"]) == (2, 1)
    assert any("node 17" in line and reason in line for line in logged)


def test_an_error_reply_is_left_out_with_its_node_and_reason(logged):
    strategy = prepared(FedExP())
    _, metrics = strategy.aggregate_train(1, [error(9), reply(content(GOOD))])
    assert (metrics["num-clients"], metrics["num-failures"]) == (1, 1)
    assert any("node 9" in line and "out of memory" in line for line in logged)


@pytest.mark.parametrize(
    "replies",
    [[], [error(2)], [reply(body, 3) for body, _ in BAD.values()]],
    ids=["silent", "error", "bad"],
)
def test_a_round_without_a_usable_reply_is_recorded_as_failed(replies, logged):
    strategy = prepared(FedExP())
    arrays, metrics = strategy.aggregate_train(1, iter(replies))
    assert arrays is None
    assert (metrics["num-clients"], metrics["num-failures"]) == (0, len(replies))
    assert any("no usable reply" in line for line in logged)


def test_a_failed_round_leaves_the_model_and_the_next_goes_on():
    def flaky(message, context):
        if message.content["config"]["server-round"] == 2:
            raise RuntimeError("lost")
        return content({"w": from_record(message.content["arrays"])["w"] + 1})

    seen = []
    start(
        FedAvg(fraction_evaluate=0.0),
        grid_of(2, flaky),
        {"w": np.zeros(1)},
        3,
        evaluate_fn=lambda _, arrays: seen.append(float(arrays["w"].numpy()[0])),
    )
    assert seen == [0, 1, 1, 2]


def test_a_bad_client_in_a_real_round_is_left_out_and_named(logged):
    def one_bad(message, context):
        p = partition(context)
        if p == 1:
            raise RuntimeError("no battery")
        return content({"w": np.full(2, np.nan if p == 2 else 1.0)})

    result = start(FedAvg(fraction_evaluate=0.0), grid_of(4, one_bad), {"w": np.zeros(2)}, 1)
    np.testing.assert_array_equal(arrays_of(result)["w"], 1)
    assert result.train_metrics_clientapp[1]["num-failures"] == 2
    assert any("node 3" in line and "no battery" in line for line in logged)
    assert any("node 4" in line and "NaN" in line for line in logged)


def test_each_metric_is_the_mean_over_the_clients_that_report_it_soundly(logged):
    replies = [
        reply(content(GOOD, loss=float("nan"), auc=0.5, many=[7.0]), 4),
        reply(content(GOOD, loss=1.0, many=[1.0, 2.0]), 2),
        reply(content(GOOD, loss=3.0, many=[float("inf"), 2.0]), 3),
        reply(content(GOOD, loss=3.0, num_examples=2, many=[4.0, 2.0]), 5),
    ]
    _, metrics = prepared(FedAvg()).aggregate_train(1, replies)
    assert metrics["num-clients"] == 4
    assert metrics["loss"] == pytest.approx((1 + 3 + 2 * 3) / 4)
    assert metrics["many"] == pytest.approx([(1 + 2 * 4) / 3, 2])
    assert metrics["auc"] == 0.5
    named = {
        (key, i)
        for key in ("loss", "many", "auc")
        for i in range(9)
        for line in logged
        if f"Metric '{key}' of node {i} " in line
    }
    assert named == {("loss", 4), ("many", 4), ("many", 3)}


def test_bad_evaluate_replies_are_left_out(logged):
    def scored(**metrics):
        body = content({}, **metrics)
        del body["arrays"]
        return body

    replies = [
        error(5),
        reply(scored(num_examples=0, accuracy=1.0), 6),
        reply(scored(accuracy=0.5)),
    ]
    metrics = prepared(FedAvg()).aggregate_evaluate(1, iter(replies))
    assert dict(metrics) == {"accuracy": 0.5}
    assert {5, 6} == {node for node in range(9) for line in logged if f"node {node} " in line}


# --- what is not trainable ------------------------------------------------------------------


def test_buffers_are_averaged_and_never_extrapolated():
    """A step of 2 on ``running_var`` 1 → 0.25 would make it negative."""

    def shrink(message, context):
        arrays = {
            "w": np.eye(4, dtype=np.float32)[partition(context)],
            "bn.running_var": np.full(3, 0.25, np.float32),
            "bn.num_batches_tracked": np.asarray(20 + partition(context)),
        }
        return content(arrays)

    model = {"w": np.zeros(4, np.float32)} | {k: v for k, v in MODEL.items() if "running_var" in k}
    model["bn.num_batches_tracked"] = np.asarray(0)
    result = start(FedExP(epsilon=0.0, max_step_size=4.0), grid_of(4, shrink), model, 1)
    assert result.train_metrics_clientapp[1]["server-step-size"] == pytest.approx(2)
    got = arrays_of(result)
    np.testing.assert_allclose(got["bn.running_var"], 0.25)
    assert got["bn.num_batches_tracked"] == 22  # 21.5 to the even neighbour
    assert got["bn.num_batches_tracked"].dtype == np.int64


def test_counters_do_not_enter_the_norms():
    def counting(message, context):
        return content({"w": np.eye(4)[partition(context)], "steps": np.asarray(10**6)})

    model = {"w": np.zeros(4), "steps": np.asarray(0)}
    metrics = start(FedExP(epsilon=0.0), grid_of(4, counting), model, 1).train_metrics_clientapp[1]
    assert metrics["mean-update-norm"] == pytest.approx(1)


def test_the_caller_may_say_what_is_trainable():
    rule = ServerOptimizer(step_size=Constant(3.0))
    strategy = FedOpt(optimizer=rule, trainable=["w"], fraction_evaluate=0.0)
    grid = grid_of(2, lambda m, c: content({"w": np.ones(1), "frozen": np.ones(1)}))
    got = arrays_of(start(strategy, grid, {"w": np.zeros(1), "frozen": np.zeros(1)}, 1))
    assert (got["w"], got["frozen"]) == (3.0, 1.0)


def test_a_model_of_integers_alone_is_averaged():
    grid = grid_of(2, lambda m, c: content({"n": np.asarray(4 + 2 * partition(c))}))
    got = arrays_of(start(FedExP(fraction_evaluate=0.0), grid, {"n": np.asarray(0)}, 1))
    assert got["n"] == 5


# --- sampling ---------------------------------------------------------------------------------


def who_trained(seed, num_rounds=3):
    seen = []

    def own(message, context):
        seen.append((message.content["config"]["server-round"], partition(context)))
        return train(message, context)

    start(FedAvg(0.3, 0.0, seed=seed), grid_of(10, own), num_rounds=num_rounds)
    return seen


def test_a_seed_fixes_who_trains_in_every_round():
    first = who_trained(1)
    assert first == who_trained(1)
    assert first != who_trained(2)
    by_round = [[p for r, p in first if r == t] for t in (1, 2, 3)]
    assert all(len(set(clients)) == 3 for clients in by_round)
    assert len(set(map(tuple, by_round))) > 1


def test_the_rounds_do_not_depend_on_how_many_there_are():
    assert who_trained(1, num_rounds=2) == who_trained(1)[:6]


def test_a_configured_round_is_a_list_of_messages():
    for strategy in (FedExP(), FedExP(seed=1)):
        args = (1, record(MODEL), ConfigRecord(), grid_of(3, train))
        for messages in (strategy.configure_train(*args), strategy.configure_evaluate(*args)):
            assert isinstance(messages, list)
            assert len(messages) == 3


def test_what_a_round_returns_is_flowers_record():
    result = start(FedExP(), grid_of(2, train), num_rounds=1)
    assert isinstance(result.arrays, ArrayRecord)
    state = result.arrays.to_torch_state_dict()
    assert list(state) == list(MODEL)
    assert all(isinstance(x, torch.Tensor) for x in state.values())
