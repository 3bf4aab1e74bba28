import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedexp.config import Config
from fedexp.runs import folder as run_folder
from fedexp.runs.command import strategies_of, summaries_of
from fedexp.runs.folder import begin, claimed, clear, is_run, locked
from fedexp.runs.study import Study

SMALL = {
    **{"strategy": "fedavg", "num_server_rounds": 1, "num_clients": 4, "local_steps": 1},
    "engine": "serial",
}


def small(**fields):
    return Config(**{**SMALL, **fields})


def names(folder):
    return sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*"))


@pytest.fixture
def old_run(tmp_path):
    folder = tmp_path / "old"
    config = small(out=str(folder), strategy="fedavg,fedexp")
    with claimed(config):
        begin(config, folder)
        Study(config, strategies_of(config), root=folder).run()
    return folder


def test_only_what_a_run_made_goes_and_all_of_it(old_run):
    assert is_run(old_run)
    (old_run / "notes.txt").write_text("mine")
    (old_run / "fedavg" / "model-of-mine.safetensors").write_text("mine")
    (old_run / "fedavg" / ".model.safetensors.123").write_text("left by a crash")
    (old_run / ".config.toml.swp").write_text("of an editor")
    (old_run / "data").mkdir()
    clear(old_run)
    foreign = [
        ".config.toml.swp",
        "data",
        "fedavg",
        "fedavg/model-of-mine.safetensors",
        "notes.txt",
    ]
    assert names(old_run) == sorted([".lock", *foreign])


def test_a_link_to_another_folder_is_not_followed(old_run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (old_run / "fedavg").rename(elsewhere)
    (old_run / "fedavg").symlink_to(elsewhere)
    clear(old_run)
    assert (elsewhere / "model.safetensors").exists()


FOREIGN = {
    "another program's": {"config.toml": 'title = "my site"\n'},
    "no environment": {"config.toml": Config().to_toml()},
    "another environment": {"config.toml": Config().to_toml(), "environment.json": "[]"},
    "an environment of other packages": {
        "config.toml": Config().to_toml(),
        "environment.json": '{"packages": {"django": "5"}}',
    },
    "no configuration": {"environment.json": '{"packages": {"fedexp": "1"}}'},
    "an empty one": {"config.toml": "", "environment.json": '{"packages": {"fedexp": "1"}}'},
    "not text": {"config.toml": b"\xff\xfe", "environment.json": "{"},
    "a plain file": {"thesis.txt": "precious"},
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_provably_a_run_is_refused_and_left_as_it_is(
    kind, overwrite, tmp_path
):
    for name, text in FOREIGN[kind].items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    before = names(tmp_path)
    with (
        pytest.raises(ValueError, match=r"not every file is known to be a run's\. Name another"),
        claimed(small(out=str(tmp_path)), overwrite=overwrite),
    ):
        pass
    with pytest.raises(ValueError, match="not every file"):
        begin(small(), tmp_path)
    assert names(tmp_path) == before


def test_an_old_run_stays_unless_it_is_to_be_overwritten(old_run):
    config = small(out=str(old_run), seed=5)
    with pytest.raises(ValueError, match="add --overwrite"), claimed(config):
        pass
    before = names(old_run)
    with claimed(config, overwrite=True):
        assert names(old_run) == before  # until begin, since the new run may still be refused
        begin(config, old_run)
    assert "fedexp" not in names(old_run)
    assert Config.of(Config.read(old_run / "config.toml")) == config


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_held_by_one_run_at_a_time(overwrite, tmp_path):
    config = small(out=str(tmp_path / "new"))
    with claimed(config) as folder:
        with pytest.raises(ValueError, match="another run is using it"), claimed(config):
            pass
        begin(config, folder)
        with (
            pytest.raises(ValueError, match=r"another run is using it|add --overwrite"),
            claimed(config, overwrite=overwrite),
        ):
            pass
        with pytest.raises(ValueError, match="another run is using it"), locked(folder):
            pass
    with locked(folder):  # its end gives it free
        pass


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from fedexp.runs.folder import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run is using it"), locked(tmp_path):
            pass
    finally:
        child.kill()
        child.communicate()
    with locked(tmp_path):
        pass


def test_a_folder_that_was_made_for_a_run_that_did_not_begin_goes_again(tmp_path):
    with pytest.raises(KeyError), claimed(small(out=str(tmp_path / "new"))):
        raise KeyError
    assert names(tmp_path) == []
    (tmp_path / "empty").mkdir()  # the user's own stays
    with pytest.raises(KeyError), claimed(small(out=str(tmp_path / "empty"))):
        raise KeyError
    assert (tmp_path / "empty").exists()


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-120000")
    config = small(name="x")
    with claimed(config) as a, claimed(config) as b, claimed(config) as c:
        found = [folder.as_posix() for folder in (a, b, c)]
    stem = "runs/20260101-120000-x"
    assert found == [stem, f"{stem}-2", f"{stem}-3"]


@pytest.mark.parametrize("name", ["../../x", "a/b", "a\\b", "..", ".", "/etc", "a\0b"])
def test_a_name_stays_in_its_folder(name):
    with pytest.raises(ValueError, match="no slash") as caught:
        Config.of({"name": name})
    assert "\n" not in str(caught.value)


def test_the_reason_why_there_is_no_folder_is_the_systems_own(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")

    def said(out):
        with pytest.raises(ValueError, match="run folder") as caught, claimed(small(out=str(out))):
            pass
        return str(caught.value)

    assert "Not a directory" in said(tmp_path / "file")
    assert "Not a directory" in said(tmp_path / "file" / "below")
    assert "File name too long" in said(tmp_path / ("x" * 300))
    for number in (13, 28, 30):  # EACCES, ENOSPC, EROFS: as root they do not come by themselves

        def refuse(*_args, number=number, **_kwargs):
            raise OSError(
                number, {13: "Permission denied", 28: "No space", 30: "Read-only"}[number]
            )

        monkeypatch.setattr(Path, "mkdir", refuse)
        reason = said(tmp_path / "x")
        assert {13: "Permission denied", 28: "No space", 30: "Read-only"}[number] in reason
        assert "\n" not in reason


def test_a_summary_is_believed_only_when_a_run_is_resumed(old_run):
    summary = old_run / "fedavg" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "final-accuracy": 1.0}))
    config = Config.of(Config.read(old_run / "config.toml"))
    for resume in (True, False):
        outcomes = Study(config, strategies_of(config), root=old_run, resume=resume).run()
        assert (summaries_of(outcomes)["fedavg"]["final-accuracy"] == 1.0) == resume


def test_where_there_are_no_locks_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "fcntl", None)
    with locked(tmp_path):
        pass
