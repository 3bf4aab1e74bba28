"""Flower apps in which one import makes FedExP of FedAvg; these and our own under ``flwr run``.

A run takes a dozen seconds of processor time, nearly all of it imports in six processes. So there
are three, on one SuperLink and one Ray: our own app, one of the newer and one of the older API.
"""

import re
import shutil
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_disk
from safetensors.numpy import load_file
from simulation_superlink import flwr, simulation_superlink, statuses

from fedexp.config import Config
from fedexp.runs.folder import begin
from fedexp.runs.study import Study
from fedexp.simulation import SerialGrid
from fedexp.simulation.faults import Faults
from fedexp.simulation.grid import RUN_ID
from fedexp.strategies.sampling import sample

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
APPS = ("pytorch_app", "numpyclient_app", "sklearn_app")
NODES = 4
SIZE = "num-supernodes={} client-resources-num-cpus=1"
LINE = re.compile(r"round (\d+): server step ([\d.]+), accuracy ([\d.]+)")
CHANGED = re.compile(r"^# was: (from flwr.* import FedAvg)\n(from fedexp.* import FedExP.*)$", re.M)


def rounds(text):
    """Of each round that an app printed: its number, the server's step and the accuracy."""
    return [tuple(map(float, found)) for found in LINE.findall(text)]


def description(name):
    return tomllib.loads((EXAMPLES / name / "pyproject.toml").read_text(encoding="utf-8"))


def contents():
    return {path: path.read_bytes() for name in APPS for path in files(EXAMPLES / name)}


def files(folder):
    """But what Python compiles by itself."""
    return [x for x in folder.rglob("*") if x.is_file() and x.parent.name != "__pycache__"]


SECURE_NODES = NODES + 1  # one of which drops out
BLOCK = re.compile(r"<!-- (\w+) -->\n```python\n(.*?)```", re.S)


def secure_app(folder, secure=True):
    """The app of the older API with what the document on secure aggregation changes in it.

    One of its clients drops out; its changes under ``secure=False`` are no more than that.
    """
    shutil.copytree(EXAMPLES / "numpyclient_app", folder)
    new = dict(BLOCK.findall((ROOT / "docs" / "secure-aggregation.md").read_text("utf-8")))
    changes = {
        "pyproject.toml": [('name = "numpy-digits"', 'name = "secure-digits"')],
        "numpy_digits/client_app.py": [
            ("self.steps = steps", f"self.steps = 1 / (partition_id < {NODES}) and steps"),
        ],
        "numpy_digits/server_app.py": [
            ("PrintingFedAvg(\n", f"PrintingFedAvg(\n        min_fit_clients={SECURE_NODES},\n")
        ],
    }
    if secure:
        changes["numpy_digits/client_app.py"].append(
            ("app = ClientApp(client_fn=client_fn)\n", new["client"])
        )
        changes["numpy_digits/server_app.py"] += [
            ("app = ServerApp(server_fn=server_fn)\n", new["server"]),
            ("PrintingFedAvg(\n", "PrintingFedAvg(\n        secure=True,\n"),
        ]
    for name, pairs in changes.items():
        text = (folder / name).read_text("utf-8")
        for was, is_now in pairs:
            assert text.count(was) == 1
            text = text.replace(was, is_now)
        (folder / name).write_text(text, "utf-8")
    return folder


ORDERED = "drop=0.29, nan=0.05, garbage=0.16, scale=0.14, crash=0.07"
DEVICES = "local-steps=uniform(5, 9)"
FAULTS = f"faults='{ORDERED}' client-profiles='{DEVICES}'"


