import io

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.client import ClientApp, NumPyClient
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import (
    Server,
    ServerApp,
    ServerAppComponents,
    ServerConfig,
    SimpleClientManager,
)
from flwr.server import strategy as flower
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import DifferentialPrivacyServerSideFixedClipping
from test_extensions import FedDyn
from test_presets import grid_of, run

from fedexp.records import from_record
from fedexp.simulation import SerialGrid
from fedexp.simulation.grid import RUN_ID
from fedexp.strategies import STRATEGIES, FixedClip, legacy
from fedexp.strategies.extensions import Extension, Sent

FIRST = {"w": np.linspace(-1, 1, 6).reshape(2, 3), "b": np.asarray(0.5)}
MOMENTUM = {"server_momentum": 0.9, "server_learning_rate": 0.5}
TWINS = [name for name in vars(legacy) if f"{name.lower()}" in STRATEGIES]


def trained(p, server_round, arrays):
    rng = np.random.default_rng([p, server_round])
    return [np.asarray(x + rng.normal(size=x.shape)) for x in arrays]


class Client(ClientProxy):
    """A client of the older API, in this process."""

    def __init__(self, p, broken=False):
        super().__init__(str(p))
        self.p, self.node_id, self.broken, self.configs = p, p, broken, []

    def fit(self, ins, timeout, group_id):
        self.configs.append(ins.config)
        arrays = trained(self.p, int(group_id), parameters_to_ndarrays(ins.parameters))
        if self.broken:
            arrays[0][0] = np.nan
        metrics = {"loss": 1.0, "final_loss": 1.0, "note": "text"}
        parameters = ndarrays_to_parameters(arrays)
        return FitRes(Status(Code.OK, ""), parameters, self.p % 3 + 1, metrics)

    def get_properties(self, ins, timeout, group_id):
        raise NotImplementedError

    get_parameters = evaluate = reconnect = get_properties


def fitted(make, num_rounds=4, num_clients=4, broken=(), **kwargs):
    """Flower's own server loop."""
    manager = SimpleClientManager()
    clients = [Client(p, p in broken) for p in range(num_clients)]
    for client in clients:
        manager.register(client)
    settings = {
        "fraction_evaluate": 0.0,
        "initial_parameters": ndarrays_to_parameters(list(FIRST.values())),
    }
    strategy = make(**settings | kwargs)
    aggregate = strategy.aggregate_fit
    # Flower's threads end in any order, and Adam makes much of how a sum of nearly 0 is rounded.
    strategy.aggregate_fit = lambda server_round, results, failures: aggregate(
        server_round, sorted(results, key=lambda result: result[0].p), failures
    )
    server = Server(client_manager=manager, strategy=strategy)
    history, _ = server.fit(num_rounds, timeout=None)
    return parameters_to_ndarrays(server.parameters), history, clients


