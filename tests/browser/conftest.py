"""The frontends to test: `python dev.py browser` names their folders. Nothing is collected without it."""

import os
from pathlib import Path

import pytest

FRONTENDS = [Path(path) for path in os.environ.get("GUIDEKIT_FRONTENDS", "").split(os.pathsep) if path]
collect_ignore_glob = [] if FRONTENDS else ["test_*.py"]

if FRONTENDS:
    from guidekit.demo.server import PACK, Server
    from guidekit.tests.browser.chromium import Page
    from guidekit.tests.browser.frontend import Frontend

    SCREENSHOTS = PACK / "output" / "browser"

    @pytest.fixture(scope="module", params=FRONTENDS, ids=lambda path: path.name)
    def server(request):
        with Server(options=["--front-end-root", str(request.param / "static")]) as running:
            running.frontend = request.param.name
            yield running

    @pytest.fixture(scope="module", params=["classic", "vue"])
    def look(request):
        return request.param

    @pytest.fixture
    def frontend(server, look):
        """The frontend in a fresh browser."""
        with Page() as page:
            opened = Frontend(page, server, SCREENSHOTS / server.frontend / look)
            opened.open(vue=look == "vue")
            yield opened
            assert opened.errors == []
