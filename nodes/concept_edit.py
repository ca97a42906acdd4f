"""TIME (Orgad et al., ICCV 2023, arXiv 2303.08084) and UCE (Gandikota et al., WACV 2024, arXiv 2308.14761): what a
model makes of a concept, edited in closed form, and the edit as a LoRA."""

from collections.abc import Iterator
from dataclasses import dataclass

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..samplers.lora.concept_edit import TextEdit, Wishes, edit
from .host.concepts.lines import Edit, Keep, read_edits, read_keeps
from .host.concepts.maps import MAPS, POOLED, PUBLISHED, Map, is_unet, maps_of, takes_pooled
from .host.concepts.texts import Encoded, Texts
from .host.files import folders as files
from .host.inputs import checked
from .host.run.messages import cut, plain, quoted, tell
from .host.run.outputs import report_output, with_report

LABEL = "Concept Edit"
UCE, TIME = "UCE", "TIME"
LAMBDAS = {UCE: 0.5, TIME: 0.1}  # both papers' code
# What is put before a concept, so that it is edited in other prompts too: TIME's, UCE's for objects and for styles.
_OF_TIME = ("A photo of", "An image of", "A picture of")
_OF_OBJECTS = ("image of", "photo of", "portrait of", "picture of", "painting of")
_OF_STYLES = ("painting by", "art by", "artwork by", "picture by", "style of")
AUTO, OFF, OBJECT, STYLE = "auto", "off", "object", "style"
_LONGEST = 500  # characters of a line in the report


@dataclass(frozen=True)
class _Wish:
    """One of the texts that a map is given, what it is to be taken for, and how much that counts."""

    given: Tensor  # [n, C]
    wanted: Tensor
    weight: float


def _pooled(encoded: Encoded) -> Tensor:
    """The pooled output [1, channels]."""
    if encoded.pooled is None:
        raise ValueError(f"The CLIP has no pooled output for {quoted(encoded.text)}.")
    return encoded.pooled[None]


class _Concepts:
    """Lines, as wishes for what maps are given."""

    def __init__(
        self, texts: Texts, edits: list[Edit], keeps: list[Keep], method: str, prefixes: tuple[str, ...]
    ) -> None:
        self.texts, self.edits, self.keeps, self.method, self.prefixes = texts, edits, keeps, method, ("", *prefixes)

    @property
    def has_pooled(self) -> bool:
        return all(self.texts[one.source].pooled is not None for one in self.edits)

    def of_tokens(self) -> Iterator[_Wish]:
        for one in self.edits:
            for prefix in self.prefixes:
                source = self._source(one, prefix)
                if one.target is None:
                    yield _Wish(source.last_words, source.last_words + self._added(one), one.weight)
                    continue
                target = self.texts[_behind(prefix, one.target)]
                pairs = self._pairs(source, target, one)
                given, wanted = (e.tokens[[pair[i] for pair in pairs]] for i, e in enumerate((source, target)))
                yield _Wish(given, wanted, one.weight)
        for keep in self.keeps:
            kept = self._kept(keep)
            tokens = kept.tokens if self.method == TIME else kept.last_words
            yield _Wish(tokens, tokens, keep.weight)

    def of_pooled(self) -> Iterator[_Wish]:
        for one in self.edits:
            for prefix in self.prefixes:
                source = _pooled(self._source(one, prefix))
                if one.target is None:
                    added = (amount * _pooled(self._attribute(one, text)) for amount, text in one.added)
                    target = sum(added, source)
                else:
                    target = _pooled(self.texts[_behind(prefix, one.target)])
                yield _Wish(source, target, one.weight)
        for keep in self.keeps:
            pooled = _pooled(self._kept(keep))
            yield _Wish(pooled, pooled, keep.weight)

    def _source(self, one: Edit, prefix: str) -> Encoded:
        self._not_empty(self.texts[one.source], one.line)
        return self.texts[_behind(prefix, one.source)]

    def _attribute(self, one: Edit, text: str) -> Encoded:
        return self._not_empty(self.texts[text], one.line)

    def _kept(self, one: Keep) -> Encoded:
        return self._not_empty(self.texts[one.text], one.text)

    def _not_empty(self, encoded: Encoded, line: str) -> Encoded:
        if encoded.empty:
            raise ValueError(
                f"In the line {quoted(line)} nothing is left of {quoted(encoded.text)} as tokens: the CLIP knows none "
                "of its words. Write it in other words."
            )
        return encoded

    def _added(self, one: Edit) -> Tensor:
        first, *others = (amount * self._attribute(one, text).last_words for amount, text in one.added)
        return sum(others, first)

    def _pairs(self, source: Encoded, target: Encoded, one: Edit) -> list[tuple[int, int]]:
        """Places of the texts' tokens: each of the source's, and the one that it is to be taken for."""
        stretches = list(zip(source.stretches, target.stretches))
        if self.method == UCE:
            return [(a.last_word, b.last_word) for a, b in stretches]
        found = []
        for a, b in stretches:
            pairs = a.aligned(b)
            if pairs is None:
                raise ValueError(
                    f"TIME takes every word to itself, and in the line {quoted(one.line)} those before the arrow are "
                    "not all behind it in the same order. Write it as a rose \u2192 a blue rose, or choose method UCE."
                )
            found += pairs
        return found