def test_there_is_a_twin_of_every_strategy_whose_clients_report_no_more():
    more = {"scaffold", "scaffoldexp", "fednova", "feddyn"}
    assert {name.lower() for name in TWINS} == STRATEGIES.keys() - more


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_gives_the_same_model_as_the_strategy(name):
    def client(message, context):
        arrays = from_record(message.content.array_records["arrays"])
        server_round = message.content.config_records["config"]["server-round"]
        new = trained(context.node_config["partition-id"], server_round, arrays.values())
        return dict(zip(arrays, new, strict=True))

    result = run(
        STRATEGIES[name.lower()].strategy(fraction_evaluate=0.0), grid_of(client), 4, FIRST
    )
    cls = getattr(legacy, name)
    newer = {"tau": 1e-3, "flower_compatible": False} if cls.defaults else {}
    ours, history, _ = fitted(cls, **newer)
    for x, y in zip(ours, from_record(result.arrays).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    etas = [value for _, value in history.metrics_distributed_fit["server-step-size"]]
    newer = [m["server-step-size"] for m in result.train_metrics_clientapp.values()]
    np.testing.assert_allclose(etas, newer)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (legacy.FedAvg, flower.FedAvg),
        (legacy.FedAvgM, flower.FedAvgM),
        (
            lambda **kw: legacy.FedAvgM(**MOMENTUM, **kw),
            lambda **kw: flower.FedAvgM(**MOMENTUM, **kw),
        ),
        (legacy.FedAdagrad, flower.FedAdagrad),
        (legacy.FedAdam, flower.FedAdam),
        (legacy.FedYogi, flower.FedYogi),
        (
            lambda **kw: legacy.FedAdam(tau=1e-4, eta_l=0.2, **kw),
            lambda **kw: flower.FedAdam(tau=1e-4, eta_l=0.2, **kw),
        ),
        (
            lambda **kw: legacy.FedProx(proximal_mu=0.5, **kw),
            lambda **kw: flower.FedProx(proximal_mu=0.5, **kw),
        ),
    ],
)
def test_the_numbers_are_flowers(ours, theirs):
    # Flower's older FedAdam corrects its bias with server_round + 1 as well.
    for x, y in zip(fitted(ours)[0], fitted(theirs)[0], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_a_client_with_a_bad_result_is_left_out_and_counted():
    with_it, history, _ = fitted(legacy.FedExP, 1, 4, broken={3}, min_fit_clients=4)
    without, _, _ = fitted(legacy.FedExP, 1, 3)
    for x, y in zip(with_it, without, strict=True):
        np.testing.assert_array_equal(x, y)
    assert history.metrics_distributed_fit["num-failures"] == [(1, 1)]


@pytest.mark.parametrize("merges", [True, False])
def test_an_extension_does_the_same_as_in_the_newer_api(merges):
    def client(message, context):
        arrays = from_record(message.content["arrays"])
        server_round = message.content["config"]["server-round"]
        new = trained(context.node_config["partition-id"], server_round, arrays.values())
        return dict(zip(arrays, new, strict=True))

    options = {"extensions": [FedDyn(0.1)], "weighted": False, "fraction_evaluate": 0.0}
    result = run(STRATEGIES["fedavg"].strategy(**options), grid_of(client, 4, merges), 4, FIRST)
    ours, _, _ = fitted(legacy.FedAvg, **options)
    for x, y in zip(ours, from_record(result.arrays).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


class Sending(Extension):
    """Sends the last round's number, and in round 3 an array."""

    def send(self, round_, state):
        known = state.get("last", {"round": np.zeros(())})
        arrays = {"beside": {"x": np.zeros(1)}} if round_.server_round == 3 else {}
        entry = {"last": {"round": np.asarray(float(round_.server_round))}}
        return Sent({"last-round": float(known["round"])}, arrays, entry)


def test_settings_of_an_extension_reach_the_clients_with_underscores():
    _, _, clients = fitted(legacy.FedExP, 2, extensions=[Sending()])
    assert [config["last_round"] for config in clients[0].configs] == [0.0, 1.0]


def test_an_array_beside_the_model_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"no beside beside it. Use fedexp.strategies"):
        fitted(legacy.FedExP, 3, extensions=[Sending()])
    with pytest.raises(ValueError, match="no control-variate beside it"):
        fitted(legacy.FedAvg, 1, control_variates=True)


class Logging(legacy.FedExP):
    """Looks at what our step returns, and leaves it as it is."""

    def aggregate_fit(self, server_round, results, failures):
        self.seen = super().aggregate_fit(server_round, results, failures)
        return self.seen


class Rounded(legacy.FedExP):
    """Changes what our step returns."""

    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        arrays = [x.round(2) for x in parameters_to_ndarrays(parameters)]
        return ndarrays_to_parameters(arrays), metrics


class Own(legacy.FedExP):
    """Takes a step of its own and never calls ours."""

    def aggregate_fit(self, server_round, results, failures):
        return ndarrays_to_parameters([np.full(x.shape, server_round) for x in FIRST.values()]), {}


def test_a_subclass_is_guarded_if_it_calls_our_step():
    assert len(fitted(Logging, 2)[0]) == 2
    assert fitted(Own, 3)[0][1] == 3
    with pytest.raises(ValueError, match="the model was changed after the server step"):
        fitted(Rounded, 2)


def petabytes():
    head = ndarrays_to_parameters([FIRST["w"]]).tensors[0]
    return head.replace(b"(2, 3), }            ", b"(2, 3000000000000), }")


def zipped():
    stream = io.BytesIO()
    np.savez(stream, FIRST["w"])
    return stream.getvalue()


@pytest.mark.parametrize("data", [petabytes, zipped, lambda: b"PK\x05\x06" + b"\0" * 18])
def test_bytes_that_are_no_array_are_refused_before_they_take_memory(data, monkeypatch, logged):
    class Forging(Client):
        def fit(self, ins, timeout, group_id):
            result = super().fit(ins, timeout, group_id)
            if self.broken:
                result.parameters.tensors[0] = data()
            return result

    without, _, _ = fitted(legacy.FedExP, 1, 3)
    monkeypatch.setitem(globals(), "Client", Forging)
    with_it, history, _ = fitted(legacy.FedExP, 1, 4, broken={3}, min_fit_clients=4)
    for x, y in zip(with_it, without, strict=True):
        np.testing.assert_allclose(x, y)
    assert history.metrics_distributed_fit["num-failures"] == [(1, 1)]
    assert any("array '0' cannot be decoded" in line for line in logged)


def test_settings_and_metrics_go_through_flowers_own_functions():
    _, history, clients = fitted(
        legacy.FedProx,
        1,
        proximal_mu=0.3,
        on_fit_config_fn=lambda server_round: {"round": server_round},
        fit_metrics_aggregation_fn=lambda pairs: {"weight": sum(n for n, _ in pairs)},
    )
    assert clients[0].configs == [{"round": 1, "proximal_mu": 0.3}]
    assert history.metrics_distributed_fit["weight"] == [(1, 1 + 2 + 3 + 1)]


def test_defences_work_here_too():
    _, history, _ = fitted(legacy.FedExP, 1, clip=FixedClip(0.1))
    assert history.metrics_distributed_fit["num-clipped"] == [(1, 4)]


def test_names_tell_buffers_from_weights():
    ours, _, _ = fitted(legacy.FedExP, 1, names=["weight", "running_var"])
    mean = np.average(
        [trained(p, 1, FIRST.values())[1] for p in range(4)], weights=[1, 2, 3, 1], axis=0
    )
    np.testing.assert_allclose(ours[1], mean)
    with pytest.raises(ValueError, match="1 names for 2 arrays"):
        fitted(legacy.FedExP, 1, names=["weight"])


@pytest.mark.parametrize("argument", ["fraction_train", "min_train_nodes", "seed"])
def test_an_argument_of_the_newer_api_is_refused(argument):
    with pytest.raises(ValueError, match=rf"legacy.FedExP\({argument}=1\): no such argument"):
        legacy.FedExP(**{argument: 1})


def test_failures_are_not_accepted_where_flower_was_told_so():
    strategy = legacy.FedExP(accept_failures=False)
    assert strategy.aggregate_fit(1, [], [RuntimeError()]) == (None, {})


class OldProxy(Client):
    """As ``start_server`` has them: a cid alone; metrics of all kinds that Flower allows."""

    def __init__(self, p, broken=False):
        super().__init__(p, broken)
        del self.node_id

    def fit(self, ins, timeout, group_id):
        result = super().fit(ins, timeout, group_id)
        result.metrics |= {"converged": True, "raw": b"x", "big": 2**70}
        return result


@pytest.mark.parametrize("name", TWINS)
def test_clients_of_start_server_and_metrics_of_any_kind_are_taken(name, monkeypatch):
    seen = []

    def of_metrics(pairs):
        seen.append(sorted(n for n, _ in pairs))
        assert all(m["converged"] is True for _, m in pairs)
        return {}

    expected, _, _ = fitted(getattr(legacy, name), 2)
    monkeypatch.setitem(globals(), "Client", OldProxy)
    broken = {"broken": {4}, "num_clients": 5, "min_fit_clients": 5}
    ours, history, _ = fitted(
        getattr(legacy, name), 2, fit_metrics_aggregation_fn=of_metrics, **broken
    )
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    assert history.metrics_distributed_fit["num-failures"] == [(1, 1), (2, 1)]
    assert seen == [[1, 1, 2, 3]] * 2


class NumPyCounts(Client):
    """Counts its examples as NumPy does, and reports nothing else."""

    def fit(self, ins, timeout, group_id):
        result = super().fit(ins, timeout, group_id)
        result.num_examples, result.metrics = np.int64(result.num_examples), None
        return result


def test_counts_of_numpys_no_metrics_and_a_function_that_makes_none_are_as_in_flower(monkeypatch):
    expected, _, _ = fitted(legacy.FedAvg, 2)
    monkeypatch.setitem(globals(), "Client", NumPyCounts)
    ours, history, _ = fitted(legacy.FedAvg, 2, fit_metrics_aggregation_fn=lambda pairs: None)
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    assert history.metrics_distributed_fit["num-clients"] == [(1, 4), (2, 4)]


def test_a_step_that_is_not_finite_leaves_the_model():
    strategy = legacy.FedAvg(server_learning_rate=1e300, min_available_clients=1)
    manager = SimpleClientManager()
    manager.register(Client(1))
    manager.register(Client(2))
    strategy.configure_fit(1, ndarrays_to_parameters([np.zeros(2)]), manager)
    result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([np.full(2, 1e20)]), 1, {})
    with np.errstate(over="ignore"):
        assert strategy.aggregate_fit(1, [(Client(1), result)], []) == (None, {})


