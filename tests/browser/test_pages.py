"""Help pages, as a user sees them: beside the node, in a narrow panel."""

import pytest

pytest.importorskip("guidekit.tests.browser.frontend")

from guidekit.tests.browser.frontend import HELP
from guidekit.tests.schema.catalogue import object_info

INFO = object_info()
PANEL = 280  # pixels for the text, in the narrowest panel
LOOKED_AT = ("GuidekitAPG", "GuidekitNASA", "GuidekitNegToMe", "GuidekitExactInvert", "GuidekitPAG")

NARROW = f"document.querySelector('{HELP}').style.setProperty('width', '{PANEL}px')"
SHOWN = f"""[...document.querySelectorAll('{HELP} h2')].find((each) => each.textContent === '%s')
  .scrollIntoView({{block: 'center'}})"""
# Tables and images that are wider than their place, and images that are not there.
WRONG = f"""(async () => {{
  const help = document.querySelector('{HELP}')
  const images = [...help.querySelectorAll('img')]
  await Promise.all(images.map((image) => image.decode().catch(() => null)))
  const wide = (each) => each.scrollWidth > each.clientWidth || each.offsetWidth > {PANEL}
  return [
    ...[...help.querySelectorAll('table')].filter(wide).map((each) => each.innerText.slice(0, 60) + each.scrollWidth),
    ...images.filter((each) => !each.naturalWidth || each.offsetWidth > {PANEL}).map((each) => each.src),
  ]
}})()"""


def test_every_page_opens_and_fits(frontend, look):
    """Under the name that is asked for first: there is no 404, which `errors` would not tell."""
    if look == "vue":
        pytest.skip("the panel is the same")
    wrong = {}
    for node_id, info in INFO.items():
        frontend.help(node_id, info["display_name"])
        wrong[node_id] = frontend.page.run(f"{NARROW}; {WRONG}")
        for heading in ("Use it when", "Inputs", "Measured") if node_id in LOOKED_AT else ():
            frontend.page.run(SHOWN % heading)
            frontend.shoot(f"page of {node_id}, {heading}")
    assert {node_id: found for node_id, found in wrong.items() if found} == {}
    assert [error for error in frontend.page.errors if "404" in error and "/docs/" in error] == []
