"""A run folder that was damaged or edited goes on to the same bits, or is refused in one line."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedexp import cli
from fedexp.runs import recorder as runs
from fedexp.runs.checkpoint import NAMES
from fedexp.runs.recorded import EVALUATED, chained, clients_until, of_clients, usable

pytestmark = pytest.mark.usefixtures("undrawn")
PRINTED = {"capture_output": True, "text": True, "check": True}
FLAGS = [
    *("--engine", "serial", "--num-server-rounds", "3", "--num-clients", "4", "--local-steps", "1"),
    *("--strategy", "fedexp,scaffold", "--fraction-train", "1"),
]


def run(*flags):
    cli.main(["simulate", *map(str, flags)])


def results(folder):
    found = {}
    for path in sorted(folder.rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [
            {k: v for k, v in row.items() if not k.endswith("-seconds")} for row in rows
        ]
        found[path.parent.name, "model"] = (path.parent / "model.safetensors").read_bytes()
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A whole run, and one that was interrupted in round 3 of scaffold."""
    base = tmp_path_factory.mktemp("runs")
    run(*FLAGS, "--out", base / "whole")
    with pytest.MonkeyPatch.context() as patch:
        save = runs.Checkpoint.save

        def interrupted(self, path, *rest):
            if self.server_round == 3 and path.parent.name == "scaffold":
                raise KeyboardInterrupt
            save(self, path, *rest)

        patch.setattr(runs.Checkpoint, "save", interrupted)
        with pytest.raises(SystemExit):
            run(*FLAGS, "--out", base / "cut")
    return base


@pytest.fixture
def cut(folders, tmp_path):
    return shutil.copytree(folders / "cut", tmp_path / "cut")


CHECKPOINT, METRICS = "scaffold/checkpoint.safetensors", "scaffold/metrics.jsonl"


def edit(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def replaced(old, new):
    def change(data):
        assert old in data
        return data.replace(old, new)

    return edit("config.toml", change)


def flipped(position):
    def change(data):
        data = bytearray(data)
        data[position] ^= 0x40
        return bytes(data)

    return change


def header(change):
    """Let ``change`` edit the header of a safetensors file, which stays readable."""

    def apply(data):
        size = struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8 : 8 + size])
        change(content)
        text = json.dumps(content).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return apply


def removed(name):
    return lambda folder: (folder / name).unlink()


def after(*damages):
    return lambda folder: [damage(folder) for damage in damages]


def as_folder(folder):
    (folder / CHECKPOINT).unlink()
    (folder / CHECKPOINT).mkdir()


def as_file(folder):
    shutil.rmtree(folder / "scaffold")
    (folder / "scaffold").write_text("x")


def states_of(name, change):
    """Damage the newest of the files that hold what clients keep."""

    def damage(folder):
        path = max((folder / name).glob("clients/*"), key=lambda x: x.stat().st_mtime_ns)
        change(path)

    return damage


def said(**values):
    """A checkpoint whose header says something else, or nothing where a value is None."""

    def change(content):
        own = content["__metadata__"]
        own |= {key: value for key, value in values.items() if value is not None}
        for key in (key for key, value in values.items() if value is None):
            del own[key]

    return edit(CHECKPOINT, header(change))


def edited_row(data):
    first, *others = data.splitlines(keepends=True)
    row = {**json.loads(first), "test-accuracy": 0.99}
    return b"".join([json.dumps(row).encode() + b"\n", *others])


