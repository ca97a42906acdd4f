"""The two routes of the page.

GET /guidekit/votes: `?image=ID` an image; `?workflow=ID&node=ID` what a node showed last; else a part of the votes
that the other parameters choose (filters.py), with their numbers.
POST /guidekit/votes: JSON {"do": "vote", "ids": [...], "vote": 1, -1 or 0 to take it back}, {"do": "tag", "ids",
"tag"}, {"do": "delete", "ids"} or {"do": "export", filters}. An answer is {"images", "counts"}, or {"error": a
sentence}, after which everything is as it was.

An id is what the server has given to the page; no request names a path. Requests of pages from elsewhere are refused,
also where the host's own check is off (with --enable-cors-header, or when it listens to the network).

Relies on: `PromptServer.instance`, its `routes` and `send_sync` (server.py); aiohttp.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from ....samplers.strict_json import read_json
from ..run.messages import cut, plain
from .as_json import for_page
from .errors import StoreError, UnknownIdError
from .export import export
from .filters import Filter, filter_of
from .opened import store
from .vote import DISLIKED, LIKED, UNDECIDED

log = logging.getLogger(__name__)

PATH = "/guidekit/votes"
EVENT = "guidekit.votes"  # {"votes": {id: vote or None}}: to all pages, after a change
_LARGEST = 2**16  # bytes of a request
_MOST = 500  # ids in a request
_PAGE = 100  # images in an answer
_ID = 64  # characters
_LONGEST_TAG = 100


class RefusedError(ValueError):
    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def serve() -> None:
    """Adds the routes, where there is a server. A second copy of the pack finds it done."""
    server = _server()
    if server is not None and all(getattr(route, "path", None) != PATH for route in server.routes):
        server.routes.get(PATH)(_get)
        server.routes.post(PATH)(_post)


async def _get(request: web.Request) -> web.StreamResponse:
    return await _answer(request, _look)


async def _post(request: web.Request) -> web.StreamResponse:
    return await _answer(request, _change)


async def _answer(request: web.Request, how: Callable) -> web.StreamResponse:
    try:
        _check_origin(request)
        return await how(request)
    except RefusedError as error:
        status, sentence = error.status, str(error)
    except UnknownIdError as error:
        status, sentence = 404, str(error)
    except StoreError as error:
        log.error("%s", plain(str(error)))
        status, sentence = 507, str(error)
    except ValueError as error:
        status, sentence = 400, str(error)
    return web.json_response({"error": cut(plain(sentence), 1000)}, status=status)


async def _look(request: web.Request) -> web.StreamResponse:
    query = request.rel_url.query
    if "image" in query:
        path = await asyncio.to_thread(lambda: store().picture(_id(query["image"])))
        if not path.is_file():
            raise RefusedError(404, "The file of this image is gone.")
        headers = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
        return web.FileResponse(path, headers=headers)
    if "workflow" in query:
        workflow, node = query["workflow"][:100], query.get("node", "")[:100]
        votes = await asyncio.to_thread(lambda: store().shown_at(workflow, node) if workflow else [])
        return web.json_response({"images": list(map(for_page, votes))})
    return web.json_response(await asyncio.to_thread(_page, filter_of(query), query.get("after")))


def _page(wanted: Filter, after: str | None) -> dict:
    found = store().find(wanted, _PAGE, after and _place(after))
    following = f"{found[-1].shown!r} {found[-1].id}" if len(found) == _PAGE else None
    counts, names = store().counts(wanted), store().names()
    return {"images": list(map(for_page, found)), "next": following, "counts": counts, "names": names}


async def _change(request: web.Request) -> web.StreamResponse:
    if request.content_type != "application/json":
        raise RefusedError(415, f"The request is {request.content_type[:100]!r}. It is application/json.")
    given = await _body(request)
    answer, changed = await asyncio.to_thread(_do, given)
    if changed:
        _server().send_sync(EVENT, {"votes": changed})
    return web.json_response(answer)


def _do(given: dict) -> tuple[dict, dict]:
    """The answer, and what other pages are told."""
    what = given.get("do")
    if what == "export":
        names = Filter.__dataclass_fields__.keys() & given.keys()
        if not all(isinstance(given[name], str) for name in names):
            raise RefusedError(400, "A filter of an export is no text.")
        report = export(store(), filter_of({name: given[name] for name in names}), "taste")
        return {"report": report}, {}
    ids = _ids(given.get("ids"))
    if what == "vote":
        label = given.get("vote")
        if type(label) is not int or label not in (LIKED, UNDECIDED, DISLIKED):
            raise RefusedError(400, "vote is not 1 (like), -1 (dislike) or 0 (take back).")
        votes = store().vote(ids, label)
    elif what == "tag":
        tag = given.get("tag")
        if not isinstance(tag, str) or len(tag) > _LONGEST_TAG:
            raise RefusedError(400, f"tag is not a text of up to {_LONGEST_TAG} characters.")
        votes = store().tag(ids, plain(tag))
    elif what == "delete":
        store().delete(ids)
        votes = []
    else:
        raise RefusedError(400, "do is not one of vote, tag, delete and export.")
    answer = {"images": list(map(for_page, votes)), "counts": store().counts(Filter())}
    labels = {vote.id: vote.label for vote in votes}
    return answer, {each: labels.get(each) for each in ids}


def _ids(given: Any) -> list[str]:
    if not isinstance(given, list) or not given or len(given) > _MOST:
        raise RefusedError(400, f"ids is not a list of 1 to {_MOST} ids.")
    return list(dict.fromkeys(map(_id, given)))


def _id(given: Any) -> str:
    if not isinstance(given, str) or len(given) != _ID or set(given) - set("0123456789abcdef"):
        raise RefusedError(404, "An id is none that this server gives. Nothing was changed.")
    return given


def _place(after: str) -> tuple[float, str]:
    shown, _, image_id = after.partition(" ")
    try:
        return float(shown), _id(image_id)
    except ValueError:
        raise RefusedError(400, "after is not the `next` of an answer.") from None


async def _body(request: web.Request) -> dict:
    """Read no further than it may be long."""
    too_long = RefusedError(413, f"The request is longer than {_LARGEST} bytes. Nothing was changed.")
    if (request.content_length or 0) > _LARGEST:
        raise too_long
    body = b""
    while part := await request.content.read(_LARGEST + 1 - len(body)):
        body += part
        if len(body) > _LARGEST:
            raise too_long
    try:
        given = read_json(body)
    except ValueError as error:
        raise RefusedError(400, f"The request is not JSON: {str(error)[:200]}.") from None
    if not isinstance(given, dict):
        raise RefusedError(400, "The request is not a JSON object.")
    return given


def _check_origin(request: web.Request) -> None:
    """What browsers say of the page that asks; other clients say nothing."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = origin is None or urlsplit(origin).netloc.lower() == request.host.lower()
    if not own:
        raise RefusedError(403, "The request comes from a page of another origin. Nothing was changed.")


def _server() -> Any:
    from server import PromptServer  # not at the top: the tests load nodes without a server

    return getattr(PromptServer, "instance", None)
