"""Disks that are full or read-only: one line, an exit code, and nothing is lost."""

import json
import resource

import pytest

from benchmarks.harm import small_disk
from fedexp import cli

pytestmark = pytest.mark.usefixtures("undrawn")
FLAGS = [
    *("simulate", "--engine", "serial", "--strategy", "fedexp", "--rounds", "3"),
    *("--num-clients", "6", "--fraction-train", "1", "--local-steps", "1"),
]


def run(*words):
    """The exit code of a command."""
    try:
        cli.main(list(map(str, words)))
    except SystemExit as ended:
        return ended.code
    return 0


def losses(folder):
    lines = (folder / "fedexp" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["test-loss"] for line in lines]


def models(folder):
    return [path.read_bytes() for path in sorted((folder / "fedexp").glob("model*.safetensors"))]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on a disk with room for it."""
    folder = tmp_path_factory.mktemp("whole") / "r"
    assert run(*FLAGS, "--out", folder) == 0
    return folder


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as mounted:
        if mounted is None:
            pytest.skip("this process may not mount a disk of its own")
        yield mounted


def error(capsys):
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("fedexp: error: ")]
    return line


# Room for nothing, for round 1 and its checkpoint, for a second one beside it, and for all but the
# models or the report.
@pytest.mark.parametrize("left", [0, 20_000, 100_000, 250_000, 400_000, 550_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(left, disk, whole, capsys):
    folder = disk.folder / "r"
    disk.fill(left)
    code = run(*FLAGS, "--out", folder)
    if code:
        said = error(capsys)
        assert "No space left on device" in said
    disk.free()
    if (folder / "config.toml").exists():
        assert code in (0, 1)
        assert code == 0 or said.endswith(f"go on with: fedexp resume {folder}")
        assert run("resume", folder) == 0
    else:  # it had not begun
        assert code == 2
        assert run(*FLAGS, "--overwrite", "--out", folder) == 0
    assert losses(folder) == losses(whole)
    assert models(folder) == models(whole)


def test_a_file_that_may_not_grow_is_one_line_and_keeps_the_rounds_before(tmp_path, whole, capsys):
    """As with a quota: the checkpoint is larger than a file may be."""
    folder, before = tmp_path / "r", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        assert run(*FLAGS, "--out", folder) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = error(capsys)
    assert "File too large" in said
    assert said.endswith(f"go on with: fedexp resume {folder}")
    assert run("resume", folder) == 0
    assert models(folder) == models(whole)


def test_a_read_only_folder_is_one_line_and_is_left_as_it_is(disk, whole, capsys):
    folder = disk.folder / "r"
    assert run(*FLAGS, "--max-minutes", "1e-9", "--out", folder) == 0
    before = contents(folder)
    disk.read_only(True)
    try:
        for words in (
            ("resume", folder),
            ("resume", folder, "--rounds", "9"),
            ("report", folder),
            (*FLAGS, "--out", disk.folder / "new"),
            (*FLAGS, "--overwrite", "--out", folder),
        ):
            capsys.readouterr()
            assert run(*words) == 2
            assert "Read-only file system" in error(capsys)
        assert contents(folder) == before
    finally:
        disk.read_only(False)
    for _ in range(2):
        assert run("resume", folder) == 0
    assert losses(folder) == losses(whole)
