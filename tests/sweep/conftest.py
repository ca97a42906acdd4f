import pytest

from guidekit.tests.sweep.servers import new_server


@pytest.fixture(scope="session")
def server():
    """For tests that leave it as it is."""
    with new_server() as running:
        yield running
