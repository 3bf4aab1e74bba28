"""The folder of a run: one run at a time holds it, and only what a run wrote is ever removed."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedexp.choices import strategy_keys
from fedexp.config import Config
from fedexp.datasets import label_counts, plot
from fedexp.files import read_json, remove_leftovers, save_json, save_text
from fedexp.runs.checkpoint import NAMES
from fedexp.runs.client_states import forget_states
from fedexp.runs.federation import Federation
from fedexp.runs.fingerprint import digests, version_of
from fedexp.runs.json_files import MOVE, environment_in

try:
    import fcntl
except ModuleNotFoundError:  # Windows: runs of one second still get folders of their own
    fcntl = None  # type: ignore[assignment]

_PACKAGES = ("fedexp", "flwr", "torch", "numpy", "ray", "scikit-learn", "pandas")
_LOCK = ".lock"
FILES = (
    *("config.toml", "environment.json", "command.txt", "partition.png", "partition.json"),
    *("curves.png", "curves.svg", "results.csv", "report.html", "summary.json", "deployment.json"),
)
FILES_OF_A_UNIT = (
    *("metrics.jsonl", "clients.csv", "summary.json", *NAMES),
    *("model.safetensors", "model-mean.safetensors", "unit.json"),
)
_DEPTH = 4  # of the folders of units
_MOST_CLIENTS = 2000  # whose label counts are written down


@contextmanager
def claimed(config: Config, *, overwrite: bool = False) -> Iterator[Path]:
    """Hold the folder that ``--out`` names, or ``runs/<time>-<name>``, for a new run.

    No other run gets it meanwhile. An old run in it stays until ``begin``; a folder that was made
    here goes again if no run began in it.

    Args:
        config: of the run.
        overwrite: take a folder with an old run in it.

    Raises:
        ValueError: the folder holds anything else, or a run that lives, or cannot be made.
    """
    folder, is_new = _made(config)
    try:
        check_free(folder, overwrite)
        with locked(folder):
            check_free(folder, overwrite)  # another may have been here before the lock
            yield folder
    finally:
        if is_new and not (folder / "config.toml").exists():
            with suppress(OSError):  # the reason that is on its way out says more
                _remove(folder, (*FILES, _LOCK))
                folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of ``folder``; the lock ends with the process, whatever ends that.

    Raises:
        ValueError: another run holds it, or the folder cannot be written.
    """
    with _true_reason(folder):
        file = open(folder / _LOCK, "a")  # noqa: SIM115 - the body's own errors are no reason
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"run folder {str(folder)!r}: another run is using it. "
                "Wait for its end, or name another."
            ) from None
        except OSError as error:
            if error.errno != errno.ENOLCK:  # a file system without locks
                raise
        yield


@contextmanager
def reopened(folder: Path) -> Iterator[None]:
    """As ``locked``, of a run that goes on; what it left half written goes.

    Raises:
        ValueError: another run holds it, or the folder cannot be written.
    """
    with locked(folder):
        remove_leftovers(folder, FILES.__contains__)
        yield


def check_free(folder: Path, overwrite: bool) -> None:
    """Find out whether a run may begin in ``folder``.

    Raises:
        ValueError: it holds files, and not those of an old run that is to be overwritten.
    """
    with _true_reason(folder):
        if set(os.listdir(folder)) <= {_LOCK}:
            return
    if not is_run(folder):
        raise ValueError(
            f"run folder {str(folder)!r}: exists already, and not every file is known to be a "
            "run's. Name another."
        )
    if not overwrite:
        raise ValueError(
            f"run folder {str(folder)!r}: exists already. "
            "Name another, or add --overwrite to replace the old run."
        )


def is_run(folder: Path) -> bool:
    """Whether a run wrote ``folder``: its configuration and its environment are as ours are."""
    try:
        config = Config.read(folder / "config.toml")
        strategy_keys(Config.of(config))
        return (
            "strategy" in config and "fedexp" in read_json(folder / "environment.json")["packages"]
        )
    except (OSError, ValueError, TypeError, KeyError):
        return False


def begin(
    config: Config,
    folder: Path,
    federation: Federation | None = None,
    objects: Mapping[str, str] | None = None,
) -> None:
    """Make ``folder`` with what is known before the first round; an old run in it goes.

    That is ``config.toml``, ``command.txt``, ``environment.json`` and how the data is split.

    Args:
        config: of the run.
        folder: of the run.
        federation: its clients, if they are not those of ``config`` alone.
        objects: what the run has that no file can hold, by name.

    Raises:
        ValueError: ``folder`` holds something else than a run.
    """
    federation, config = federation or Federation(config), absolute(config)
    folder.mkdir(parents=True, exist_ok=True)
    check_free(folder, overwrite=True)
    if is_run(folder):
        clear(folder)
    known = {"config": config.values(), "objects": dict(objects or {})}
    inputs = digests(config, federation)
    save_json(folder / "environment.json", environment() | inputs | known)
    save_text(folder / "config.toml", config.to_toml())
    save_text(folder / "command.txt", shlex.join(sys.argv) + "\n")
    show_partition(folder, federation)


