"""What runs have left on disk: read, put into tables, drawn, and shown on one page."""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later

if TYPE_CHECKING:
    from fedexp.runs.page import Live, report
    from fedexp.runs.reading import RunData, UnitResult, read
else:
    __getattr__, __dir__ = _later(
        __name__,
        "simulation",
        Live="fedexp.runs.page",
        RunData="fedexp.runs.reading",
        UnitResult="fedexp.runs.reading",
        read="fedexp.runs.reading",
        report="fedexp.runs.page",
    )

__all__ = ["Live", "RunData", "UnitResult", "read", "report"]
