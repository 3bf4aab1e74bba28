"""Federated learning on Flower with an adaptive server step size."""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later

if TYPE_CHECKING:
    from fedexp.datasets import data
    from fedexp.runs.comparison import compare
    from fedexp.runs.door import Simulation, simulate
    from fedexp.runs.results import load_run, load_runs
else:  # so that `import fedexp` takes no time
    __getattr__, __dir__ = _later(
        __name__,
        "simulation",
        Simulation="fedexp.runs.door",
        compare="fedexp.runs.comparison",
        data="fedexp.datasets",
        load_run="fedexp.runs.results",
        load_runs="fedexp.runs.results",
        simulate="fedexp.runs.door",
    )

__version__ = "0.1.0"

__all__ = ["Simulation", "__version__", "compare", "data", "load_run", "load_runs", "simulate"]
