"""Rewrites the golden schemas and the English texts: python dev.py python -m guidekit.tests.schema.regenerate

Read the difference before you commit it. New inputs come last or are advanced, with a default that gives the old
result; nothing is renamed or removed (`CONTRIBUTING.md`).
"""

import json

from guidekit.tests import conftest  # noqa: F401  (makes the host start on a machine without a GPU)
from guidekit.tests.schema.catalogue import ENGLISH, GOLDEN, PACK, english, schemas

for path, content in ((GOLDEN, schemas()), (ENGLISH, english())):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"wrote {path.relative_to(PACK)}")