def show_partition(folder: Path, federation: Federation) -> None:
    """Write how the data is split, where a run folder does not have it, or says otherwise."""
    if not federation.deals:
        return
    told, path = _told(federation), folder / "partition.json"
    try:
        is_there = read_json(path) == told if told else True
    except (OSError, ValueError):
        is_there = False
    if told and not is_there:
        save_json(path, told)
    if not is_there or not (folder / "partition.png").exists():
        _draw(folder / "partition.png", federation)


def check_files(folder: Path, names: Iterable[str] = FILES) -> None:
    """Find out whether the files that a run writes can be written.

    Raises:
        ValueError: a folder is in the place of one.
    """
    for name in names:
        if (folder / name).is_dir():
            raise ValueError(f"{folder / name}: is a folder, where the run has a file. {MOVE}")


def absolute(config: Config) -> Config:
    """``config`` with paths that mean the same in every working directory."""
    names = ["data", "data_dir", "initial_model"]
    names += ["dataset"] if config.dataset.endswith(".npz") else []
    given = {name: path for name in names if (path := getattr(config, name))}
    paths = {name: str(Path(x).absolute()) for name, x in given.items() if not x.startswith("~")}
    return config.model_copy(update=paths)


def check_inputs(config: Config, folder: Path) -> None:
    """Find out whether the files that the run in ``folder`` reads are what they were.

    Raises:
        ValueError: they are not, or what the folder says of them is damaged.
    """
    began = environment_in(folder)
    for name, now in digests(config, Federation(config)).items():
        if began.get(name, now) != now:
            value = config.data or config.dataset if name == "data" else config.initial_model
            raise ValueError(
                f"{folder}: the run cannot go on, {value!r} has changed since it began. "
                "Put the old files back, or start a new run."
            )


def _told(federation: Federation) -> dict[str, Any]:
    """How the data is split, as ``partition.json`` has it; nothing where clients are too many."""
    data, parts = federation.dataset, federation.parts
    if len(parts) > _MOST_CLIENTS:
        return {}
    classes = data.class_names or [str(k) for k in range(data.num_classes)]
    counts = label_counts(data.train[1].numpy(), parts).tolist() if data.num_classes else []
    sizes = parts.sizes.tolist()
    clients = list(federation.names) or [str(i) for i in range(len(parts))]
    return {"clients": clients, "classes": list(classes), "counts": counts, "sizes": sizes}


def _draw(path: Path, federation: Federation) -> None:
    if importlib.util.find_spec("matplotlib"):
        names = {"names": federation.names, "class_names": federation.dataset.class_names}
        plot(federation.dataset.train[1].numpy(), federation.parts, path, **names)


def clear(folder: Path) -> None:
    """Remove the files that the run in ``folder`` wrote; files of anyone else stay."""
    for own in _unit_folders(folder):
        _remove(own, FILES_OF_A_UNIT)
        forget_states(own)
        for inside in (own, *own.parents):
            if inside == folder or any(inside.iterdir()):
                break
            inside.rmdir()
    _remove(folder, [name for name in reversed(FILES)])  # cut short, it is known to be a run


def _unit_folders(folder: Path) -> list[Path]:
    """Folders in which a run has recorded a unit; older runs have one per strategy."""
    found = {
        path.parent for i in range(1, _DEPTH + 1) for path in folder.glob("*/" * i + "unit.json")
    }
    keys = strategy_keys(Config.of(Config.read(folder / "config.toml")))
    found |= {folder / key for key in keys if (folder / key).is_dir()}
    return sorted(path for path in found if not path.is_symlink())


def environment() -> dict[str, Any]:
    """What a result depends on, of this machine and its versions."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "git-commit": _commit(),
        "packages": {name: version_of(name) for name in _PACKAGES},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _commit() -> str | None:
    """Of the repository around the working directory, with a ``+`` if files have changed."""
    try:
        told = [
            subprocess.run(
                ["git", *command], capture_output=True, text=True, timeout=5, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return told[0] + ("+" if told[1] else "")


def _made(config: Config) -> tuple[Path, bool]:
    """The folder, and whether it was made just now."""
    if config.out:
        with _true_reason(Path(config.out)):
            return Path(config.out), _make(Path(config.out))
    # Of letters that a shell takes as they are: the name is to be pasted.
    name = config.name or re.sub(r"[^\w.+=]+", "-", config.strategy)[:100].strip("-")
    stem = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2))):
        folder = stem.with_name(stem.name + suffix)
        with _true_reason(folder):
            if _make(folder):
                return folder, True
    raise AssertionError


def _make(folder: Path) -> bool:
    """Make ``folder``; False if it exists."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory") from None
        return False
    return True


@contextmanager
def _true_reason(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        raise ValueError(f"run folder {str(folder)!r}: {said}. Name another.") from None
    except UnicodeEncodeError:
        raise ValueError(
            f"run folder {str(folder)!r}: this locale has no such file names. "
            "Name another, or set PYTHONUTF8=1."
        ) from None


def _remove(folder: Path, names: Any) -> None:
    """Remove files by name, and what a crash has left beside them."""
    for name in names:
        for path in (folder / name, *folder.glob(f".{name}.*")):
            if path.name == name or path.suffix[1:].isdecimal():  # not an editor's .swp
                path.unlink(missing_ok=True)