def test_a_round_without_results_changes_nothing():
    strategy = legacy.FedExP()
    assert strategy.aggregate_fit(1, [], []) == (None, {})
    assert "Extrapolation" in repr(strategy)


def test_flowers_noise_on_a_long_step_is_refused_before_the_model_is_shown():
    shown = []

    def evaluate_fn(server_round, arrays, config):
        shown.append(server_round)

    def private(make):
        return lambda **kwargs: DifferentialPrivacyServerSideFixedClipping(
            make(evaluate_fn=evaluate_fn, **kwargs), 0.1, 5.0, 4
        )

    with pytest.raises(ValueError, match="too small for the privacy they state"):
        fitted(private(legacy.FedExP), min_fit_clients=4)
    assert shown == [0]
    fitted(private(legacy.FedAvg), min_fit_clients=4)
    assert shown == [0, 0, 1, 2, 3, 4]


class HalfTheWay(NumPyClient):
    """Client ``i`` goes half the way to ``e_i``."""

    def __init__(self, p):
        self.target = np.eye(4)[p]

    def fit(self, parameters, config):
        return [0.5 * (parameters[0] + self.target)], 1, {}


def test_a_numpy_client_app_and_a_server_app_of_the_older_api_run():
    """Under `flwr run` too: see the app of the older API in `test_flower_examples`."""
    # Clients go half the way to e_i from 0: D_i = -e_i/2, so eta = M/2 = 2 and w = 2 mean(e_i/2).
    models = []

    def server_fn(context):
        strategy = legacy.FedExP(
            **{"fraction_fit": 1.0, "fraction_evaluate": 0.0},
            **{"min_fit_clients": 4, "min_available_clients": 4, "epsilon": 0.0},
            initial_parameters=ndarrays_to_parameters([np.zeros(4)]),
            evaluate_fn=lambda server_round, arrays, config: models.append(arrays[0]),
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

    def client_fn(context):
        return HalfTheWay(int(context.node_config["partition-id"])).to_client()

    with SerialGrid(ClientApp(client_fn=client_fn), 4) as grid:
        ServerApp(server_fn=server_fn)(grid=grid, context=Context(RUN_ID, 1, {}, RecordDict(), {}))
    assert len(models) == 3
    np.testing.assert_allclose(models[1], np.full(4, 0.25))
