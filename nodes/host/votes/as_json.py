"""Votes as JSON: for the page, and for other trainers."""

from .vote import Vote


def for_page(vote: Vote) -> dict:
    """What the page shows of an image. Every value is data: the page shows it as text."""
    recipe = vote.recipe
    return {
        "id": vote.id,
        "width": vote.width,
        "height": vote.height,
        "vote": vote.label,
        "tag": vote.tag,
        "shown": vote.shown,
        "voted": vote.voted,
        "text": recipe.text or "",
        "negative_text": recipe.negative_text or "",
        "seed": None if recipe.seed is None else str(recipe.seed),  # JavaScript's numbers do not hold it
        "sampler": recipe.sampler,
        "scheduler": recipe.scheduler,
        "steps": recipe.steps,
        "cfg": recipe.cfg,
        "model": recipe.model_name,
        "loras": [{"name": lora.name, "strength": lora.strength} for lora in recipe.loras],
    }


def for_trainers(vote: Vote, file: str) -> dict:
    """A line of votes.jsonl. `file`: the path of the image, relative to the exported folder."""
    recipe = vars(vote.recipe) | {
        "noise": vote.recipe.noise and vars(vote.recipe.noise),
        "loras": [vars(lora) for lora in vote.recipe.loras],
    }
    own = {"file": file, "label": vote.label, "tag": vote.tag, "pair": vote.pair, "voted": vote.voted}
    return {**own, "id": vote.id, "width": vote.width, "height": vote.height, **recipe}
