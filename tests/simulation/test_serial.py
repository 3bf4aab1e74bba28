import copy
import subprocess
import sys

import numpy as np
import pytest
from builders import content, grid_of, merging_if, partition, record
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedexp.merged import ClientSums, Merged
from fedexp.records import from_record
from fedexp.simulation import SerialGrid, merge_tree, worker_share
from fedexp.stats import PseudoGradientStats, tree_sum
from fedexp.strategies import FedAvg, FedExP, FixedClip
from fedexp.wire import Kind

MODEL = {
    "w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "t": np.asarray(0.5),
    "n": np.asarray(0),
}


def nothing(message, context):
    return RecordDict()


def drift(message, context):
    """A different update for every client and round; two clients of eleven fail."""
    p, server_round = partition(context), message.content["config"]["server-round"]
    if p == 3:
        raise RuntimeError("no battery")
    rng = np.random.default_rng([p, server_round])
    sent = from_record(message.content["arrays"])
    arrays = {k: np.asarray(x + rng.normal(size=x.shape)).astype(x.dtype) for k, x in sent.items()}
    if p == 7:
        arrays["w"][0, 0] = np.nan
    return content(arrays, num_examples=1 + p, loss=rng.random())


def send(grid, *nodes, body=None, kind="train"):
    messages = [Message(body or RecordDict(), node, kind) for node in nodes]
    return list(grid.send_and_receive(messages))


def test_node_ids_ascend_in_partition_order_from_two():
    seen = {}

    def note(message, context):
        seen[context.node_id] = (partition(context), context.node_config["num-partitions"])
        return RecordDict()

    grid = grid_of(4, note)
    assert isinstance(grid, Grid)
    assert list(grid.get_node_ids()) == [2, 3, 4, 5]
    send(grid, *grid.get_node_ids())
    assert seen == {2: (0, 4), 3: (1, 4), 4: (2, 4), 5: (3, 4)}


def test_a_million_nodes_cost_nothing_until_a_message_comes():
    grid = grid_of(1_000_000, nothing)
    (reply,) = send(grid, 1_000_001)
    assert reply.metadata.src_node_id == 1_000_001
    assert grid.states == {}


def test_every_reply_answers_its_message():
    grid = grid_of(3, nothing)
    messages = [Message(RecordDict(), node, "train") for node in (4, 2, 3)]
    replies = list(grid.send_and_receive(iter(messages)))
    assert len({m.metadata.message_id for m in messages}) == 3
    for message, reply in zip(messages, replies, strict=True):
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        assert reply.metadata.src_node_id == message.metadata.dst_node_id


def test_a_clients_state_is_kept_between_messages_and_is_its_own():
    def count(message, context):
        state = context.state.setdefault("visits", MetricRecord({"n": 0}))
        state["n"] += 1
        return RecordDict({"m": MetricRecord({"n": state["n"]})})

    grid = grid_of(3, count)
    for _ in range(2):
        send(grid, 2, 4)
    assert [r.content["m"]["n"] for r in send(grid, 2, 3, 4)] == [3, 1, 3]


def test_a_client_may_clear_or_replace_its_state():
    def forget(message, context):
        had = len(context.state)
        context.state = RecordDict() if had else RecordDict({"c": ConfigRecord({"a": 1})})
        return RecordDict({"m": MetricRecord({"had": had})})

    grid = grid_of(1, forget)
    assert [send(grid, 2)[0].content["m"]["had"] for _ in range(4)] == [0, 1, 0, 1]


def test_an_exception_becomes_an_error_reply_that_says_where():
    def fail(message, context):
        raise OSError("disk full")

    good, bad = send(grid_of(2, lambda m, c: fail(m, c) if partition(c) else RecordDict()), 2, 3)
    assert good.has_content()
    assert bad.has_error()
    assert bad.metadata.src_node_id == 3
    assert "OSError: disk full" in bad.error.reason
    assert "test_serial.py" in bad.error.reason


def test_an_app_that_returns_no_message_is_an_error_reply():
    app = ClientApp()
    app.train()(lambda message, context: None)
    (reply,) = send(SerialGrid(app, 1), 2)
    assert "NoneType" in reply.error.reason


def test_a_message_type_without_a_handler_is_an_error_reply():
    (reply,) = send(grid_of(1, nothing), 2, kind="evaluate")
    assert reply.has_error()


def test_a_client_cannot_change_what_the_others_get():
    seen = []

    def scribble(message, context):
        seen.append((dict(message.content["config"]), sorted(message.content)))
        message.content["config"]["lr"] = 9.0
        del message.content["arrays"]
        return RecordDict()

    body = RecordDict({"arrays": record(MODEL), "config": ConfigRecord({"lr": 0.1})})
    send(grid_of(3, scribble), 2, 3, 4, body=body)
    assert seen == [({"lr": 0.1}, ["arrays", "config"])] * 3
    assert body["config"]["lr"] == 0.1


def test_the_run_config_reaches_every_client():
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict({"c": ConfigRecord(dict(context.run_config))}), reply_to=message)

    for reply in send(SerialGrid(app, 2, run_config={"local-steps": 3}), 2, 3):
        assert dict(reply.content["c"]) == {"local-steps": 3}


@pytest.mark.parametrize("node", [0, 1, 5])
def test_a_message_to_nobody_is_refused(node):
    with pytest.raises(ValueError, match=f"node {node}: this grid's nodes are 2 to 4"):
        send(grid_of(3, nothing), node)


def test_a_grid_without_nodes_is_refused():
    with pytest.raises(ValueError, match=r"SerialGrid\(num_nodes=0\): must be at least 1"):
        grid_of(0, nothing)


def test_no_messages_have_no_replies():
    assert list(grid_of(2, nothing).send_and_receive([])) == []


