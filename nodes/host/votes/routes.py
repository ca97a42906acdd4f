"""The two routes that the page uses.

GET /guidekit/votes: `?image=ID` is an image; `?workflow=ID&node=ID` what a node showed last; anything else a page of
the images that the other parameters choose (filters.py), with counts. POST /guidekit/votes: JSON {"do": "vote", "ids":
[...], "vote": 1, -1, or 0 to take it back}, {"do": "tag", "ids", "tag"}, {"do": "delete", "ids"} or {"do": "export",
filters}. The answer is {"images", "counts"}, or {"error": a sentence}; then nothing was changed.

Ids come from earlier answers; no request names a path. Requests from pages of another origin are refused, also where
the host's own check is off (with --enable-cors-header, or when it listens to the network).

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
from .filters import NAMES, Filter, filter_of
from .opened import store
from .vote import DISLIKED, LIKED, UNDECIDED, Vote

log = logging.getLogger(__name__)

PATH = "/guidekit/votes"
EVENT = "guidekit.votes"  # {"votes": {id: vote, None if deleted}}, sent to all pages after a change
_LARGEST = 2**16  # bytes of a request
_MOST = 500  # ids in a request
_PAGE = 100  # images in an answer
_ID = 64  # characters
_LONGEST_TAG = 100


class RefusedError(ValueError):
    """A request that is not accepted. `status`: of HTTP."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def serve() -> None:
    """Adds the routes, if there is a server and no other copy of the pack has done so."""
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
        path = await asyncio.to_thread(lambda: store().image_path(_id(query["image"])))
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
    found = store().find(wanted, _PAGE, _place(after) if after else None)
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
    """The answer, and the votes that have changed, by id."""
    what, votes = given.get("do"), list[Vote]()
    if what == "export":
        names = [name for name in NAMES if name in given]
        if not all(isinstance(given[name], str) for name in names):
            raise RefusedError(400, "A filter of an export is not a text.")
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
        raise RefusedError(404, "There is an id that this server has never given. Nothing was changed.")
    return given


def _place(after: str) -> tuple[float, str]:
    shown, _, image_id = after.partition(" ")
    try:
        return float(shown), _id(image_id)
    except ValueError:
        raise RefusedError(400, "after is not the `next` of an earlier answer.") from None


async def _body(request: web.Request) -> dict:
    """The JSON of a request, of which no more than the longest accepted length is read."""
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
    """By the headers in which browsers name the page that sends a request. Other clients send none and are accepted."""
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
