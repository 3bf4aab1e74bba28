"""FedExP under Flower's SecAgg+: the squared norms travel under the mask of the model."""

import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import (
    Code,
    FitRes,
    Status,
    bytes_to_ndarray,
    ndarrays_to_parameters,
)
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    RECORD_KEY_STATE,
)
from flwr.compat.common.recorddict_compat import parameters_to_arrayrecord
from flwr.server import LegacyContext, ServerConfig
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

from fedexp.clients.secure import NUM_COPIES, squared_norm_mod
from fedexp.simulation import SerialGrid
from fedexp.stats import PseudoGradientStats
from fedexp.strategies import FedExP, legacy
from fedexp.strategies.extensions import Received, RoundInProgress
from fedexp.strategies.secure import SecureNorms
from fedexp.wire import ReplyFormat

NUM_CLIENTS, SIZE, LENGTH = 5, 2000, 0.15
FIRST = [np.linspace(-1, 1, SIZE), np.asarray(0.5), np.asarray(3)]  # the last is no weight
MODS = (secaggplus_mod, squared_norm_mod)


def update(p, times):
    """``-Δᵢ`` of client ``p``, nearly orthogonal to those of the others."""
    rng = np.random.default_rng(p)
    return [times * LENGTH * rng.normal(size=SIZE), np.asarray(0.1 * p), np.asarray(1)]


class Client(NumPyClient):
    """Adds its own update, counts ``1 + p`` examples; raises if it is to drop out."""

    def __init__(self, p, drop, times):
        self.p, self.drop, self.times = p, drop, times

    def fit(self, parameters, config):
        if self.p in self.drop:
            raise RuntimeError("no battery")
        new = [x + y for x, y in zip(parameters, update(self.p, self.times), strict=True)]
        return new, 1 + self.p, {"accuracy": 0.25 * self.p}


class Grid(SerialGrid):
    """Keeps all that the server receives."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.received, self.bytes = [], []

    def send_and_receive(self, messages, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        self.received += replies
        self.bytes += map(texts, replies)  # at once: Flower takes replies apart when it reads them
        return replies


def run(make=legacy.FedExP, mods=MODS, drop=(), times=1.0, rounds=1, **settings):
    """Flower's own workflow; ``mods=()`` for one without secure aggregation."""
    app = ClientApp(
        client_fn=lambda context: Client(
            int(context.node_config["partition-id"]), drop, times
        ).to_client(),
        mods=list(mods),
    )
    protocol = {"num_shares": 5, "reconstruction_threshold": 3, "max_weight": 8}
    protocol |= {key: settings.pop(key) for key in [*settings] if key in PROTOCOL}
    models = []
    strategy = make(
        fraction_evaluate=0.0,
        min_fit_clients=NUM_CLIENTS,
        min_available_clients=NUM_CLIENTS,
        initial_parameters=ndarrays_to_parameters(FIRST),
        evaluate_fn=lambda server_round, arrays, config: models.append(arrays),
        **settings,
    )
    config = ServerConfig(num_rounds=rounds)
    context = LegacyContext(Context(1, 1, {}, RecordDict(), {}), config=config, strategy=strategy)
    workflow = SecAggPlusWorkflow(**protocol) if secaggplus_mod in mods else None
    with Grid(app, NUM_CLIENTS) as nodes:
        DefaultWorkflow(fit_workflow=workflow)(nodes, context)
    metrics = context.history.metrics_distributed_fit
    return SimpleNamespace(
        models=models,
        received=nodes.received,
        everything=b"|".join(nodes.bytes),
        metrics={key: [x for _, x in values] for key, values in metrics.items()},
    )


PROTOCOL = {"max_weight", "clipping_range", "quantization_range"}
once = cache(run)


