import numpy as np
import pytest
from builders import content, grid_of, record
from flwr.app import MetricRecord

from fedexp.records import from_record
from fedexp.strategies import (
    BothIterates,
    FedAvg,
    MeanOfIterates,
    MeanOfLast,
    MeanOfLastTwo,
    MovingAverage,
    average_named,
)


class Seen:
    """An evaluate_fn that remembers what it was given."""

    def __init__(self):
        self.models = []

    def __call__(self, server_round, arrays):
        self.models.append({k: np.array(x) for k, x in from_record(arrays).items()})
        return MetricRecord({"round": server_round})


def evaluated(*iterates, first=0):
    seen = Seen()
    mean = MeanOfLastTwo(seen)
    for server_round, w in enumerate(iterates, first):
        assert mean(server_round, record({"w": np.asarray(w)}))["round"] == server_round
    return [model["w"].tolist() for model in seen.models]


def test_rounds_0_and_1_are_evaluated_alone_and_later_ones_as_means_of_two():
    assert evaluated(0.0, 8.0, 4.0, 6.0) == [0.0, 8.0, 6.0, 5.0]


def test_a_second_run_does_not_see_the_first():
    seen = Seen()
    mean = MeanOfLastTwo(seen)
    for server_round, w in [(0, 0.0), (1, 8.0), (2, 4.0), (0, 1.0), (1, 2.0), (2, 4.0)]:
        mean(server_round, record({"w": np.asarray(w)}))
    assert [float(model["w"]) for model in seen.models] == [0, 8, 6, 1, 2, 3]


def test_evaluation_that_begins_at_round_1_needs_no_round_0():
    assert evaluated(8.0, 4.0, first=1) == [8.0, 6.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_mean_keeps_dtypes_and_takes_buffers_from_the_last(dtype):
    seen = Seen()
    mean = MeanOfLastTwo(seen)
    for server_round, x in ((1, 2), (2, 5)):
        model = {
            "w": np.full((2, 1), x, dtype),
            "n": np.asarray(x),
            "bn.running_var": np.ones(1) * x,
        }
        mean(server_round, record(model))
    last = seen.models[-1]
    np.testing.assert_array_equal(last["w"], [[3.5], [3.5]])
    assert (last["n"], last["bn.running_var"]) == (5, 5)
    assert [last[name].dtype for name in model] == [x.dtype for x in model.values()]


def test_the_mean_is_never_written_back():
    """Clients add 2 to what they get: 2, 4, 6; the means would be 2, 3, 5."""
    sent, seen = [], Seen()

    def add_two(message, context):
        sent.append(float(from_record(message.content["arrays"])["w"]))
        return content({"w": from_record(message.content["arrays"])["w"] + 2})

    result = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1).start(
        grid_of(1, add_two),
        record({"w": np.asarray(0.0)}),
        num_rounds=3,
        evaluate_fn=MeanOfLastTwo(seen),
    )
    assert sent == [0, 2, 4]
    assert [float(model["w"]) for model in seen.models] == [0, 2, 3, 5]
    assert result.arrays["w"].numpy() == 6


def test_the_arrays_of_a_round_are_not_changed():
    arrays = [record({"w": np.full(2, x)}) for x in (0.0, 1.0, 2.0)]
    mean = MeanOfLastTwo(Seen())
    for server_round, x in enumerate(arrays):
        mean(server_round, x)
    assert [x["w"].numpy().tolist() for x in arrays] == [[0, 0], [1, 1], [2, 2]]


ITERATES = [3.0, -1.0, 4.0, 1.5, 9.25, 2.0]


def averaged(average, iterates=ITERATES):
    seen = Seen()
    evaluate = MeanOfIterates(seen, average)
    for server_round, w in enumerate(iterates, 1):
        evaluate(server_round, record({"w": np.asarray(w)}))
    return [float(model["w"]) for model in seen.models]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_the_mean_of_the_last_k_is_that_of_as_many_as_there_are(k):
    expected = [np.mean(ITERATES[max(0, t - k) : t]) for t in range(1, len(ITERATES) + 1)]
    assert averaged(MeanOfLast(k)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("b", [0.0, 0.3, 0.7, 0.95])
def test_the_moving_average_weighs_iterates_by_powers_of_its_decay(b):
    """x_t = b^(t-1) w_1 + (1 - b) (w_t + b w_{t-1} + ... + b^(t-2) w_2)."""
    expected = [
        b ** (t - 1) * ITERATES[0] + (1 - b) * sum(b**j * ITERATES[t - 1 - j] for j in range(t - 1))
        for t in range(1, len(ITERATES) + 1)
    ]
    assert averaged(MovingAverage(b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_moving_average_is_taken_in_float64(dtype):
    smallest = np.asarray(np.finfo(dtype).smallest_subnormal)
    average, memory = MovingAverage(0.9), {}
    for _ in range(3):
        memory = average.update(memory, {"w": smallest})
    assert memory["average"]["w"] == pytest.approx(float(smallest), rel=1e-12)
    assert average.mean(memory, frozenset("w"))["w"] == smallest


@pytest.mark.parametrize("name", ["last-2", "last-5", "ema-0.7", "poly-8"])
def test_averages_keep_dtypes_take_buffers_from_the_last_and_average_what_is_named(name):
    seen = Seen()
    evaluate = MeanOfIterates(seen, average_named(name), frozenset({"w"}))
    for server_round, x in ((1, 2), (2, 4)):
        model = {"w": np.full(2, x, np.float16), "shadow": np.ones(1) * x, "n": np.asarray(x)}
        evaluate(server_round, record(model))
    last = seen.models[-1]
    assert 2 < last["w"][0] < 4
    assert (last["shadow"], last["n"]) == (4, 4)
    assert [last[k].dtype for k in model] == [x.dtype for x in model.values()]


@pytest.mark.parametrize("name", ["last-2", "last-4", "ema-0.7", "poly-3"])
def test_an_average_goes_on_from_its_memory(name):
    whole, cut = averaged(average_named(name)), Seen()
    first, second = (MeanOfIterates(cut, average_named(name)) for _ in range(2))
    for server_round, w in enumerate(ITERATES, 1):
        if server_round == 4:
            second.memory = first.memory
        evaluate = first if server_round < 4 else second
        evaluate(server_round, record({"w": np.asarray(w)}))
    assert [float(model["w"]) for model in cut.models] == whole


def test_both_iterates_are_scored_by_one_function():
    def score(server_round, arrays):
        return MetricRecord({"test-loss": float(from_record(arrays)["w"])})

    both = BothIterates(score, MeanOfLast(2))
    rows = [dict(both(t, record({"w": np.asarray(w)}))) for t, w in enumerate(ITERATES, 1)]
    assert [row["test-loss"] for row in rows] == ITERATES
    assert [row["mean-test-loss"] for row in rows] == averaged(MeanOfLast(2))


@pytest.mark.parametrize(
    "name", ["last", "last-0", "last-x", "ema-1", "ema--1", "poly--1", "poly-x", "mean-2", ""]
)
def test_an_unknown_average_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"average=.*last-2, ema-0\.7 or poly-8"):
        average_named(name)