def test_mods_of_an_app_are_run():
    def stamp(message, context, call_next):
        reply = call_next(message, context)
        reply.content["stamp"] = MetricRecord({"seen": 1})
        return reply

    app = ClientApp(mods=[stamp])
    app.train()(lambda message, context: Message(RecordDict(), reply_to=message))
    (reply,) = send(SerialGrid(app, 1), 2)
    assert reply.content["stamp"]["seen"] == 1


# --- rounds -----------------------------------------------------------------------------------


def run(strategy, merges=True, num_nodes=11, num_rounds=3):
    grid = grid_of(num_nodes, drift)
    grid = merging_if(merges, grid)
    return strategy.start(grid, record(MODEL), num_rounds=num_rounds)


@pytest.mark.parametrize(
    "options", [{}, {"weighted": False}, {"trainable": ["w"]}, {"clip": FixedClip(2.0)}]
)
def test_merged_replies_give_the_same_round_as_single_ones(options, logged):
    results, lines = [], []
    for merges in (True, False):
        logged.clear()
        strategy = FedExP(fraction_evaluate=0.0, seed=1, epsilon=0.1, **options)
        results.append(run(strategy, merges))
        lines.append(sorted(line for line in logged if "dropped" in line))
    one, many = results
    assert lines[0] == lines[1]
    assert len(lines[0]) == 6
    for name, x in many.arrays.items():
        # Sums in another order; a float32 may end on its neighbour.
        np.testing.assert_allclose(one.arrays[name].numpy(), x.numpy(), rtol=1e-6)
    for server_round, metrics in many.train_metrics_clientapp.items():
        assert one.train_metrics_clientapp[server_round] == pytest.approx(dict(metrics))


@pytest.mark.parametrize("group_bytes", [1, 150, 1 << 27])
def test_how_many_models_are_held_changes_no_bit(group_bytes, monkeypatch):
    strategy = FedExP(fraction_evaluate=0.0, seed=1)
    expected = run(strategy)
    monkeypatch.setattr(worker_share, "_GROUP_BYTES", group_bytes)
    got = run(strategy)
    assert got.train_metrics_clientapp == expected.train_metrics_clientapp
    for name, x in expected.arrays.items():
        assert np.array_equal(got.arrays[name].numpy(), x.numpy())


def test_two_runs_with_one_seed_agree_to_the_last_bit_and_another_seed_does_not():
    runs = [run(FedExP(0.5, 0.0, seed=seed)) for seed in (1, 1, 2)]
    digests = [[x.data for x in r.arrays.values()] for r in runs]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    assert runs[0].train_metrics_clientapp == runs[1].train_metrics_clientapp


def test_a_merged_round_of_failures_alone_leaves_the_model():
    def fail(message, context):
        raise RuntimeError("lost")

    result = FedAvg(fraction_evaluate=0.0).start(grid_of(3, fail), record(MODEL), num_rounds=1)
    assert dict(result.train_metrics_clientapp[1]) == {"num-clients": 0, "num-failures": 3}
    assert not result.arrays


def test_flowers_own_strategy_gets_the_single_replies():
    grid = grid_of(3, lambda m, c: content({"w": np.full(2, float(partition(c)))}))
    result = FlowerFedAvg(fraction_evaluate=0.0).start(
        grid, record({"w": np.zeros(2)}), num_rounds=1
    )
    np.testing.assert_allclose(result.arrays["w"].numpy(), 1)


# --- the tree of a cohort ---------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 20))
def test_any_spans_of_a_cohort_split_into_subtrees_that_make_it_up(size):
    whole = (0, size)
    for cut in range(size + 1):
        parts = merge_tree.subtrees((0, cut), whole) + merge_tree.subtrees((cut, size), whole)
        assert [i for lo, hi in parts for i in range(lo, hi)] == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("at_most", [1, 3, 8, 100])
def test_groups_are_the_largest_subtrees_of_a_size(size, at_most):
    groups = merge_tree.subtrees_up_to(at_most, (0, size))
    assert [i for lo, hi in groups for i in range(lo, hi)] == list(range(size))
    assert all(1 <= hi - lo <= at_most for lo, hi in groups)
    assert all(merge_tree.subtrees(group, (0, size)) == [group] for group in groups)


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_sums_of_shares_combine_to_the_bits_of_one_worker(size):
    def leaf(p):
        stats = PseudoGradientStats(count=1, weight=0.1 * p, sq_norm=1 / (p + 1))
        return Merged({Kind(frozenset()): ClientSums(stats, ((p, {}),))}, ((p, "odd"),) * (p % 2))

    def worker(span):
        return tree_sum([leaf(p) for p in range(*span)])

    whole = (0, size)
    for cut in range(size + 1):
        spans = merge_tree.subtrees((0, cut), whole) + merge_tree.subtrees((cut, size), whole)
        got = merge_tree.combine(whole, {span: worker(span) for span in spans})
        assert got.failures == worker(whole).failures
        (sums,), (expected,) = got.sums.values(), worker(whole).sums.values()
        assert [node for node, _ in sums.metrics] == list(range(size))
        assert sums.stats.weight == expected.stats.weight
        assert sums.stats.sq_norm == expected.stats.sq_norm


def test_a_message_is_as_it_was_after_a_round():
    body = RecordDict({"arrays": record(MODEL), "config": ConfigRecord({"server-round": 1})})
    before = copy.deepcopy(dict(body["config"]))
    send(grid_of(2, drift), 2, 3, body=body)
    assert dict(body["config"]) == before
    assert list(body["arrays"]) == list(MODEL)


def test_importing_it_imports_neither_pytorch_nor_ray():
    code = "import sys, fedexp.simulation; print({'torch', 'ray'} & sys.modules.keys())"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
