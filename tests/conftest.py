"""Every test may make Flower messages and read what was logged."""

import gc
import logging
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from fedexp.simulation.flower.messages import identify
from fedexp.simulation.grid import RUN_ID

settings.register_profile("tests", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("tests")
identify(RUN_ID)
os.environ.pop("COLUMNS", None)  # what runs the tests side by side sets a width


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What is imported here stays to the end: no search for garbage looks at it, now or later."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that start servers come first: they take long, and the last one is waited for."""
    first = {item.path for item in items if item.get_closest_marker("deploy")}
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Lines of Flower's logger, ours among them."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pictures are empty files: drawing them is four fifths of a small run."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    savefig: Callable[..., None] = figure.savefig

    def touch(self: Any, path: Any, **_: Any) -> None:
        Path(path).touch()

    monkeypatch.setattr(figure, "savefig", touch)
    return savefig


@pytest.fixture
def drawn(undrawn: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn, in a module of which the other tests are ``undrawn``."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", undrawn)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that name no engine train here, one after the other, however busy the machine is."""
    monkeypatch.setattr("fedexp.runs.engines.find_spec", lambda name: None)  # as without Ray
    monkeypatch.setattr("fedexp.runs.study._WORTH_PROCESSES", float("inf"))


@pytest.fixture(scope="module")
def one_ray() -> Iterator[list[Any]]:
    """A Ray that our code has started for two workers, and whose processes outlive their grids.

    A new process takes two seconds to import PyTorch, many times what the grids of tests do. So the
    processes of a grid that was closed, which are given here, begin anew in the next grid.
    """
    pytest.importorskip("ray")
    from fedexp.simulation.ray import cluster
    from fedexp.simulation.ray.workers import RayWorkers

    class Holder:
        """Takes the place of a grid that stays open."""

    holder, idle = Holder(), list[Any]()
    start, close = RayWorkers._new, RayWorkers.close

    def begin(workers: RayWorkers) -> Any:
        if not idle:
            return start(workers)
        actor = idle.pop()  # that used last: it has imported most
        actor.__ray_call__.remote(
            lambda self, *args: type(self).__init__(self, *args), *workers._args
        )
        return actor

    def keep(workers: RayWorkers) -> None:
        idle.extend(workers._actors)
        workers._actors = []
        close(workers)

    cluster.connect(holder, 2, 0.0, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayWorkers, "_new", begin)
        patch.setattr(RayWorkers, "close", keep)
        yield idle
    cluster.leave(holder)
