"""Makes a VoteSet of stored votes: balanced, paired, a share of them held out.

Which votes are held out or dropped is decided by a hash of each vote and the seed, so that adding votes does not move
the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..files.checksum import checksum
from ..run.messages import NAN_OF_VAE, cut
from .encoders import Encoders
from .pairs import Voted, pairs_in
from .remarks import groups_of, summary, warnings
from .vote import Vote, prompt_of
from .vote_set import VoteRow, VoteSet

if TYPE_CHECKING:
    from .store import Store

_LATENT, _PROMPT = "a latent (connect the VAE)", "a prompt (connect the CLIP)"
_UNKNOWN = "a prompt, and its text is not known"
BALANCE = ("off", "as many likes as dislikes", "within each prompt")


def select(
    store: Store, votes: Sequence[Vote], encoders: Encoders, balance: str, hold_out: float, seed: int
) -> tuple[VoteSet, list[str]]:
    """`votes`: likes and dislikes only. Returns the set and sentences about it.

    Raises:
        ValueError: no vote is left, or their latents are of different kinds of models.
    """
    order = partial(_order, seed)
    votes = sorted(votes, key=lambda vote: (vote.voted or 0.0, vote.id))
    rows, notes = _rows(store, votes, encoders)
    if not rows:
        raise ValueError(" ".join(["There is no vote to train on.", *notes]))
    rows = _balanced(rows, balance, order)
    rows = _paired(rows, {vote.id: vote.pair for vote in votes})
    held = _held_out(rows, hold_out, order)
    train, held_out = ([row for row in rows if (row.id in held) == which] for which in (False, True))
    empty = _empty(store, votes, encoders)
    parts = [(row.id, row.label, row.pair, row.prompt, row.cfg, row.policy, row.id in held) for row in rows]
    digest = checksum(repr(parts), {row.id: row.latent for row in rows})
    found = VoteSet(tuple(train), tuple(held_out), empty, digest)
    return found, [*summary(found, len(votes)), *notes, *warnings(rows, empty)]


def _rows(store: Store, votes: Sequence[Vote], encoders: Encoders) -> tuple[list[VoteRow], list[str]]:
    """The votes that have a latent and a prompt, and sentences about the others."""
    prompts: dict[tuple[str | None, str], list | None] = {}

    def prompt(name: str | None, text: str | None) -> list | None:
        key = name, "" if name else text or ""
        if key not in prompts:
            prompts[key] = encoders.prompt(store, *key) if name or text is not None else None
        return prompts[key]

    rows: list[VoteRow] = []
    broken: list[str] = []
    lacking: Counter[str] = Counter()
    infinite = 0
    for vote in votes:
        recipe = vote.recipe
        try:
            latent, positive = encoders.latent(store, vote), prompt(vote.positive, recipe.text)
            negative = prompt(vote.negative, recipe.negative_text)
        except (ValueError, OSError) as error:
            broken.append(str(error))
            continue
        if latent is not None and not torch.isfinite(latent).all():
            infinite += 1
            continue
        if latent is None or positive is None:
            lacking[_LATENT if latent is None else _UNKNOWN if recipe.text is None else _PROMPT] += 1
            continue
        rows.append(
            VoteRow(
                id=vote.id,
                latent=latent,
                positive=positive,
                negative=negative,
                text=recipe.text or "",
                label=vote.label,
                prompt=prompt_of(vote),
                policy=recipe.policy,
                cfg=recipe.cfg,
                noise=recipe.noise,
            )
        )
    notes = [f"{count} votes are left out: they came without {what}." for what, count in lacking.items()]
    if infinite:
        notes.append(f"{infinite} votes are left out: the VAE makes NaN of their images. {NAN_OF_VAE}")
    if broken:
        notes.append(f"{len(broken)} votes are left out: their files are missing or damaged. {cut(broken[0], 300)}")
    channels = sorted({row.latent.shape[1] for row in rows})
    if len(channels) > 1:
        raise ValueError(
            "The votes are on images of different kinds of models: their latents have "
            f"{' and '.join(map(str, channels))} channels. Choose one with model or tag."
        )
    return rows, notes


def _order(seed: int, key: str) -> float:
    """A number in 0..1, always the same for a seed and a key."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:6], "big") / 2**48


def _balanced(rows: list[VoteRow], balance: str, order: Callable[[str], float]) -> list[VoteRow]:
    if balance == BALANCE[0]:
        return rows
    groups = groups_of(rows) if balance == BALANCE[2] else {"": rows}
    kept: set[str] = set()
    for group in groups.values():
        sides = [sorted((row.id for row in group if row.label == label), key=order) for label in (1, -1)]
        fewer = min(map(len, sides))
        kept.update(*(side[:fewer] for side in sides))
    return [row for row in rows if row.id in kept]


def _paired(rows: list[VoteRow], names: dict[str, str | None]) -> list[VoteRow]:
    pairs = pairs_in([Voted(row.id, row.label, names[row.id], row.prompt) for row in rows])
    numbers = {vote.item: number for number, pair in enumerate(pairs) for vote in pair}
    return [replace(row, pair=numbers.get(row.id)) for row in rows]


def _held_out(rows: Sequence[VoteRow], share: float, order: Callable[[str], float]) -> set[str]:
    """The ids of held-out votes: whole prompts if there are enough of them for the share; else pairs, and votes without
    a pair."""
    if share == 0:
        return set()
    groups = groups_of(rows)
    if len(groups) * share >= 1:
        units = {prompt: [row.id for row in group] for prompt, group in groups.items()}
    else:
        pairs = defaultdict(list)
        for row in rows:
            pairs[row.id if row.pair is None else f"pair {row.pair}"].append(row.id)
        units = {min(unit): unit for unit in pairs.values()}
    held = [unit for key, unit in units.items() if order(key) < share]
    if not held and len(units) > 1:
        held = [units[min(units, key=order)]]
    return {row_id for unit in held for row_id in unit}


def _empty(store: Store, votes: Sequence[Vote], encoders: Encoders) -> list | None:
    """The CONDITIONING of an empty prompt: encoded, or that of a vote."""
    if encoders.clip is not None:
        return encoders.prompt(store, None, "")
    empty = (
        name
        for vote in votes
        for name, text in ((vote.negative, vote.recipe.negative_text), (vote.positive, vote.recipe.text))
        if name is not None and text == ""
    )
    return next((store.conditioning(name) for name in empty), None)