def closed_form(clients=range(NUM_CLIENTS), epsilon=1e-3):
    """FedExP's step and the squared norm, from the paper's formula."""
    weights = np.array([1 + p for p in clients])
    flat = np.array([np.concatenate([update(p, 1.0)[0], [0.1 * p]]) for p in clients])
    mean, squares = np.average(flat, axis=0, weights=weights), (flat**2).sum(1)
    mean_sq = np.average(squares, weights=weights)
    return max(1.0, mean_sq / (2 * (mean @ mean + epsilon))), mean_sq, squares


def test_the_step_is_that_of_the_closed_form():
    result = once(secure=True)
    eta, mean_sq, _ = closed_form()
    assert eta > 1.5
    assert result.metrics["server-step-size"] == [pytest.approx(eta, rel=1e-5)]
    assert result.metrics["mean-squared-update-norm"] == [pytest.approx(mean_sq, rel=1e-5)]
    assert result.metrics["mean-update-norm"] == [pytest.approx(mean_sq**0.5, rel=1e-5)]
    assert result.metrics["num-failures"] == [0]


@pytest.mark.parametrize("drop", [(), (3,)], ids=["all", "one drops"])
def test_the_model_is_the_plain_one_within_what_rounding_takes(drop):
    secret, plain = once(secure=True, drop=drop), once(mods=(), drop=drop)
    # Each of n clients is rounded to 16/2^22 times max_weight over its examples; η doubles that.
    for x, y, before in zip(secret.models[-1], plain.models[-1], FIRST, strict=True):
        assert x.shape == y.shape == before.shape
        np.testing.assert_allclose(x, y, atol=3e-5)
    (eta,), (plain_eta,) = (x.metrics["server-step-size"] for x in (secret, plain))
    assert eta == pytest.approx(plain_eta, rel=1e-5)
    assert secret.metrics["num-clients"] == [NUM_CLIENTS - len(drop)]
    assert secret.metrics["num-failures"] == [len(drop)]


def test_three_of_five_dropping_fail_the_round_and_the_model_stays(logged):
    result = run(secure=True, drop=(0, 1, 2), rounds=2)
    for model in result.models:
        for x, y in zip(model, FIRST, strict=True):
            np.testing.assert_array_equal(x, y)
    assert result.metrics == {}
    assert "Round 1 took no step, the model is unchanged." in logged


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_weight": 2}, "4 examples are more than max_weight=2. Use SecAggPlusWorkflow"),
        ({"secure": SecureNorms(0.01)}, r"array 3 of 4 \(the last is the squared norm\) is out of"),
        ({"clipping_range": 0.1}, "array 0 of 4 .* is out of the clipping range and would be cut"),
        ({"quantization_range": 2**30}, "the sum over 5 clients overflows modulus_range"),
        ({"times": np.nan}, "array 0 holds NaN or infinity"),
    ],
    ids=["max_weight", "scale", "clipping_range", "modulus", "NaN"],
)
def test_what_secagg_would_cut_fails_the_client_and_no_value_is_said(settings, reason):
    result = run(**{"secure": True, **settings})
    errors = [str(x.error.reason) for x in result.received if x.has_error()]
    assert [x for x in errors if re.search(reason, x)]
    for x, y in zip(result.models[-1], FIRST, strict=True):
        np.testing.assert_array_equal(x, y)
    *_, squares = closed_form()
    for text in errors:
        assert all(f"{x:.3g}" not in text for x in [*squares, *np.sqrt(squares)])


def test_a_long_update_of_one_client_is_left_out_as_if_it_had_dropped_out(logged):
    _, _, squares = closed_form()
    # 5/8 of the last client's squared norm is just too much; 4/8 of the next one's is not.
    assert squares[4] * 5 > 1.1 * squares[3] * 4
    scale = squares[4] * 5 / 8 / 8 / 1.05
    result = run(secure=SecureNorms(scale))
    eta, mean_sq, _ = closed_form(range(4))
    assert result.metrics["server-step-size"] == [pytest.approx(eta, rel=1e-5)]
    assert result.metrics["mean-squared-update-norm"] == [pytest.approx(mean_sq, rel=1e-5)]
    assert result.metrics["num-failures"] == [1]
    assert sum("A client did not come through" in line for line in logged) == 1


