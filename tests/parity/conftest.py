"""Every parity test runs for every model generation."""

import pytest

from modes import MODES


@pytest.fixture(params=MODES)
def mode(request):
    return request.param
