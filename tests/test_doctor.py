"""``fedexp doctor``: what is there, what is missing, and the exit code that follows."""

import sys
from importlib.metadata import version

import pytest

import fedexp
from fedexp import cli, doctor
from fedexp.doctor import Need


def examined(capsys, *words):
    try:
        cli.main(["doctor", *words])
    except SystemExit as error:
        return error.code, capsys.readouterr().out
    return 0, capsys.readouterr().out


def test_what_is_installed_here_is_enough_and_is_listed(capsys):
    code, text = examined(capsys)
    assert code == 0
    assert f"fedexp {fedexp.__version__}\n  Python {sys.version.split()[0]}\n" in text
    for package in ("flwr", "torch", "numpy"):
        assert f"  {package} {version(package)}\n" in text
    assert " CPUs, " in text


def test_the_packages_are_those_of_the_metadata_with_what_an_extra_of_flower_brings():
    found = {need.name: need for need in doctor.needs()}
    assert found["flwr"].extra == ""
    assert "1.41" in found["flwr"].wanted
    assert found["torch"].extra == "torch"  # the smallest of those that bring it
    assert found["scikit-learn"].extra == "simulation"
    assert found["ray"].extra == "simulation"  # flwr[simulation] needs it
    assert found["ray"].wanted.startswith("==")
    assert "pytest" not in found


@pytest.mark.parametrize(
    ("need", "line"),
    [
        (Need("numpy", ">=2"), f"numpy {version('numpy')}"),
        (
            Need("numpy", "<2"),
            f"numpy {version('numpy')}, needs <2: pip install --upgrade 'fedexp'",
        ),
        (
            Need("no-such-thing", ">=1", "hub"),
            "no-such-thing is missing: pip install --upgrade 'fedexp[hub]'",
        ),
    ],
)
def test_a_package_is_there_or_its_remedy_is(need, line):
    assert need.line() == line


def test_each_extra_is_installed_or_what_it_lacks_is_named(capsys, monkeypatch):
    there = Need("numpy", ">=2")
    lacks = [Need("no-such-thing", "", "large"), Need("rich", "<1", "large")]
    brought = {"": [there], "small": [there], "large": [there, *lacks]}
    monkeypatch.setattr(doctor, "extras", lambda: brought)
    code, text = examined(capsys)
    assert code == 0
    line = "large: lacks no-such-thing, rich. Run: pip install 'fedexp[large]'"
    assert f"\nextras\n  small: installed\n  {line}\n" in text


def test_a_missing_package_is_a_failure_only_if_it_is_always_needed(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "needs", lambda: [Need("no-such-thing", "", "hub")])
    assert examined(capsys)[0] == 0
    monkeypatch.setattr(doctor, "needs", lambda: [Need("no-such-thing", "")])
    assert examined(capsys)[0] == 1


def test_the_data_folder_is_searched_for_the_files_of_each_dataset(tmp_path, capsys):
    from fedexp.datasets import SOURCES

    for file in SOURCES["cifar100"].files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "adult").mkdir()
    (tmp_path / SOURCES["adult"].files[0]).touch()
    _, text = examined(capsys, "--data-dir", str(tmp_path))
    assert "\n  found: cifar100\n" in text
    assert f"\n  adult lacks {SOURCES['adult'].files[1]}" in text
    (line,) = [line for line in text.splitlines() if "emnist-letters" in line]
    assert "www.nist.gov" in line


def test_ray_is_started_only_if_asked_and_its_failure_is_one(capsys, monkeypatch):
    started = []
    monkeypatch.setattr(doctor, "ray", lambda: started.append(1) or "starts")
    assert "not started: add --ray" in examined(capsys)[1]
    assert not started
    assert examined(capsys, "--ray")[0] == 0
    assert started

    def fails():
        raise RuntimeError("RayGrid: Ray does not start: x.")

    monkeypatch.setattr(doctor, "ray", fails)
    code, text = examined(capsys, "--ray")
    assert code == 1
    assert "Ray does not start" in text


@pytest.mark.slow
def test_ray_starts_and_ends_again():
    ray = pytest.importorskip("ray")
    assert doctor.ray() == "starts"
    assert not ray.is_initialized()