@pytest.fixture(scope="module")
def ray_address():
    """One Ray for all runs: each would start one of its own, in eight processes."""
    ray = pytest.importorskip("ray")
    from fedexp.simulation.ray import cluster  # noqa: F401  it sets what Ray reads
    from fedexp.simulation.ray.private import without_idle_processes

    with without_idle_processes(False):
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def under_flwr(tmp_path_factory, ray_address):
    """What each app printed under ``flwr run``, and how its run ended."""
    before, out = contents(), tmp_path_factory.mktemp("out")
    own = f"num-server-rounds=3 fraction-train=0.5 out='{out}'"
    runs = {
        "sklearn_app": (EXAMPLES / "sklearn_app", NODES, ""),
        "secure": (secure_app(tmp_path_factory.mktemp("secure") / "app"), SECURE_NODES, ""),
        "own": (ROOT / "flower_app", NODES, f"{own} {FAULTS}"),
    }
    folder = tmp_path_factory.mktemp("flower")
    with simulation_superlink(folder, RAY_ADDRESS=ray_address) as env:

        def answer(run):
            app, nodes, config = run
            given = ["--federation-config", SIZE.format(nodes), *(["-c", config] if config else [])]
            ended = flwr(env, "run", app, "--stream", *given)
            return ended.stdout + ended.stderr

        with ThreadPoolExecutor(2) as pool:  # one waits while the other starts
            printed = dict(zip(runs, pool.map(answer, runs.values()), strict=True))
        ended = statuses(env)
    assert contents() == before  # a run leaves nothing in the examples
    titles = {name: description(app)["project"]["name"] for name, (app, *_) in runs.items()}
    return {name: (printed[name], ended.get(title)) for name, title in titles.items()} | {
        "out": out
    }


@pytest.fixture
def app(request, tmp_path, monkeypatch):
    """A function that loads an app, with the import as it is or as it was."""

    def load(name, was=False, make=None):
        folder = tmp_path / name
        if make:
            make(folder)
        else:
            shutil.copytree(EXAMPLES / name, folder)
        server = next(folder.glob("*/server_app.py"))
        if was:
            server.write_text(CHANGED.sub(r"\1", server.read_text()))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.syspath_prepend(folder)
        package = server.parent.name
        forget(package)  # of another folder
        request.addfinalizer(lambda: forget(package))
        parts = ("server_app", "client_app", "task")
        return SimpleNamespace(**{part: import_module(f"{package}.{part}") for part in parts})

    return load


