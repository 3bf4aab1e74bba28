import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir():
    """The folder of published files, by environment variable or beside the checkout."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("FEDEXP_DATA_DIR") or beside)
    if not folder.is_dir():
        pytest.skip("no published data files: set FEDEXP_DATA_DIR")
    return str(folder)
