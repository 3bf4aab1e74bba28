"""Own metrics: of all outputs at once, against scikit-learn; those that fail end nothing."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from builders import record
from flwr.app import ConfigRecord, Message, RecordDict
from torch import nn

from fedexp.clients import Examples, client_app, default_loss, evaluate, module_arrays
from fedexp.clients.metrics import Metrics
from fedexp.simulation import SerialGrid

RNG = np.random.default_rng(0)
MANY = torch.from_numpy(RNG.normal(size=(50, 4))), torch.from_numpy(RNG.integers(0, 4, 50))
TWO = torch.from_numpy(RNG.normal(size=(50, 2))), torch.from_numpy(RNG.integers(0, 2, 50))
VALUES = torch.from_numpy(RNG.normal(size=50)), torch.from_numpy(RNG.normal(size=50))


def sums(outputs, targets):
    return outputs.sum() + targets.sum()


@pytest.fixture
def scores():
    """Imported late: it takes more than a second."""
    from sklearn import metrics

    return metrics


@pytest.fixture
def own(monkeypatch):
    module = ModuleType("own_metrics")
    module.sum_of_all = sums
    module.power = lambda outputs, targets, p=1: outputs.abs().sum() ** p
    monkeypatch.setitem(sys.modules, "own_metrics", module)


def chances(outputs):
    return outputs.softmax(1)


SCORERS = {
    "f1": lambda scores, x, y: scores.f1_score(y, x.argmax(1), average="macro"),
    "f1-micro": lambda scores, x, y: scores.f1_score(y, x.argmax(1), average="micro"),
    "recall": lambda scores, x, y: scores.recall_score(y, x.argmax(1), average="macro"),
    "balanced-accuracy": lambda scores, x, y: scores.balanced_accuracy_score(y, x.argmax(1)),
    "roc-auc": lambda scores, x, y: scores.roc_auc_score(y, chances(x), multi_class="ovr"),
    "log-loss": lambda scores, x, y: scores.log_loss(y, chances(x)),
    "matthews-corrcoef": lambda scores, x, y: scores.matthews_corrcoef(y, x.argmax(1)),
}


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_of_scikit_learn_over_many_classes(name, scores):
    assert Metrics.of(name).check(*MANY) == pytest.approx({name: SCORERS[name](scores, *MANY)})


def test_of_two_classes_the_second_is_the_positive_one(scores):
    x, y = TWO
    found = Metrics.of("f1, precision, roc-auc").check(x, y)
    predicted = x.argmax(1)
    assert found == pytest.approx(
        {
            "f1": scores.f1_score(y, predicted),
            "precision": scores.precision_score(y, predicted),
            "roc-auc": scores.roc_auc_score(y, x[:, 1] - x[:, 0]),
        }
    )


@pytest.mark.parametrize("column", [False, True])
def test_scorers_of_a_regression(column, scores):
    x, y = VALUES
    found = Metrics.of("r2, mae, rmse").check(x[:, None] if column else x, y)
    assert found == pytest.approx(
        {
            "r2": scores.r2_score(y, x),
            "mae": scores.mean_absolute_error(y, x),
            "rmse": scores.root_mean_squared_error(y, x),
        }
    )


def test_scores_of_a_sequence_count_every_position():
    x, y = MANY[0].reshape(10, 5, 4).movedim(2, 1), MANY[1].reshape(10, 5)
    found = Metrics.of("f1, balanced-accuracy").check(x, y)
    assert found == pytest.approx(Metrics.of("f1, balanced-accuracy").check(*MANY))


def test_names_in_text(own):
    text = "own_metrics:sum_of_all, cube=own_metrics:power(p=3), own_metrics:power(p=2)"
    found = Metrics.of(text).check(*VALUES)
    total = float(VALUES[0].abs().sum())
    expected = {"sum-of-all": float(sums(*VALUES)), "cube": total**3, "power": total**2}
    assert found == pytest.approx(expected)
    assert not Metrics.of("")
    assert not Metrics.of(None)


REFUSED = {
    "f2": "'f2' is no scorer of scikit-learn. Use one of f1",
    "f1(average=micro)": "is no scorer",
    "f1, f1": "'f1' is there twice",
    "accuracy": "is reported already",
    "loss=own_metrics:power": "is reported already",
    "own_metrics:other": "AttributeError",
    "no_such_module:f": "Is it on the Python path?",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_is_refused(own, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Metrics.of(text)
    assert REFUSED[text] in str(caught.value)


def test_metrics_are_functions_by_name():
    with pytest.raises(ValueError, match=r"metrics\('f1'=int\): must be a function"):
        Metrics.of({"f1": 3})


def rows_and_model(width=3):
    x = torch.from_numpy(RNG.normal(size=(2500, 4)).astype(np.float32))
    y = torch.from_numpy(RNG.integers(0, width, 2500))
    torch.manual_seed(0)
    return Examples(x, y, torch.arange(0, 2500, 2)), nn.Linear(4, width)


def test_a_metric_sees_all_outputs_of_the_clients_own_rows_once():
    seen = []

    def note(outputs, targets):
        seen.append((outputs, targets))
        return 0.5

    examples, model = rows_and_model()
    plain = evaluate(model, examples, default_loss)
    found = evaluate(model, examples, default_loss, 100, Metrics.of({"note": note}))
    assert found == pytest.approx(plain | {"note": 0.5})
    ((outputs, targets),) = seen
    x, y = examples.take(torch.arange(len(examples)))
    torch.testing.assert_close(outputs, model(x).detach())
    assert torch.equal(targets, y)
    assert not outputs.requires_grad


def test_outputs_that_are_no_tensor_are_joined_part_by_part():
    seen = []
    examples, model = rows_and_model()

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            z = self.inner(x)
            return {"logits": z, "pair": (z, z.sum()), "name": "z"}

    loss = lambda outputs, targets: default_loss(outputs["logits"], targets)  # noqa: E731
    metrics = Metrics.of({"note": lambda x, y: seen.append(x) or 1})
    evaluate(Parts(), examples, loss, 1000, metrics)
    assert seen[0]["logits"].shape == (1250, 3)
    assert seen[0]["pair"][0].shape == (1250, 3)
    assert len(seen[0]["pair"][1]) == 2  # numbers of two batches: nothing to join
    assert seen[0]["name"] == ["z", "z"]


FAILING = {
    "raises": lambda x, y: 1 / 0,
    "nan": lambda x, y: float("nan"),
    "text": lambda x, y: "high",
    "many": lambda x, y: x,
    "nothing": lambda x, y: None,
}


def test_a_metric_that_fails_is_left_out_and_named_once(logged):
    examples, model = rows_and_model()
    metrics = Metrics.of({**FAILING, "sums": sums})
    for _ in range(3):
        found = evaluate(model, examples, default_loss, metrics=metrics)
        assert found.keys() == {"loss", "accuracy", "sums"}
    for name in FAILING:
        assert sum(f"Metric {name!r} dropped" in line for line in logged) == 1
    with pytest.raises(ValueError, match=r"metrics\(raises\): fails on the test set: ZeroDivision"):
        evaluate(model, examples, default_loss, metrics=metrics.check)


def client(metrics=None, odd=lambda partition: False, run=None):
    def data(context):
        partition = int(context.node_config["partition-id"])
        rng = np.random.default_rng(partition)
        x = torch.from_numpy(rng.normal(size=(40, 4)).astype(np.float32))
        classes = 1 if odd(partition) else 3
        return (Examples(x, torch.from_numpy(rng.integers(0, classes, 40))),) * 2

    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    app = client_app(lambda context: model, data, metrics=metrics)
    body = {"arrays": record(module_arrays(model)), "config": ConfigRecord({"server-round": 1})}
    grid = SerialGrid(app, 3, run_config=run or {})
    nodes = grid.get_node_ids()
    replies = grid.send_and_receive([Message(RecordDict(body), n, "evaluate") for n in nodes])
    return [dict(r.content["metrics"]) for r in replies], model, app.trainer.data


@pytest.mark.parametrize("way", ["python", "text", "run config"])
def test_a_client_reports_its_metrics_of_its_test_set(way, scores):
    own = {"f1": lambda x, y: scores.f1_score(y, x.argmax(1), average="macro")}
    given = {"python": {"metrics": own}, "text": {"metrics": "f1"}}
    found, model, data = client(**given.get(way, {"run": {"metrics": "f1"}}))
    for partition, metrics in enumerate(found):
        examples = data(_Partition(partition))[1]
        predicted = model(examples.inputs).argmax(1)
        expected = scores.f1_score(examples.targets, predicted, average="macro")
        assert metrics["eval-f1"] == pytest.approx(expected)
        assert metrics.keys() == {"num-examples", "eval-loss", "eval-accuracy", "eval-f1"}


class _Partition:
    def __init__(self, partition):
        self.node_config = {"partition-id": partition}


def test_a_client_where_a_metric_has_no_meaning_reports_the_others(logged):
    found, *_ = client("roc-auc, f1", lambda partition: partition == 1)
    assert ["eval-roc-auc" in metrics for metrics in found] == [True, False, True]
    assert all("eval-f1" in metrics for metrics in found)
    assert sum("Metric 'roc-auc' dropped" in line for line in logged) == 1
