"""The folder of a run: one run at a time holds it, and only what a run wrote is ever removed."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedexp import app
from fedexp.config import Config
from fedexp.datasets import plot
from fedexp.files import read_json, save_json, save_text

try:
    import fcntl
except ModuleNotFoundError:  # Windows: runs of one second still get folders of their own
    fcntl = None  # type: ignore[assignment]

_PACKAGES = ("fedexp", "flwr", "torch", "numpy", "ray", "scikit-learn")
_LOCK = ".lock"
_FILES = (
    *("config.toml", "environment.json", "partition.png"),
    *("results.csv", "curves.png", "curves.svg", "report.html"),
)
_FILES_OF_A_STRATEGY = (
    *("metrics.jsonl", "summary.json", "checkpoint.safetensors"),
    *("model.safetensors", "model-mean.safetensors"),
)


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
                _remove(folder, (*_FILES, _LOCK))
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
        app.strategy_keys(Config.of(config))
        return (
            "strategy" in config and "fedexp" in read_json(folder / "environment.json")["packages"]
        )
    except (OSError, ValueError, TypeError, KeyError):
        return False


def begin(config: Config, folder: Path) -> None:
    """Make ``folder`` with what is known before the first round; an old run in it goes.

    That is ``config.toml``, ``environment.json`` and the picture of the partition.

    Raises:
        ValueError: ``folder`` holds something else than a run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_free(folder, overwrite=True)
    if is_run(folder):
        clear(folder)
    save_json(folder / "environment.json", environment() | {"config": config.values()})
    save_text(folder / "config.toml", config.to_toml())
    if importlib.util.find_spec("matplotlib") and app.dataset_of(config).num_classes:
        labels = app.dataset_of(config).train[1].numpy()
        plot(labels, app.partition_of(config), folder / "partition.png")


def clear(folder: Path) -> None:
    """Remove the files that the run in ``folder`` wrote; files of anyone else stay."""
    config = Config.of(Config.read(folder / "config.toml"))
    for key in app.strategy_keys(config):
        if (own := folder / key).is_dir() and not own.is_symlink():
            _remove(own, _FILES_OF_A_STRATEGY)
            if not any(own.iterdir()):
                own.rmdir()
    _remove(folder, reversed(_FILES))  # cut short, it is still known to be a run


def environment() -> dict[str, Any]:
    """Versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _made(config: Config) -> tuple[Path, bool]:
    """The folder, and whether it was made just now."""
    if config.out:
        with _true_reason(Path(config.out)):
            return Path(config.out), _make(Path(config.out))
    name = config.name or config.strategy.replace(",", "-")[:100]
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
