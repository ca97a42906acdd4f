"""The store: the images that were shown, how they were made, and the votes on them, in a folder."""

import hashlib
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from sqlalchemy import ColumnElement, Row, and_, exists, func, or_, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Connection
from torch import Tensor

from ....samplers.strict_json import read_json
from . import blobs
from .errors import StoreError, UnknownIdError
from .filters import VOTES, Filter
from .tables import IMAGES, LORAS, WORKFLOWS, Database
from .vote import UNDECIDED, Lora, Noise, Offer, Recipe, Vote

# How many images without a vote are kept; those with one are kept until they are deleted.
_MOST_UNDECIDED = 1000
_MOST_BYTES = 2**31
_SLACK = 50  # the oldest are forgotten when there are so many more
_AT_ONCE = 500  # ids in a statement


class Store:
    """A store in `folder`, which several threads and processes may use at once. All methods raise StoreError if the
    disk or the database fails."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._database = Database(folder / "votes.sqlite")

    def close(self) -> None:
        self._database.close()

    def is_current(self) -> bool:
        """Whether the database in the folder is still the one that was opened."""
        return self._database.is_current()

    # Images

    def offer(self, offers: Sequence[Offer]) -> list[Vote]:
        """Stores images that are shown, in their order. A known image keeps its vote, unless it is offered with one."""
        now = time.time()
        offered = [replace(self._with_files(offer), shown=now) for offer in offers]
        with self._database.write() as connection:
            known = {vote.id: vote for vote in self._get(connection, [vote.id for vote in offered])}
            for place, (offer, vote) in enumerate(zip(offers, offered)):
                if not all(path.exists() for path in self._files(vote)):  # another process has removed them
                    self._with_files(offer)
                known[vote.id] = _merged(known.get(vote.id), vote, now)
                self._put(connection, known[vote.id], place)
                if vote.workflow is not None:
                    values = {"name": vote.workflow, "json": zlib.compress((offer.workflow or "").encode())}
                    connection.execute(insert(WORKFLOWS).values(values).on_conflict_do_nothing())
        self._tidy()
        return [known[vote.id] for vote in offered]

    def shown_at(self, workflow_id: str, node: str) -> list[Vote]:
        """The images that a node of a workflow showed last, in their order."""
        here = and_(IMAGES.c.workflow_id == workflow_id, IMAGES.c.node == node)
        last = select(func.max(IMAGES.c.shown)).where(here).scalar_subquery()
        query = select(IMAGES).where(here, IMAGES.c.shown == last).order_by(IMAGES.c.place)
        with self._database.read() as connection:
            return [_vote(row) for row in connection.execute(query)]

    # Votes

    def vote(self, ids: Sequence[str], label: int) -> list[Vote]:
        """Sets the label of images. Raises UnknownIdError if one of them is not there; then none is changed."""
        return self._change(ids, label=label, voted=time.time() if label else None)

    def tag(self, ids: Sequence[str], tag: str) -> list[Vote]:
        """Raises UnknownIdError as `vote` does."""
        return self._change(ids, tag=tag.strip())

    def delete(self, ids: Sequence[str]) -> None:
        """Deletes images, their votes and their files. Raises UnknownIdError as `vote` does."""
        with self._database.write() as connection:
            self._check_all(connection, ids)
            for some in _parts(ids):
                connection.execute(IMAGES.delete().where(IMAGES.c.id.in_(some)))
        self._tidy(always=True)

    # Queries

    def get(self, ids: Sequence[str]) -> list[Vote]:
        """Raises UnknownIdError."""
        with self._database.read() as connection:
            self._check_all(connection, ids)
            return self._get(connection, ids)

    def find(self, wanted: Filter, limit: int | None = None, after: tuple[float, str] | None = None) -> list[Vote]:
        """The latest first. `after`: `shown` and `id` of the last image of the page before."""
        query = select(IMAGES).where(_condition(wanted)).order_by(IMAGES.c.shown.desc(), IMAGES.c.id.desc())
        if after is not None:
            shown, image_id = after
            same = and_(IMAGES.c.shown == shown, IMAGES.c.id < image_id)
            query = query.where(or_(IMAGES.c.shown < shown, same))
        with self._database.read() as connection:
            return [_vote(row) for row in connection.execute(query.limit(limit))]

    def counts(self, wanted: Filter) -> dict[str, int]:
        """The number of images with each vote; the filter's own `votes` is ignored."""
        condition = _condition(replace(wanted, votes="all"))
        query = select(IMAGES.c.label, func.count().label("number")).where(condition).group_by(IMAGES.c.label)
        with self._database.read() as connection:
            found = {row.label: row.number for row in connection.execute(query)}
        return {name: found.get(labels[0], 0) for name, labels in VOTES.items() if len(labels) == 1}

    def names(self) -> dict[str, list[str]]:
        """The names that a filter can choose: `model`, `lora`, `tag`."""
        columns = {"model": IMAGES.c.model_name, "lora": LORAS.c.name, "tag": IMAGES.c.tag}
        with self._database.read() as connection:
            return {
                name: list(connection.scalars(select(column).where(column != "").distinct().order_by(column)))
                for name, column in columns.items()
            }

    def fingerprint(self, wanted: Filter) -> str:
        """A digest that changes whenever the images that `wanted` chooses, or their votes, change."""
        columns = (IMAGES.c.id, IMAGES.c.label, IMAGES.c.tag, IMAGES.c.pair, IMAGES.c.latent, IMAGES.c.positive)
        query = select(*columns).where(_condition(wanted)).order_by(IMAGES.c.id)
        with self._database.read() as connection:
            return hashlib.sha256(repr([tuple(row) for row in connection.execute(query)]).encode()).hexdigest()

    def workflow(self, vote: Vote) -> dict:
        """{"prompt", "workflow"}, each of them only if it was stored."""
        with self._database.read() as connection:
            packed = connection.scalar(select(WORKFLOWS.c.json).where(WORKFLOWS.c.name == vote.workflow))
        return read_json(zlib.decompress(packed)) if packed else {}

    def image_path(self, image_id: str) -> Path:
        """The path of a PNG. Raises UnknownIdError."""
        self.get([image_id])
        return self._image_path(image_id)

    def latent(self, vote: Vote) -> Tensor | None:
        """[1, C, ...], None if there is none. Raises ValueError for a file that is missing or damaged."""
        return blobs.read_latent(self._folder / "latents", vote.latent) if vote.latent else None

    def conditioning(self, name: str) -> list:
        """`name`: `positive` or `negative` of a vote. Raises ValueError for a file that is missing or damaged."""
        return blobs.read_conditioning(self._folder / "prompts", name)

    # Files and rows

    def _with_files(self, offer: Offer) -> Vote:
        """Writes the files of an image and returns its row. Raises StoreError."""
        try:
            return self._written(offer)
        except OSError as error:
            raise StoreError(
                f"The image cannot be saved in {self._folder}: {error.strerror or error}. What was there is as it was."
            ) from error

    def _written(self, offer: Offer) -> Vote:
        latents, prompts = self._folder / "latents", self._folder / "prompts"
        height, width, _ = offer.pixels.shape
        blobs.write_image(self._image_path(offer.id), offer.pixels)
        return Vote(
            id=offer.id,
            width=width,
            height=height,
            recipe=offer.recipe,
            latent=None if offer.latent is None else blobs.write_latent(latents, offer.latent),
            positive=None if offer.positive is None else blobs.write_conditioning(prompts, offer.positive),
            negative=None if offer.negative is None else blobs.write_conditioning(prompts, offer.negative),
            label=offer.label,
            tag=offer.tag.strip(),
            pair=offer.pair,
            workflow=None if offer.workflow is None else hashlib.sha256(offer.workflow.encode()).hexdigest(),
            workflow_id=offer.workflow_id,
            node=offer.node,
        )

    def _image_path(self, image_id: str) -> Path:
        return self._folder / "images" / f"{image_id}.png"

    def _own_files(self, vote: Vote) -> list[Path]:
        latent = [self._folder / "latents" / f"{vote.latent}{blobs.ENDING}"] if vote.latent else []
        return [self._image_path(vote.id), *latent]

    def _files(self, vote: Vote) -> list[Path]:
        prompts = [name for name in (vote.positive, vote.negative) if name]
        return [*self._own_files(vote), *(self._folder / "prompts" / f"{name}{blobs.ENDING}" for name in prompts)]

    def _put(self, connection: Connection, vote: Vote, place: int) -> None:
        values = {key: value for key, value in vars(vote).items() if key != "recipe"}
        values |= {"place": place, "model_name": vote.recipe.model_name, "recipe": json.dumps(asdict(vote.recipe))}
        values["bytes"] = sum(path.stat().st_size for path in self._own_files(vote))
        connection.execute(insert(IMAGES).values(values).on_conflict_do_update(index_elements=["id"], set_=values))
        connection.execute(LORAS.delete().where(LORAS.c.image == vote.id))
        for name in {lora.name for lora in vote.recipe.loras}:
            connection.execute(insert(LORAS).values(image=vote.id, name=name))

    def _change(self, ids: Sequence[str], **values) -> list[Vote]:
        with self._database.write() as connection:
            self._check_all(connection, ids)
            for some in _parts(ids):
                connection.execute(IMAGES.update().where(IMAGES.c.id.in_(some)).values(values))
            return self._get(connection, ids)

    def _check_all(self, connection: Connection, ids: Sequence[str]) -> None:
        there = {vote.id for vote in self._get(connection, ids)}
        if unknown := [each for each in ids if each not in there]:
            raise UnknownIdError(
                f"{len(unknown)} of {len(ids)} ids are of no image that was shown here, {unknown[0][:64]!r} for one. "
                "Nothing was changed."
            )

    def _get(self, connection: Connection, ids: Sequence[str]) -> list[Vote]:
        found: dict[str, Vote] = {}
        for some in _parts(ids):
            found |= {row.id: _vote(row) for row in connection.execute(select(IMAGES).where(IMAGES.c.id.in_(some)))}
        return [found[each] for each in dict.fromkeys(ids) if each in found]

    def _tidy(self, always: bool = False) -> None:
        """Forgets the oldest images without a vote, and removes files that no row names.

        Files are removed after their rows are committed, and under the write lock. `offer` writes files before it has
        the lock, and looks for them again when it has it.
        """
        newest = IMAGES.c.shown.desc(), IMAGES.c.id.desc()
        count, size = func.count().over(order_by=newest), func.sum(IMAGES.c.bytes).over(order_by=newest)
        ranked = select(IMAGES.c.id, count, size).where(IMAGES.c.label == UNDECIDED)
        with self._database.read() as connection:
            rows = list(connection.execute(ranked))
        old = [image_id for image_id, number, total in rows if number > _MOST_UNDECIDED or total > _MOST_BYTES]
        if len(old) < _SLACK and not always:
            return
        with self._database.write() as connection:
            for some in _parts(old):
                connection.execute(IMAGES.delete().where(IMAGES.c.id.in_(some), IMAGES.c.label == UNDECIDED))
            named = select(IMAGES.c.workflow).where(IMAGES.c.workflow.is_not(None))
            connection.execute(WORKFLOWS.delete().where(WORKFLOWS.c.name.not_in(named)))
        with self._database.write() as connection:
            for folder, columns in (("images", ["id"]), ("latents", ["latent"]), ("prompts", ["positive", "negative"])):
                used = {name for column in columns for name in connection.scalars(select(IMAGES.c[column]))}
                for path in (self._folder / folder).glob("*.*"):
                    if path.is_file() and path.stem not in used:
                        path.unlink(missing_ok=True)


