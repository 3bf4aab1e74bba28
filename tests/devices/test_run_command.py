"""How `fedexp run` ends, whatever became of the run and its folder."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fedexp.config import Config
from fedexp.devices import run
from fedexp.devices.run_command import _end
from fedexp.devices.submit import RunStatus

UNIT = SimpleNamespace(folder="fedexp")


def ended(sub_status, details="", folder=Path("out")):
    """A run that ended so."""
    status = RunStatus("finished", sub_status, details, bytes_sent=0, bytes_received=0)
    return SimpleNamespace(watch=lambda on_row: status, folder=folder, unit=UNIT)


def test_a_folder_that_cannot_be_written_to_is_one_line_and_the_run_has_completed(
    monkeypatch, capsys
):
    def full(going, config):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "finished", full)
    _end(ended("completed"), Config(), "again")
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "no report was written: No space left on device" in said.err
    assert "Report" not in said.out


@pytest.mark.parametrize(
    ("summary", "line"),
    [
        ('{"stopped": "reached the test accuracy 0.8 in round 3"}', "The strategy reached the"),
        (None, "--max-minutes 5 are over. Go on with: again"),
        ("{}", ""),
    ],
)
def test_a_run_that_ended_early_says_why_and_whether_it_goes_on(
    summary, line, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "finished", lambda going, config: "")
    if summary:
        (tmp_path / "fedexp").mkdir()
        (tmp_path / "fedexp" / "summary.json").write_text(summary)
    _end(ended("completed", folder=tmp_path), Config(max_minutes=5), "again")
    said = capsys.readouterr().out
    assert said.startswith(line)
    assert bool(said) == bool(line)


@pytest.mark.parametrize("text", ["dp-sgd", "fedexp+dp-sgd(steps=9)"])
def test_a_run_of_devices_that_have_budgets_does_not_begin_again(text, monkeypatch, tmp_path):
    named = {"strategy": text} if "+" in text else {"strategy": "fedavg", "local_optimizer": text}
    config = Config(**named)
    monkeypatch.setattr(run.submit.Link, "to", lambda site: None)
    monkeypatch.setattr(run, "_still_there", lambda link, before: 7)
    assert run.submitted(None, config, tmp_path, resume=True).run_id == 7  # it goes on
    monkeypatch.setattr(run, "_still_there", lambda link, before: 0)
    with pytest.raises(ValueError, match="begin with a whole privacy budget"):
        run.submitted(None, config, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("sub_status", "details", "code", "line"),
    [
        ("failed", "ValueError: the model is NaN.", 1, "the model is NaN. Go on with: again"),
        ("failed", "", 1, "Flower does not say why"),
        ("stopped", "", 3, "the run was stopped"),
        ("failed", "1 of 3 devices came within 5 s.", 4, "1 of 3 devices"),
    ],
)
def test_a_run_that_did_not_complete_has_its_own_code(
    sub_status, details, code, line, monkeypatch, capsys
):
    monkeypatch.setattr(run, "finished", lambda going, config: "")
    with pytest.raises(SystemExit) as end:
        _end(ended(sub_status, details), Config(), "again")
    assert end.value.code == code
    assert line in capsys.readouterr().err