def forget(package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def run(app, name, nodes=NODES):
    config = description(name)["tool"]["flwr"]["app"]["config"]
    with SerialGrid(app.client_app.app, nodes, run_config=config) as grid:
        context = Context(RUN_ID, 1, {}, RecordDict(), config)
        app.server_app.app(grid=grid, context=context)


@pytest.mark.parametrize("name", APPS)
def test_one_import_is_all_that_changed(name):
    source = {path.name: path.read_text() for path in (EXAMPLES / name).rglob("*.py")}
    assert {"client_app.py", "server_app.py", "task.py"} <= source.keys()
    assert len(CHANGED.findall(source["server_app.py"])) == 1
    assert sum(text.lower().count("fedexp") for text in source.values()) == 2  # both in that line


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own
@pytest.mark.parametrize("name", APPS)
def test_an_app_is_packed_and_trains(app, name, capsys):
    assert build_fab_from_disk(EXAMPLES / name)
    run(app(name), name)
    found = rounds(capsys.readouterr().out)
    assert [number for number, _, _ in found] == [1, 2, 3]
    assert all(step >= 1 for _, step, _ in found)
    assert found[-1][2] > 0.3  # three times what guessing one of ten digits gives


@pytest.mark.deploy
def test_flwr_run_gives_what_the_serial_grid_gives(under_flwr, app, capsys):
    printed, status = under_flwr["sklearn_app"]  # which draws nothing
    assert status == "finished:completed", printed[-3000:]
    run(app("sklearn_app"), "sklearn_app")
    ours = rounds(capsys.readouterr().out)
    assert max(step for _, step, _ in ours) > 1
    assert np.asarray(rounds(printed)) == pytest.approx(np.asarray(ours), abs=0.01)


@pytest.mark.deploy
def test_flwr_run_trains_our_own_app_to_the_model_of_the_serial_grid(under_flwr, tmp_path):
    printed, status = under_flwr["own"]
    assert status == "finished:completed", printed[-3000:]
    theirs = load_file(under_flwr["out"] / "fedexp" / "model.safetensors")

    config = Config(
        strategy="fedexp",
        num_clients=NODES,
        num_server_rounds=3,
        fraction_train=0.5,
        engine="serial",
        robust=True,
        faults=ORDERED,
        client_profiles=DEVICES,
    )
    faults = Faults.of(ORDERED)
    cohorts = {r: sample(range(NODES), 2, seed=0, server_round=r, use="train") for r in (1, 2, 3)}
    ordered = {faults.at(0, r, client) for r, cohort in cohorts.items() for client in cohort}
    assert ordered == {"", "nan", "scale", "crash"}
    begin(config, tmp_path / "serial")
    Study(config, {"fedexp": "fedexp"}, root=tmp_path / "serial").run()
    ours = load_file(tmp_path / "serial" / "fedexp" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name in ours:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-4, atol=1e-6)


@pytest.fixture
def plain_rounds(app, capsys):
    """Rounds of the app without secure aggregation, of which one client drops out."""
    loaded = app("plain", make=partial(secure_app, secure=False))
    run(loaded, "numpyclient_app", SECURE_NODES)
    return np.asarray(rounds(capsys.readouterr().out))


def test_the_lines_of_the_document_switch_secure_aggregation_on(app, capsys, plain_rounds, logged):
    run(app("secured", make=secure_app), "numpyclient_app", SECURE_NODES)
    assert np.asarray(rounds(capsys.readouterr().out)) == pytest.approx(plain_rounds, abs=2e-3)
    assert plain_rounds[:, 1].max() > 1
    assert "Secure aggregation completed." in logged
    assert sum("did not come through the secure aggregation" in line for line in logged) == 3


@pytest.mark.deploy
def test_flwr_run_under_secure_aggregation_gives_what_a_plain_run_gives(under_flwr, plain_rounds):
    printed, status = under_flwr["secure"]
    assert status == "finished:completed", printed[-3000:]
    assert np.asarray(rounds(printed)) == pytest.approx(plain_rounds, abs=2e-3)
    assert "Secure aggregation completed." in printed


@pytest.mark.parametrize("name", APPS)
def test_with_the_import_as_it_was_every_step_is_1(app, name, capsys):
    run(app(name, was=True), name)
    assert [step for _, step, _ in rounds(capsys.readouterr().out)] == [1, 1, 1]


def reference(task, config, extrapolates):
    """The models and the steps of three rounds, written as the papers write them."""
    data = [task.load_data(p, NODES)[0] for p in range(NODES)]
    sizes = np.array([len(labels) for _, labels in data])
    w, models, steps = task.initial_parameters(), [], []
    for _ in range(3):
        local = [
            task.train(w, *own, config["local-steps"], config["learning-rate"]) for own in data
        ]
        updates = [
            np.concatenate([(a - b).ravel() for a, b in zip(w, x, strict=True)]) for x in local
        ]
        mean = np.average(updates, axis=0, weights=sizes)
        squares = np.average([u @ u for u in updates], weights=sizes)
        eta = max(1.0, squares / (2 * (mean @ mean + 1e-3))) if extrapolates else 1.0
        parts = np.split(eta * mean, [w[0].size])
        w = [x - part.reshape(x.shape) for x, part in zip(w, parts, strict=True)]
        models.append(w)
        steps.append(eta)
    return models, steps


@pytest.mark.parametrize("was", [False, True], ids=["FedExP", "FedAvg"])
def test_the_models_are_those_of_the_papers(app, was, capsys, monkeypatch):
    loaded, tested = app("numpyclient_app", was), []
    test = loaded.client_app.test
    monkeypatch.setattr(
        loaded.client_app, "test", lambda model, *data: tested.append(model) or test(model, *data)
    )
    run(loaded, "numpyclient_app")
    config = description("numpyclient_app")["tool"]["flwr"]["app"]["config"]
    models, steps = reference(loaded.task, config, extrapolates=not was)
    assert [step for _, step, _ in rounds(capsys.readouterr().out)] == pytest.approx(
        steps, abs=6e-4
    )
    for ours, theirs in zip(tested[::NODES], models, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
