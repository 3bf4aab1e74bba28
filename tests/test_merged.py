"""Merged replies that cannot be the sums of any clients' replies."""

import json

import numpy as np
import pytest
from builders import reply
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from fedexp.merged import Merged
from fedexp.records import to_record
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.replies import Replies
from fedexp.wire import BadReply, Kind, Reading

BEFORE = {"w": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32), "n": np.asarray(3)}
READING = Reading("num-examples", False, frozenset("wb"), "arrays", max_norm=10.0)


def client(seed, size=1.0):
    rng = np.random.default_rng(seed)
    after = {k: np.asarray(x + size * rng.normal(size=x.shape), x.dtype) for k, x in BEFORE.items()}
    stats = PseudoGradientStats.of(BEFORE, after, weight=seed + 1.0, trainable=READING.trainable)
    metrics = {"num-examples": seed + 1, "loss": [0.5, 0.25]}
    return Merged(stats, ((seed + 2, metrics),), (stats.mean_norm,))


def cohort():
    return (client(0) + client(1) + client(2)).to_content()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_sums_of_any_clients_are_believed(sizes):
    merged = sum((client(i, size) for i, size in enumerate(sizes)), Merged())
    assert merged.checked(READING, BEFORE) == Kind(READING.trainable)


def sums(**changes):
    def tamper(content):
        content["fedexp-sums"] = MetricRecord({**content["fedexp-sums"], **changes})

    return tamper


def told(*rows):
    def tamper(content):
        norms = content["metrics"]["norms"]
        content["metrics"] = ConfigRecord({"json": json.dumps(rows), "norms": norms})

    return tamper


def arrays(key, **changes):
    def tamper(content):
        made = to_record({**{k: x.numpy() for k, x in content[key].items()}, **changes})
        content[key] = made

    return tamper


def without(key):
    def tamper(content):
        del content[key]

    return tamper


def as_json(text):
    return lambda content: content["metrics"].update({"json": text})


def norms(*values):
    return lambda content: content["metrics"].update({"norms": list(values)})


SOUND = [[2, {"num-examples": 1}], [3, {"num-examples": 2}], [4, {"num-examples": 3}]]
TAMPERED = {
    "no sums": without("fedexp-sums"),
    "no update": without("update-sum"),
    "no buffers": without("buffer-sum"),
    "no metrics": without("metrics"),
    "a count of none": sums(**{"count": 0}),
    "another count": sums(**{"count": 4}),
    "an endless count": sums(**{"count": float("inf")}),
    "no weight": sums(**{"weight": 0.0}),
    "a weight of NaN": sums(**{"weight": float("nan")}),
    "another weight": sums(**{"weight": 60.0}),
    "a norm too short": sums(**{"sq-norm": 1e-3}),
    "a norm too long": sums(**{"sq-norm": 1e4}),
    "a norm of NaN": sums(**{"sq-norm": float("nan")}),
    "an endless norm": sums(**{"sq-norm": float("inf"), "norm": float("inf")}),
    "a mean norm too long": sums(**{"norm": 1e200}),
    "a list for a number": sums(**{"norm": [1.0]}),
    "more clipped than there are": sums(**{"num-clipped": 4}),
    "fewer clipped than none": sums(**{"num-clipped": -1}),
    "an array more": arrays("update-sum", z=np.zeros(2)),
    "another shape": arrays("update-sum", w=np.zeros((3, 2))),
    "text": arrays("update-sum", w=np.full((2, 3), "x")),
    "NaN": arrays("update-sum", w=np.full((2, 3), np.nan)),
    "an update too long": arrays("update-sum", w=np.full((2, 3), 1e3)),
    "a buffer of NaN": arrays("buffer-sum", n=np.asarray(np.nan)),
    "a buffer that moves": arrays("update-sum", n=np.asarray(0.0)),
    "a parameter among the buffers": lambda content: content.update(
        {
            "update-sum": to_record({"w": content["update-sum"]["w"].numpy()}),
            "buffer-sum": to_record({"b": np.ones(2), "n": np.asarray(9.0)}),
        }
    ),
    "nothing at all": lambda content: content.update(
        {"update-sum": ArrayRecord(), "buffer-sum": ArrayRecord()}
    ),
    "a client too few": told(*SOUND[:2]),
    "a client twice": told(*SOUND[:2], SOUND[1]),
    "a client without weight": told(*SOUND[:2], [4, {}]),
    "a client with text for a metric": told(*SOUND[:2], [4, {"num-examples": 3, "loss": "low"}]),
    "a node that is no number": told(*SOUND[:2], ["node", SOUND[2][1]]),
    "no norms": norms(),
    "other norms": norms(1.0, 1.0, 1.0),
    "norms of NaN": norms(float("nan"), 1.0, 1.0),
    "endless norms": norms(float("inf"), 1.0, 1.0),
    "no JSON": as_json("[("),
    "JSON of another form": as_json("3"),
    "endless JSON": as_json("[" * 100_000),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_reply_that_no_clients_can_have_made_is_one_failure(kind):
    content = cohort()
    TAMPERED[kind](content)
    with pytest.raises(BadReply):
        Merged.from_content(content).checked(READING, BEFORE)
    folded = Replies(BEFORE, READING, merges=True)
    folded.fold(folded.contents([reply(content, 9), reply(client(5).to_content(), 7)]))
    assert (folded.stats.count, folded.num_failures) == (1, 1)


def test_clients_of_unlike_steps_cannot_have_been_added_up():
    reading = Reading("num-examples", False, frozenset("wb"), "arrays", step_key="step")
    rows = [(node, {**metrics, "step": 0.1 * node}) for node, metrics in SOUND]
    merged = Merged.from_content(cohort())
    with pytest.raises(BadReply, match="different step"):
        Merged(merged.stats, tuple(rows)).checked(reading, BEFORE)


def test_a_merged_reply_that_nobody_asked_for_is_not_believed():
    folded = Replies(BEFORE, READING)
    folded.fold(folded.contents([reply(cohort())]))
    assert (folded.stats.count, folded.num_failures) == (0, 1)