def test_a_client_of_another_model_or_of_no_examples_is_one_failure(monkeypatch):
    def fit(values, number):
        arrays = ndarrays_to_parameters(values)
        content = RecordDict({"fitres.parameters": parameters_to_arrayrecord(arrays, True)})
        content["fitres.num_examples"] = MetricRecord({"num_examples": number})
        return Message(content, reply_to=message)

    agreed = {"max_weight": 8, "sample_num": 2, "target_range": 16, "mod_range": 2**20}
    state = RecordDict({RECORD_KEY_STATE: ConfigRecord({**agreed, "clipping_range": 8.0})})
    sent = parameters_to_arrayrecord(ndarrays_to_parameters(FIRST), True)
    content = RecordDict({"fitins.parameters": sent, "fitins.config": ConfigRecord()})
    content[RECORD_KEY_CONFIGS] = ConfigRecord()
    message = Message(content, 1, "train")
    for values, number, words in (
        ([*FIRST, np.ones(2)], 3, "fit returns other arrays than it got"),
        ([np.ones(9), *FIRST[1:]], 3, "fit returns other arrays than it got"),
        (FIRST, -5, "number of examples is not positive"),
    ):
        trained = fit(values, number)
        with pytest.raises(ValueError, match=words):
            squared_norm_mod(message, Context(1, 1, {}, state, {}), lambda *_, x=trained: x)


def test_the_wrong_order_of_the_mods_is_named(logged):
    result = run(secure=True, mods=MODS[::-1])
    errors = {str(x.error.reason) for x in result.received}
    assert len(errors) == 1
    assert "Use mods=[secaggplus_mod, squared_norm_mod]" in errors.pop()


def test_without_the_mod_or_without_secure_aggregation_there_is_no_step():
    with pytest.raises(ValueError, match=r"3 arrays came for a model of 3, .* Use ClientApp\(mods"):
        run(secure=True, mods=[secaggplus_mod])
    with pytest.raises(ValueError, match="are those of single clients, so nothing is hidden"):
        run(secure=True, mods=())
    with pytest.raises(ValueError, match=r"Use legacy.FedExP\(secure=True\) and its mod"):
        run(secure=False)
    reading = ReplyFormat("num-examples", False, frozenset(), "arrays")
    received = Received(RoundInProgress({}, reading), PseudoGradientStats(), [1], [{}], [0.0])
    newer = FedExP(extensions=[SecureNorms()])
    with pytest.raises(ValueError, match="it is for secure aggregation, which Flower has in its"):
        newer.extensions.aggregate(received, received.stats, {})


def test_the_mod_does_nothing_without_secure_aggregation():
    plain, with_mod = once(mods=()), run(mods=[squared_norm_mod])
    for x, y in zip(plain.models[-1], with_mod.models[-1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)  # threads of Flower's reply in any order


@pytest.mark.parametrize("key", ["FedExPM", "NesterovExP", "FedProxExP", "FedExProx"])
def test_every_rule_of_norms_takes_the_plain_step(key):
    (eta,), (plain,) = (
        x.metrics["server-step-size"]
        for x in (run(getattr(legacy, key), secure=True), run(getattr(legacy, key), mods=()))
    )
    assert eta == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("secure", [0.5, "yes", None])
def test_secure_is_a_switch_or_a_scale(secure):
    with pytest.raises(ValueError, match="Use secure=True"):
        legacy.FedExP(secure=secure)
    with pytest.raises(ValueError, match=r"SecureNorms\(scale=0\): must be > 0"):
        SecureNorms(0)


def test_a_mean_below_jensens_bound_is_said(logged):
    stats = PseudoGradientStats(2, 2.0, {"w": np.array([4.0])}, sq_norm=8.0)
    reading = ReplyFormat("num-examples", False, frozenset({"w"}), "arrays")
    for mean, warned in [(4.0, False), (1.082, True)]:
        metrics = [{"mean-squared-update-norm": mean}]
        received = Received(RoundInProgress({}, reading), stats, [1], metrics, [0.0])
        assert SecureNorms().aggregate(received, stats, {}).stats.sq_norm == 2 * mean
        assert any("a client cut its number" in line for line in logged) == warned


def test_two_failures_of_one_text_are_two():
    proxies = [SimpleNamespace(node_id=i, cid=str(i)) for i in range(2)]
    strategy = legacy.FedAvg(initial_parameters=ndarrays_to_parameters([np.zeros(2)]))
    results = [
        (x, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([np.ones(2)]), 1, {}))
        for x in proxies
    ]
    _, metrics = strategy.aggregate_fit(1, results, [RuntimeError("x"), RuntimeError("x")])
    assert metrics["num-failures"] == 2


