"""What is installed, and what to do about what is not."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement

import fedexp
from fedexp.terminal import listed

_OF_CONTRIBUTORS = "dev"  # the extra that no run needs


@dataclass(frozen=True)
class Need:
    """A package that our metadata names.

    Attributes:
        name: of the package.
        wanted: the versions that we work with.
        extra: of ours that brings it; empty if it is always needed.
    """

    name: str
    wanted: str
    extra: str = ""

    @property
    def found(self) -> str | None:
        """The installed version."""
        try:
            return version(self.name)
        except PackageNotFoundError:
            return None

    @property
    def is_met(self) -> bool:
        """Whether it is installed, in one of the versions that we work with."""
        specifier = Requirement(f"{self.name}{self.wanted}").specifier
        return self.found is not None and specifier.contains(self.found, prereleases=True)

    def line(self) -> str:
        """What is there, and the remedy if that is not enough."""
        if self.is_met:
            return f"{self.name} {self.found}"
        state = f"{self.found}, needs {self.wanted}" if self.found else "is missing"
        package = f"fedexp[{self.extra}]" if self.extra else "fedexp"
        return f"{self.name} {state}: pip install --upgrade '{package}'"


def extras() -> dict[str, list[Need]]:
    """What each of our extras brings, the smallest first; under ``""`` what comes without any.

    Raises:
        PackageNotFoundError: we are not installed.
    """
    names = metadata("fedexp").get_all("Provides-Extra") or []
    found = {name: list(_of_extra(name)) for name in names if name != _OF_CONTRIBUTORS}
    return {"": list(_of_extra("")), **dict(sorted(found.items(), key=lambda x: len(x[1])))}


def needs() -> list[Need]:
    """Every package of our metadata once, with the smallest extra that brings it.

    Raises:
        PackageNotFoundError: we are not installed.
    """
    found: dict[str, Need] = {}
    for brought in extras().values():
        for need in brought:
            found.setdefault(need.name, need)
    return list(found.values())


def _state_of_extras() -> Iterator[str]:
    """A line for each extra: whether it is installed, or what it lacks."""
    for extra, brought in extras().items():
        lacking = [need.name for need in brought if not need.is_met]
        if extra and lacking:
            yield f"{extra}: lacks {listed(lacking)}. Run: pip install 'fedexp[{extra}]'"
        elif extra:
            yield f"{extra}: installed"


def _of_extra(extra: str) -> Iterator[Need]:
    for ours in _requirements("fedexp", extra):
        own = Need(ours.name, str(ours.specifier), extra)
        yield own
        for wanted in ours.extras if own.found else ():
            for theirs in _requirements(ours.name, wanted):
                yield Need(theirs.name, str(theirs.specifier), extra)


def _requirements(package: str, extra: str) -> list[Requirement]:
    """What ``extra`` adds to a package, or what the package always needs."""
    found = [Requirement(text) for text in requires(package) or ()]
    if not extra:
        return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    conditional = [r for r in found if r.marker and not r.marker.evaluate({"extra": ""})]
    return [r for r in conditional if r.marker and r.marker.evaluate({"extra": extra})]


def machine() -> str:
    """CPUs, memory and GPUs of this machine."""
    parts = [f"{os.cpu_count()} CPUs"]
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        parts.append(f"{size / 2**30:.1f} GiB of memory")
    except (AttributeError, ValueError, OSError):
        parts.append("memory unknown")  # Windows does not tell Python
    return listed([*parts, _gpus()])


def _gpus() -> str:
    if not Need("torch", "").found:
        return "GPUs unknown without PyTorch"
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"GPUs unknown: PyTorch does not load ({str(error).partition(chr(10))[0]})"
    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"GPU {listed(found)}" if found else "no GPU that PyTorch can use"


def data_lines(folder: str) -> list[str]:
    """Which datasets that are read from files ``folder`` holds, and what others lack.

    Raises:
        ValueError: there is no such folder.
    """
    from fedexp.datasets import SOURCES

    if not Path(folder).is_dir():
        raise ValueError(f"--data-dir {folder}: is no folder. Name the one that holds mnist/, ...")
    from_files = {name: source for name, source in SOURCES.items() if source.files}
    lacks = {
        name: [file for file in source.files if not any(Path(folder).glob(file))]
        for name, source in from_files.items()
    }
    lines = [f"found: {listed(name for name in lacks if not lacks[name]) or 'none'}"]
    absent: dict[str, list[str]] = {}
    for name, files in lacks.items():
        if len(files) == len(from_files[name].files):
            absent.setdefault(from_files[name].published, []).append(name)
        elif files:
            lines.append(f"{name} lacks {listed(files)}")
    return lines + [f"no {listed(names)}: {url}" for url, names in absent.items()]


def ray() -> str:
    """Start Ray and end it.

    Raises:
        RuntimeError: it does not start.
        ModuleNotFoundError: it is not installed.
    """
    from fedexp.simulation.ray import cluster

    user = Need("ray", "")  # any object will do
    cluster.connect(user, 1, 0.0, None)
    cluster.leave(user)
    return "starts"


def examine(data_dir: str | None, with_ray: bool) -> bool:
    """Print the findings; whether all that is always needed is there.

    Raises:
        ValueError: there is no such data folder.
    """
    found = data_lines(data_dir) if data_dir else ["not looked at: add --data-dir FOLDER"]
    try:
        packages, by_extra = needs(), list(_state_of_extras())
    except PackageNotFoundError:
        packages, by_extra = [Need("fedexp", "")], []
    state, ray_starts = _ray(with_ray)
    system = platform.platform(terse=True)
    sections = {
        f"fedexp {fedexp.__version__}": [f"Python {platform.python_version()}", system, machine()],
        "needed": [need.line() for need in packages if not need.extra],
        "extras": by_extra,
        "optional": [need.line() for need in packages if need.extra],
        "Ray": [state],
        "data": found,
    }
    for title, lines in sections.items():
        print(title)
        for line in lines:
            print(f"  {line}")
    return ray_starts and all(need.is_met for need in packages if not need.extra)


def _ray(wanted: bool) -> tuple[str, bool]:
    """How Ray is, and whether it does not fail."""
    if not wanted:
        return "not started: add --ray", True
    try:
        return ray(), True
    except (RuntimeError, ModuleNotFoundError) as error:
        return str(error), False
