import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict

from fedexp.strategies.per_client import per_client


def records(accuracies, sizes):
    return [
        RecordDict({"metrics": MetricRecord({"num-examples": n, "eval-accuracy": a})})
        for a, n in zip(accuracies, sizes, strict=True)
    ]


def test_the_mean_is_weighted_and_the_worst_tenth_counts_clients():
    accuracies = [0.9] * 18 + [0.1, 0.3]
    result = per_client(records(accuracies, [1] * 19 + [81]), "num-examples")
    assert result["eval-accuracy"] == pytest.approx((18 * 0.9 + 0.1 + 81 * 0.3) / 100)
    assert result["eval-accuracy-worst-tenth"] == pytest.approx(0.2)
    assert result["eval-accuracy-std"] == pytest.approx(np.std(accuracies))


def test_fewer_than_ten_clients_have_one_worst():
    result = per_client(records([0.5, 0.25, 1.0], [1, 1, 1]), "num-examples")
    assert result["eval-accuracy-worst-tenth"] == 0.25


@pytest.mark.parametrize("odd", [{}, {"eval-accuracy": float("nan")}, {"eval-accuracy": [0.1]}])
def test_a_client_without_a_sound_accuracy_hides_nobodys(odd):
    others = records([0.5, 1.0], [1, 3])
    one = RecordDict({"metrics": MetricRecord({"num-examples": 9, **odd})})
    assert per_client([one, *others], "num-examples") == per_client(others, "num-examples")
