from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

# Two processes' worth of threads on a small machine make small tests slower, not faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _lightning_logs_to_the_real_stderr() -> None:
    """Lightning's handlers keep the stderr of the test that imported it, which pytest closes afterwards."""
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("lightning")]:
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets (ICS_APPS_DATA, or `../shared/data` beside the checkout)."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ICS_APPS_DATA", beside))
    if not folder.is_dir():
        pytest.skip("the real datasets are not here: set ICS_APPS_DATA to their folder")
    return folder
