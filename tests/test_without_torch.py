"""Without PyTorch and Ray all that needs neither works, and all else says what to install."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fedexp
from tests.without_torch import trained

ROOT = Path(__file__).parents[1]
RAY = "ray is not installed. Run: pip install 'fedexp[simulation]'"
TORCH = "torch is not installed. Run: pip install 'fedexp[torch]'"
SIMULATION = "torch is not installed. Run: pip install 'fedexp[simulation]'"
# Public names that work with NumPy alone; None where all of a package do.
WORKS = {
    "": {"__version__", "load_run", "load_runs"},
    ".clients": {"ClientSettings", "LocalTraining"},
    ".datasets": {
        *(
            "PARTITIONERS",
            "Partition",
            "Parts",
            "by_key",
            "classes_per_client",
            "dirichlet",
            "dirichlet_equal",
        ),
        *("heterogeneity", "iid", "label_counts", "plot", "quantity_dirichlet"),
        *("quantity_lognormal", "shards", "split"),
    },
    ".augmentation": {
        *("Augmentation", "Moments", "PowerLaw", "ProjectionMoments", "Schedule", "ScheduleCheck"),
        *(
            "augmentations_of",
            "augmented",
            "batch_noise_step",
            "check_schedule",
            "constant",
            "min_norm",
            "noise_step",
        ),
        *("projected", "projection_fixed_point", "projection_step", "ridge", "schedule_report"),
        *("unseen_component", "unseen_factor"),
    },
    ".hypergradients": set(),
    ".learned_steps": {"expected_errors", "marchenko_pastur"},
    ".runs": None,
    ".simulation": {"SerialGrid"},
    ".strategies": None,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "a"
    settings = {"num_clients": 10, "local_steps": 1, "engine": "serial", "out": folder}
    return fedexp.simulate(strategy="fedexp", num_server_rounds=2, **settings)


@pytest.fixture(scope="module")
def found(run):
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "without_torch.py", run.folder.parent],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_nothing_imports_them(found):
    assert found["loaded"] == []


@pytest.mark.parametrize("package", WORKS)
def test_a_name_works_or_says_what_to_install(found, package):
    names = found["packages"][package]["names"]
    works = set(names) if WORKS[package] is None else WORKS[package]
    assert {name for name, line in names.items() if line == "nothing"} == works
    line = {"": SIMULATION, ".simulation": RAY}.get(package, TORCH)
    assert {names[name] for name in names.keys() - works} <= {line}


@pytest.mark.parametrize("package", WORKS)
def test_dir_shows_the_names_that_load_later(found, package):
    seen = found["packages"][package]
    assert set(seen["names"]) <= set(seen["dir"])


@pytest.mark.parametrize("vectorize", ["off", "auto"])
def test_clients_of_numpy_train_to_the_same_bits(found, vectorize):
    assert found["arrays"][vectorize] == trained(vectorize)


def test_partitions_are_made_of_labels_in_numpy(found):
    assert found["sizes"] == [10, 10, 10, 10]


def test_a_run_is_read_but_its_model_needs_torch(found, run):
    assert found["metrics"] == json.loads(json.dumps(run.metrics))
    assert found["said"]["model"] == TORCH


def test_what_needs_torch_says_so_in_a_line(found):
    assert found["said"]["app"] == SIMULATION
    assert found["said"]["vectorize"] == TORCH
    assert found["said"]["star"] == TORCH


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--help", "fedexp simulate"),
        ("--version", fedexp.__version__),
        ("doctor", "GPUs unknown"),
        ("list strategies", "nesterovexp"),
        ("list partitioners", "dirichlet"),
        ("report", "report.html"),
    ],
)
def test_commands_that_need_no_torch_work(found, words, text):
    code, out, err = found["commands"][words]
    assert (code, err) == (0, "")
    assert text in out


@pytest.mark.parametrize(
    "words", ["simulate", "partition", "resume", "list", "list models", "help simulate"]
)
def test_commands_that_need_torch_say_so_in_a_line_with_code_2(found, words):
    code, out, err = found["commands"][words]
    assert code == 2
    assert (out, err) == ("", f"fedexp: error: {SIMULATION}\n")