def _behind(prefix: str, text: str) -> str:
    return f"{prefix} {text}".strip()


class ConceptEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitConceptEdit",
            display_name="Concept Edit (UCE, TIME)",
            category="guidekit/alignment",
            description="Changes what a model takes a word for, in seconds and without training: roses are blue, a "
            "style is forgotten, a profession leans to neither side. The edit can be saved as a LoRA.",
            search_aliases=[
                "concept edit",
                "UCE",
                "TIME",
                "unified concept editing",
                "erase concept",
                "unlearn",
                "forget style",
                "debias",
                "edit knowledge",
                "replace word",
                "make a lora without training",
                "lora without training",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A UNet (SD1, SD2, SDXL). Flux, Chroma, SD3, Qwen-Image, Lumina2 and Z-Image are "
                    "experimental. LoRAs that are on it are taken as part of it.",
                ),
                io.Clip.Input("clip", tooltip="The model's text encoder, with the clip skip that is used for prompts."),
                io.String.Input(
                    "edits",
                    multiline=True,
                    default="a rose -> a blue rose",
                    tooltip="One per line: a rose -> a blue rose; style of Van Gogh -> art; a doctor -> + 0.3 a woman, "
                    "which lets it lean there (minus: away). Nothing behind the arrow erases. A weight may come last: "
                    "* 2.",
                ),
                io.String.Input(
                    "keep",
                    multiline=True,
                    default="",
                    tooltip="What shall stay as it is, one per line: other flowers, other styles. Also with weights.",
                ),
                io.Combo.Input(
                    "method",
                    options=[UCE, TIME],
                    default=UCE,
                    tooltip="UCE edits the last word of each text. TIME edits every token of it, so that it is for "
                    "prompts like the ones given; its words have to come again behind the arrow. Lines with + or - are "
                    "UCE's in both.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="1 is the edit, 0 the model without it; below 0 the opposite. The saved file has 1.",
                ),
                io.Float.Input(
                    "edit_lambda",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.05,
                    round=False,
                    tooltip="How much weights are held where they are: more of it edits less, and leaves more of the "
                    "rest alone. 0 takes what was published: 0.5 for UCE, 0.1 for TIME.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "expand",
                    options=[AUTO, OFF, OBJECT, STYLE],
                    default=AUTO,
                    tooltip="Edits the same behind usual beginnings too: photo of ... for objects, art by ... for "
                    "styles. auto: as published, for TIME yes, for UCE no.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "maps",
                    options=list(MAPS),
                    default=PUBLISHED,
                    tooltip="UNets: whether keys, values or both of cross-attention are edited, and whether the layer "
                    "that the pooled text goes through is too. Other models have their own.",
                    advanced=True,
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    tooltip="Name of a file in models/loras/guidekit that gets the edit as a LoRA, for any LoRA "
                    "loader; an old one is replaced. Empty: none.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the edit."),
                report_output("What was edited, how far it got, and what it did to what is kept."),
            ],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(cls, model, clip, edits, keep, method, strength, edit_lambda, expand, maps, save_as) -> io.NodeOutput:
        name = files.LORAS.check(save_as) if save_as.strip() else ""
        read, kept = read_edits(edits), read_keeps(keep)
        if strength == 0 and not name:
            return with_report(model.clone(), report=tell(LABEL, "strength 0, nothing is changed."))
        found = _Concepts(Texts(clip), read, kept, method, _prefixes(method, expand))
        changes = _changes(model, maps, found, edit_lambda or LAMBDAS[method])
        tensors = {name: tensor for change in changes for name, tensor in change.tensors(model)}
        sentences = _report(model, changes, method, maps, found)
        if name:
            about = {"method": method, "lambda": f"{edit_lambda or LAMBDAS[method]:g}", "edits": edits, "keep": keep}
            saved = files.LORAS.save(name, tensors, about, {"modelspec.title": _title(read, method)})
            sentences.append(f"Saved as guidekit/{saved} among the LoRAs.")
        changed = model.clone()
        known = {change_map.path: change_map.key for change in changes for change_map in change.maps}
        if strength != 0:
            changed.add_patches(comfy.lora.load_lora(tensors, known, False), strength)
        return with_report(changed, report=tell(LABEL, "\n".join(cut(plain(each), _LONGEST) for each in sentences)))


