"""What runs have left on disk: read, put into tables, drawn, and shown on one page."""

from fedexp.extras import later as _later

__getattr__ = _later(
    __name__,
    Live="fedexp.runs.page",
    RunData="fedexp.runs.reading",
    UnitResult="fedexp.runs.reading",
    read="fedexp.runs.reading",
    report="fedexp.runs.page",
)
__all__ = ["Live", "RunData", "UnitResult", "read", "report"]
