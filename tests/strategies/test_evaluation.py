import numpy as np
import pytest
from builders import content, grid_of, record
from flwr.app import MetricRecord

from fedexp.records import from_record
from fedexp.strategies import FedAvg, MeanOfLastTwo


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