DAMAGED = {
    "cut": edit(CHECKPOINT, lambda b: b[: len(b) // 2]),
    "empty": edit(CHECKPOINT, lambda b: b""),
    "length": edit(CHECKPOINT, flipped(3)),
    "header": edit(CHECKPOINT, flipped(20)),
    "data": edit(CHECKPOINT, flipped(-5)),
    "a folder": as_folder,
    "a model": lambda folder: shutil.copy(folder / "fedexp/model.safetensors", folder / CHECKPOINT),
    "an exponent": edit(CHECKPOINT, flipped(-1001)),
    "not finite": edit(CHECKPOINT, lambda b: b[:-400] + b"\xff\xff\xff\x7f" * 100),
    "of another kind": edit(CHECKPOINT, lambda b: bytes(range(250)) * 4),
    "an earlier round": said(round="1"),
    "a later round": said(round="9"),
    "no round": said(round="abc"),
    "no owners": said(owners=None),
    "no clients": said(clients=None),
    "clients without states": said(clients="{}"),
    "another fingerprint": said(fingerprint="{}"),
    "no metadata": edit(CHECKPOINT, header(lambda h: h.pop("__metadata__"))),
    "states removed": states_of("scaffold", Path.unlink),
    "states empty": states_of("scaffold", lambda path: path.write_bytes(b"")),
    "states of another kind": states_of(
        "scaffold", lambda path: path.write_bytes(path.read_bytes().replace(b"dict", b"diet"))
    ),
    "the last line of its rounds": edit(METRICS, lambda b: b.split(b"\n")[0] + b"\n{"),
}
REFUSED = {
    "metrics removed": (removed(METRICS), "does not hold rounds 1 to 2"),
    "metrics twice": (edit(METRICS, lambda b: b + b), "does not hold rounds 1 to 2"),
    "metrics without the first line": (
        edit(METRICS, lambda b: b.split(b"\n", 1)[1]),
        "does not hold rounds",
    ),
    "a value of an earlier round": (edit(METRICS, edited_row), "was edited"),
    "metrics with another line": (edit(METRICS, lambda b: b"xx\n" + b), "is damaged"),
    "metrics with a list": (edit(METRICS, lambda b: b"[1]\n" + b), "is damaged"),
    "metrics not UTF-8": (edit(METRICS, lambda b: b"\xff\n" + b), "is damaged"),
    "seed": (replaced(b"seed = 0", b"seed = 7"), "seed is 7, but the run began with 0"),
    "model": (replaced(b'"mlp"', b'"linear"'), "but the run began with 'mlp'"),
    "seed, and no environment": (
        after(removed("environment.json"), replaced(b"seed = 0", b"seed = 7")),
        "seed was 0 when it was written, now it is 7",
    ),
    "model, and an environment that cannot be read": (
        after(edit("environment.json", lambda b: b"{"), replaced(b'"mlp"', b'"linear"')),
        "environment.json: is damaged",
    ),
    "environment of another kind": (edit("environment.json", lambda b: b"[]"), "is damaged"),
    "environment with a configuration of another kind": (
        edit("environment.json", lambda b: b'{"config": 3}'),
        "environment.json: is damaged, config is 3",
    ),
    "a folder in the place of a file of the run": (
        lambda folder: (folder / "command.txt").unlink() or (folder / "command.txt").mkdir(),
        "command.txt: is a folder",
    ),
    "a folder in the place of a file of a strategy": (
        lambda folder: (folder / "scaffold/clients.csv").mkdir(),
        "clients.csv: is a folder",
    ),
    "a damaged file of what is no strategy of the run": (
        lambda folder: (folder / "copy").mkdir() or (folder / "copy/unit.json").write_text("{}"),
        "copy/unit.json: is damaged, strategy is missing",
    ),
    "another format": (said(format="9"), "is of format 9, not 2"),
    "an older format": (said(format=None), "is of format 1, not 2"),
    "metrics cut in the first line": (edit(METRICS, lambda b: b[:50]), "does not hold rounds"),
    "configuration cut": (
        edit("config.toml", lambda b: b[: b.index(b"\nlocal-steps") + 9]),  # within a line
        "config.toml",
    ),
    "configuration empty, and no environment": (
        after(removed("environment.json"), edit("config.toml", lambda b: b"")),
        "config.toml: names no strategy",
    ),
    "configuration not UTF-8": (edit("config.toml", lambda b: b + b"# \xff\n"), "cannot be read"),
    "a value of another type": (replaced(b"seed = 0", b'seed = "a"'), "Config(seed='a')"),
    "learning rate": (
        replaced(b"\nlearning-rate = 0.1\n", b"\nlearning-rate = 0.01\n"),
        "learning-rate is 0.01, but the run began with 0.1",
    ),
    "more rounds, but not by the command for it": (
        replaced(b"rounds = 3\nlocal", b"rounds = 6\nlocal"),
        "num-server-rounds is 6, but the run began with 3",
    ),
    "other strategies": (replaced(b"fedexp,scaffold", b"fedavg"), "began with 'fedexp,scaffold'"),
    "fewer rounds": (replaced(b"rounds = 3\nlocal", b"rounds = 1\nlocal"), "began with 3"),
    "fewer clients": (replaced(b"num-clients = 4", b"num-clients = 3"), "began with 4"),
    "a strategy less": (replaced(b"fedexp,scaffold", b"fedexp"), "began with 'fedexp,scaffold'"),
    "an unknown key": (edit("config.toml", lambda b: b + b"new-key = 3\n"), "unknown key"),
    "no configuration": (removed("config.toml"), "holds no run"),
    "strategy folder a file": (as_file, "is no folder"),
    "summary without checkpoints": (
        after(
            edit("fedexp/summary.json", lambda b: b"[]"),
            *(removed(f"fedexp/{name}") for name in NAMES),
        ),
        "is damaged",
    ),
    "model of a finished strategy, and its checkpoints": (
        lambda folder: [
            (folder / "fedexp" / name).unlink() for name in ("model.safetensors", *NAMES)
        ],
        "is missing",
    ),
    "both checkpoints": (
        lambda folder: [edit(f"scaffold/{name}", flipped(-5))(folder) for name in NAMES],
        "is damaged",
    ),
    "metrics of a finished strategy": (removed("fedexp/metrics.jsonl"), "rounds 1 to 3"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_lead_elsewhere_is_refused_in_one_line(kind, cut, capsys):
    damage, said = REFUSED[kind]
    damage(cut)
    with pytest.raises(SystemExit) as caught:
        run("--resume", cut)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("old", "new"), [("0.25", "0.99"), ("1,b,0.5\n1,a,0.25\n", "1,a,0.25\n1,b,0.5\n")]
)
def test_what_clients_reported_in_earlier_rounds_may_not_be_edited(old, new, tmp_path):
    rows = [
        {"round": 1, "client": "b", "accuracy": 0.5, "f1": None},
        {"round": 1, "client": "a", "accuracy": 0.25},
        {"round": 2, "client": "a", "accuracy": 0.75},
    ]
    digest = np.frombuffer(chained(b"", rows[:2]), np.uint8)
    known = {**of_clients(rows, rows[2:]), "clients": digest}
    saved = runs.Checkpoint(2, {}, {EVALUATED: known})
    text = "round,client,accuracy\n1,b,0.5\n1,a,0.25\n2,a,0.75\n"
    (tmp_path / "clients.csv").write_text(text)
    assert len(clients_until(tmp_path, saved)) == 3
    assert old in text
    (tmp_path / "clients.csv").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match="does not hold what clients reported up to round 2"):
        clients_until(tmp_path, saved)


HARMLESS = {
    "nothing": lambda folder: None,
    "checkpoint removed": removed(CHECKPOINT),
    "last line cut": edit(METRICS, lambda b: b[:-10]),  # of the round that was not finished
    "environment removed": removed("environment.json"),
    "strategy folder removed": lambda folder: shutil.rmtree(folder / "scaffold"),
    "summary removed": removed("fedexp/summary.json"),
    "summary empty": edit("fedexp/summary.json", lambda b: b""),
    "summary cut": edit("fedexp/summary.json", lambda b: b[:50]),
    "summary that does not say how the strategy ended": edit(
        "fedexp/summary.json", lambda b: b.replace(b'"ended"', b'"e"')
    ),
    "summary a list": edit("fedexp/summary.json", lambda b: b"[]"),
    "last line of a finished strategy cut": edit("fedexp/metrics.jsonl", lambda b: b[:-10]),
    "configuration without a part that is as by default": edit(
        "config.toml", lambda b: b.replace(b"timeout = 3600.0\n", b"")
    ),
    "model of a finished strategy removed": removed("fedexp/model.safetensors"),
    "its average removed": removed("fedexp/model-mean.safetensors"),
    "cut between two renames": removed(CHECKPOINT),  # then the one before is all there is
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_can_be_done_without_leads_to_the_same_bits(kind, cut, folders):
    HARMLESS[kind](cut)
    run("--resume", cut)
    assert results(cut) == results(folders / "whole")


@pytest.mark.parametrize("kind", DAMAGED)
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_a_line_says_so(kind, cut, logged):
    DAMAGED[kind](cut)
    assert usable(cut / "scaffold").server_round == 1
    (line,) = logged
    assert "is damaged" in line or "does not hold" in line
    assert "('" not in line  # a reason in words
    assert line.endswith("The run goes on from round 1.")
    assert "\n" not in line


@pytest.mark.parametrize(
    "kind", ["data", "a folder", "a model", "states removed", "the last line of its rounds"]
)
def test_the_checkpoint_before_a_damaged_one_leads_to_the_same_bits(kind, cut, folders, logged):
    DAMAGED[kind](cut)
    run("--resume", cut)
    assert len([x for x in logged if "goes on from round 1" in x]) == 1
    assert results(cut) == results(folders / "whole")


BOTH = after(*(edit(f"scaffold/{name}", lambda b: b"x") for name in NAMES))
IN_ONE_GO = {
    "both checkpoints": BOTH,
    "both checkpoints, and the rounds": after(BOTH, edit(METRICS, lambda b: b"\xff\n")),
    "one checkpoint, and the rounds": after(DAMAGED["data"], edit(METRICS, lambda b: b"xx\n")),
    "the rounds": edit(METRICS, lambda b: b"\xff\n" + b),
    "the only checkpoint": after(removed(f"scaffold/{NAMES[1]}"), DAMAGED["data"]),
    "the only checkpoint, a folder": after(removed(f"scaffold/{NAMES[1]}"), as_folder),
    "environment": edit("environment.json", lambda b: b"null"),
    "a folder": REFUSED["a folder in the place of a file of the run"][0],
}


@pytest.mark.parametrize("kind", IN_ONE_GO)
def test_what_a_refusal_advises_helps_in_one_go(kind, cut, folders, capsys):
    IN_ONE_GO[kind](cut)
    with pytest.raises(SystemExit):
        run("--resume", cut)
    (line,) = capsys.readouterr().err.splitlines()
    first = line.removeprefix("fedexp: error: ").partition(": ")[0]
    told = re.search(r"Remove (\S+) to run", line)
    if told and told[1] != "it":
        shutil.rmtree(told[1])
    else:
        assert told or line.endswith("Move it out of the run's folder.")
        Path(first).rename(cut.parent / "away")
    run("--resume", cut)
    assert results(cut) == results(folders / "whole")


def test_a_folder_in_the_place_of_the_checkpoint_before_keeps_what_is_in_it(cut, folders):
    (cut / "scaffold" / NAMES[1]).unlink()
    (cut / "scaffold" / NAMES[1]).mkdir()
    (cut / "scaffold" / NAMES[1] / "thesis").write_text("x")
    run("--resume", cut)
    assert results(cut) == results(folders / "whole")
    assert len(list((cut / "scaffold").glob("*/thesis"))) == 1


def edited(text):
    """With another seed, and with more rounds."""
    return text.replace(": 0,", ": 7,"), text.replace('rounds": 3', 'rounds": 9')


JUNK = ["", "[]", "null", "{}", "3", '{"strategy": 3, "seed": "x", "settings": [], "sizes": "x"}']


@pytest.mark.parametrize("name", ["partition.json", "fedexp/unit.json", "scaffold/unit.json"])
@pytest.mark.parametrize("ended", [True, False])
def test_what_the_configuration_tells_is_written_anew(name, ended, folders, tmp_path, capsys):
    whole = folders / "whole"
    wanted = (whole / name).read_bytes()
    for i, text in enumerate([*JUNK, *edited(wanted.decode()), "\udcff"]):
        folder = shutil.copytree(whole if ended else folders / "cut", tmp_path / str(i))
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
        capsys.readouterr()
        run("--resume", folder)
        assert (folder / name).read_bytes() == wanted
        assert ("No round was left to run" in capsys.readouterr().out) == ended


def test_a_damaged_checkpoint_never_takes_the_place_of_the_only_sound_one(cut, folders):
    DAMAGED["data"](cut)
    replaced(b"max-minutes = 0.0", b"max-minutes = 1e-9")(cut)
    run("--resume", cut)  # one round
    DAMAGED["data"](cut)  # what it has written
    replaced(b"max-minutes = 1e-9", b"max-minutes = 0.0")(cut)
    run("--resume", cut)
    assert results(cut) == results(folders / "whole")


def test_a_checkpoint_is_on_the_disk_before_the_one_before_it_moves(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("fedexp.files.on_disk", lambda path: done.append(("sync", path.name)))
    replace = Path.replace

    def noted(self, other):
        replace(self, other)
        done.append(("move", other.name))

    monkeypatch.setattr(Path, "replace", noted)
    for i in (1, 2):
        runs.Checkpoint(i, {"w": np.ones(1)}).save(tmp_path / NAMES[0])
    beside = f".{NAMES[0]}.{os.getpid()}"
    steps = [("sync", beside), ("move", NAMES[1]), ("move", NAMES[0]), ("sync", tmp_path.name)]
    assert done == [steps[0], *steps[2:], *steps]
    assert [runs.Checkpoint.load(tmp_path / name).server_round for name in NAMES] == [2, 1]
    assert sorted(x.name for x in tmp_path.iterdir()) == sorted(NAMES)


def test_what_a_killed_write_left_goes_when_the_run_goes_on(cut, folders):
    """Files of processes that live, and of others, stay."""
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], **PRINTED)
    dead, alive = child.stdout.strip(), os.getppid()
    ours = [f"scaffold/.{NAMES[0]}.{dead}", f"fedexp/.summary.json.{dead}", f".config.toml.{dead}"]
    theirs = [f"scaffold/.{NAMES[0]}.{alive}", f".thesis.{dead}", ".config.toml.swp"]
    for name in ours + theirs:
        (cut / name).write_text("half of it")
    ours.remove(f"fedexp/.summary.json.{dead}")  # that unit has ended, nothing opens its folder
    run("--resume", cut)
    assert not [name for name in ours if (cut / name).exists()]
    assert all((cut / name).exists() for name in theirs)
    assert results(cut) == results(folders / "whole")


def test_a_finished_run_gets_its_pictures_and_tables_back(folders, tmp_path):
    folder = shutil.copytree(folders / "whole", tmp_path / "whole")
    lost = ["curves.png", "curves.svg", "report.html", "results.csv"]
    lost += ["partition.json", "partition.png"]
    texts = {name: (folder / name).read_bytes() for name in ("results.csv", "partition.json")}
    for name in lost:
        (folder / name).unlink()
    run("--resume", folder)
    assert all((folder / name).exists() for name in lost)
    assert {name: (folder / name).read_bytes() for name in texts} == texts
    assert results(folder) == results(folders / "whole")


def test_a_run_on_own_files_goes_on_from_another_directory(tmp_path, monkeypatch):
    """The paths were given relative to where it began."""
    (tmp_path / "here" / "data").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    lines = [f"{i % 7},{i % 3},{i % 2}" for i in range(40)]
    for site in "ab":
        Path(f"data/{site}.csv").write_text("x,y,sick\n" + "\n".join(lines) + "\n")
    flags = ["--engine", "serial", "--data", "data/*.csv", "--target", "sick"]
    flags += ["--client-from", "file", "--local-steps", "1", "--strategy", "fedavg"]
    run(*flags, "--rounds", 2, "--out", "whole")
    run(*flags, "--rounds", 1, "--out", "short")
    monkeypatch.chdir(tmp_path / "there")
    cli.main(["resume", "../here/short", "--rounds", "2"])
    assert results(tmp_path / "here/short") == results(tmp_path / "here/whole")
    page = (tmp_path / "here/short/report.html").read_text()
    assert "data/*.csv, natural partition, seed 0" in page
    (tmp_path / "here" / "data").rename(tmp_path / "moved")  # and the configuration follows it
    config = tmp_path / "here/short/config.toml"
    text = config.read_text()
    config.write_text(text.replace(str(tmp_path / "here/data"), str(tmp_path / "moved")))
    cli.main(["resume", "../here/short", "--rounds", "3"])
    assert len(results(tmp_path / "here/short")["fedavg"]) == 3
