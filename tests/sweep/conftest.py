import pytest

from guidekit.tests.sweep.servers import new_server


@pytest.fixture(scope="session")
def server():
    """A server for tests that do not change its state."""
    with new_server() as running:
        yield running