@dataclass(frozen=True)
class _Change:
    """The maps that are given the same texts, and their edit."""

    maps: tuple[Map, ...]
    edit: TextEdit
    wishes: Wishes

    def tensors(self, model: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
        """As a LoRA's file has them, by the names that any loader of the host knows. Each of its own memory."""
        down = self.edit.down.float()
        for each in self.maps:
            yield f"{each.path}.lora_up.weight", self.edit.up(each.weight(model)).float().contiguous()
            yield f"{each.path}.lora_down.weight", down.clone()
            yield f"{each.path}.alpha", torch.tensor(float(self.edit.rank))

    def reached(self) -> tuple[float, float | None]:
        """How much of the way edited texts go, and how far kept ones go, as shares: of the way, and of their length."""
        given, wanted = self.wishes.given.double(), self.wishes.wanted.double()
        now = given + given @ self.edit.down.T @ self.edit.shift.T
        edited = (wanted != given).any(1)
        far = torch.linalg.vector_norm((now - wanted)[edited]) / torch.linalg.vector_norm((wanted - given)[edited])
        if edited.all():
            return 1 - far.item(), None
        moved = torch.linalg.vector_norm((now - given)[~edited], dim=1) / torch.linalg.vector_norm(
            given[~edited], dim=1
        )
        return 1 - far.item(), moved.max().item()


def _prefixes(method: str, expand: str) -> tuple[str, ...]:
    objects = _OF_TIME if method == TIME else _OF_OBJECTS
    if expand == AUTO:
        return objects if method == TIME else ()
    return {OFF: (), OBJECT: objects, STYLE: _OF_STYLES}[expand]


def _changes(model: ModelPatcher, which: str, found: _Concepts, ridge: float) -> list[_Change]:
    groups: dict[tuple, list[Map]] = {}
    for each in maps_of(model, which):
        if not each.pooled or found.has_pooled:
            groups.setdefault((each.pooled, each.norm), []).append(each)
    changes = []
    for (pooled, _), maps in groups.items():
        wishes = _wishes(model, maps[0], [*(found.of_pooled() if pooled else found.of_tokens())])
        if torch.equal(wishes.given, wishes.wanted):
            continue
        changes.append(_Change(tuple(maps), edit(wishes, ridge), wishes))
    if not changes:
        raise ValueError("The edits change nothing: to the CLIP, both sides of every arrow are the same.")
    return changes


def _wishes(model: ModelPatcher, first: Map, all_: list[_Wish]) -> Wishes:
    weights = torch.cat([torch.full((len(each.given),), each.weight, dtype=torch.float64) for each in all_])
    given, wanted = (torch.cat([getattr(each, name) for each in all_]) for name in ("given", "wanted"))
    return Wishes(first.given(model, given), first.given(model, wanted), weights)


def _report(model: ModelPatcher, changes: list[_Change], method: str, which: str, found: _Concepts) -> list[str]:
    said = []
    for change in changes:
        what = "the pooled text" if change.maps[0].pooled else "tokens"
        reached, moved = change.reached()
        kept = "" if moved is None else f", what is kept moves by up to {moved:.2%} of its length"
        said.append(
            f"{method}: {len(change.maps)} map{'s' * (len(change.maps) > 1)} of {what} edited, rank "
            f"{change.edit.rank}. Edited texts go {reached:.0%} of the way{kept}."
        )
    if not is_unet(model):
        said.append("Experimental on this model: the papers' are UNets.")
        if which != PUBLISHED:
            said.append(f"maps is not used: {type(model.model).__name__} has its own.")
    elif which == POOLED and not takes_pooled(model):
        said.append(f"{type(model.model).__name__} is given no pooled text, so that only tokens are edited.")
    elif which == PUBLISHED and takes_pooled(model):
        said.append("The pooled text, which this model is given too, is not edited; maps can do so.")
    return said


def _title(edits: list[Edit], method: str) -> str:
    rest = f" and {len(edits) - 1} more" if len(edits) > 1 else ""
    return f"{cut(edits[0].line, 100)}{rest} ({method})"
