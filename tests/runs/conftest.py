import multiprocessing
from types import SimpleNamespace

import pytest


@pytest.fixture
def forked(monkeypatch):
    """Processes for runs are forks of a process that has imported what they need.

    A process that starts afresh, as in a real run, takes seconds to import it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedexp.runs.parallel", "ray.cloudpickle"])
    own = SimpleNamespace(
        get_context=lambda kind: context, parent_process=multiprocessing.parent_process
    )
    monkeypatch.setattr("fedexp.runs.parallel.multiprocessing", own)
