"""What all tests share. The folder may be copied anywhere: nothing here looks at the checkout."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Helpers beside this file are imported by their bare names (`from market import ...`), in subfolders too.
sys.path.insert(0, str(Path(__file__).parent))

# Two test processes on two cores: more threads would only wait for each other, and sums could change between runs.
torch.set_num_threads(1)

# The same examples in every run, however slow the machine is: a failure is there for everyone or for no one. `make fuzz`
# takes another number of them, and new ones every time.
FUZZED = os.environ.get("ECKART_FUZZ_EXAMPLES")
settings.register_profile(
    "eckart",
    deadline=None,
    derandomize=FUZZED is None,
    database=None,
    max_examples=int(FUZZED or 40),
    print_blob=FUZZED is not None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("eckart")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets and small checkpoints, which is too large to live beside the code."""
    folder = os.environ.get("ECKART_DATA")
    if not folder:
        pytest.skip("ECKART_DATA is not set: it names the folder with the data that this test reads")
    return Path(folder).resolve(strict=True)