def texts(message):
    """All bytes of a message; arrays as their data."""
    if message.has_error():
        return str(message.error.reason).encode()
    parts = []
    for record in message.content.values():
        values = record.values()
        parts += [x.data for x in values] if isinstance(record, ArrayRecord) else flat(values)
    return b"|".join(parts)


def flat(values):
    for value in values:
        for x in value if isinstance(value, list) else [value]:
            yield x if isinstance(x, bytes) else np.float64(x).tobytes() if is_number(x) else b""


def is_number(x):
    return isinstance(x, int | float)


def shown(result):
    """Which of the secrets of each client are in what the server received."""
    _, _, squares = closed_form()
    found = set()
    for p in range(NUM_CLIENTS):
        delta = update(p, 1.0)[0]
        secrets = {
            "model": FIRST[0] + delta,
            "update": delta,
            "squared norm": squares[p : p + 1],
            "norm": squares[p : p + 1] ** 0.5,
            "what travels": squares[p : p + 1] / 10.0,
        }
        found |= {
            name
            for name, values in secrets.items()
            for dtype in (np.float64, np.float32)
            for x in values[:50].astype(dtype)
            if x.tobytes() in result.everything
        }
    return found


def test_the_server_receives_no_plain_update_and_no_norm():
    result = once(secure=True)
    assert "model" in shown(once(mods=()))  # the search finds what is there
    assert not shown(result)
    assert len(result.received) == 4 * NUM_CLIENTS
    masked = [x for x in result.received if "fitres.parameters" in x.content]
    assert len(masked) == NUM_CLIENTS
    vectors = {}
    for message in masked:
        assert not message.content["fitres.parameters"]
        arrays = list(map(bytes_to_ndarray, message.content["secaggplus_configs"]["masked_params"]))
        weight, model, scalar, count, norms = arrays
        assert (weight.size, model.size, scalar.size, count.size) == (1, SIZE, 1, 1)
        assert norms.size == NUM_COPIES
        assert len(set(norms.tolist())) == NUM_COPIES  # a mask of its own on each copy
        vectors[message.metadata.src_node_id] = whole = np.concatenate([model, norms]) / 2**32
        # Uniform in [0, 1): mean 1/2 and variance 1/12, within five deviations.
        assert abs(whole.mean() - 0.5) < 5 * (1 / 12 / whole.size) ** 0.5
        assert abs(whole.var() - 1 / 12) < 5 * (1 / 180 / whole.size) ** 0.5
    assert len(vectors) == NUM_CLIENTS


def test_examples_and_metrics_travel_in_the_clear():
    masked = [x for x in once(secure=True).received if "fitres.parameters" in x.content]
    for message in masked:
        p, content = message.metadata.src_node_id - 2, message.content
        assert content["fitres.num_examples"]["num_examples"] == 1 + p
        assert content["fitres.metrics"]["accuracy"] == 0.25 * p
        assert all(isinstance(x, ConfigRecord) for x in content.config_records.values())