def _parts(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[i : i + _AT_ONCE] for i in range(0, len(ids), _AT_ONCE)]


def _condition(wanted: Filter) -> ColumnElement[bool]:
    when = func.coalesce(IMAGES.c.voted, IMAGES.c.shown)
    conditions: list[ColumnElement[bool]] = [IMAGES.c.label.in_(VOTES[wanted.votes])]
    if wanted.model:
        conditions.append(IMAGES.c.model_name.icontains(wanted.model, autoescape=True))
    if wanted.lora:
        named = and_(LORAS.c.image == IMAGES.c.id, LORAS.c.name.icontains(wanted.lora, autoescape=True))
        conditions.append(exists().where(named))
    if wanted.tag:
        conditions.append(IMAGES.c.tag == wanted.tag)
    if wanted.since is not None:
        conditions.append(when >= wanted.since)
    if wanted.until is not None:
        conditions.append(when < wanted.until)
    return and_(*conditions)


def _merged(known: Vote | None, offered: Vote, now: float) -> Vote:
    """The row of an image that is shown again: what is new, and of what is not given, what was known."""
    if known is None:
        return replace(offered, voted=now if offered.label else None)
    latent = offered.latent or known.latent
    label, voted = (offered.label, now) if offered.label else (known.label, known.voted)
    better = offered.recipe.model or not known.recipe.model
    return replace(
        offered,
        recipe=offered.recipe if better else known.recipe,
        latent=latent,
        positive=offered.positive or known.positive,
        negative=offered.negative or known.negative,
        label=label,
        voted=voted,
        tag=offered.tag or known.tag,
        pair=offered.pair or known.pair,
        workflow=offered.workflow or known.workflow,
        workflow_id=offered.workflow_id or known.workflow_id,
        node=offered.node or known.node,
    )


def _vote(row: Row) -> Vote:
    values = dict(row._mapping)
    recipe = json.loads(values.pop("recipe"))
    for name in ("place", "bytes", "model_name"):
        del values[name]
    if recipe["noise"] is not None:
        recipe["noise"] = Noise(**{**recipe["noise"], "shape": tuple(recipe["noise"]["shape"])})
    recipe["loras"] = tuple(Lora(**lora) for lora in recipe["loras"])
    return Vote(recipe=Recipe(**recipe), **values)
