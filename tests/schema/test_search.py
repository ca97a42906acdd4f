"""Phrases that people type into the frontend's search find the node that helps."""

import pytest

from guidekit.tests.schema.catalogue import object_info
from guidekit.tests.schema.search import ranked

OURS = list(object_info().values())
FIRST = 3

STRUCTURE = {"GuidekitPAG", "GuidekitSEG", "GuidekitSLG"}
SAVES = {"GuidekitAdaptiveGuidance", "GuidekitGuidanceInterval", "GuidekitLinearAG"}
PHRASES = {
    "negative prompt flux": {"GuidekitNASA"},
    "negative prompt": {"GuidekitNASA"},
    "nag": {"GuidekitNASA"},
    "same face": {"GuidekitNegToMe"},
    "same seed": {"GuidekitNegToMe"},
    "variety": {"GuidekitNegToMe"},
    "edit photo": {"GuidekitExactInvert"},
    "unsample": {"GuidekitExactInvert"},
    "undo": {"GuidekitExactInvert"},
    "inpaint": {"GuidekitExactSample"},
    "like": {"GuidekitVote"},
    "dislike": {"GuidekitPreferenceLoraLoader", "GuidekitVote"},
    "vote": {"GuidekitVote", "GuidekitVoteByRule"},
    "thumbs up": {"GuidekitVote"},
    "feedback": {"GuidekitVote"},
    "teach taste": {"GuidekitVote"},
    "train": {"GuidekitTrainPreference"},
    "fine-tune": {"GuidekitTrainPreference"},
    "rank images": {"GuidekitPreferenceScore"},
    "preference dataset": {"GuidekitImportVotes", "GuidekitExportVotes"},
    "aesthetic": {"GuidekitPreferenceLoraLoader"},
    "dpo": {"GuidekitPreferenceLoraLoader"},
    "kto": {"GuidekitPreferenceLoraLoader"},
    "npo": {"GuidekitPreferenceLoraLoader"},
    "same style": {"GuidekitStyleAligned"},
    "reference only": {"GuidekitStyleAligned"},
    "consistent character": {"GuidekitStyleAligned"},
    "forget style": {"GuidekitConceptEdit"},
    "erase concept": {"GuidekitConceptEdit"},
    "debias": {"GuidekitConceptEdit"},
    "prompt adherence": {"GuidekitAPG"},
    "overcooked": {"GuidekitAPG"},
    "fried": {"GuidekitAPG"},
    "burnt": {"GuidekitAPG"},
    "contrast": {"GuidekitAPG"},
    "perp": {"GuidekitAPG"},
    "hands": STRUCTURE,
    "anatomy": STRUCTURE,
    "faster": SAVES,
    "fastercache": {"GuidekitCFGCache"},
    "hires fix": {"GuidekitFreCaSPlan"},
    "4k": {"GuidekitFreCaSPlan"},
    "detail": {"GuidekitFrequencyGuidance"},
    "zero star": {"GuidekitCFGZeroStar"},
    "skip cfg": SAVES,
}


@pytest.mark.parametrize("phrase", PHRASES)
def test_finds_the_node(phrase):
    """Among the first three of this pack; where three help, they are the three."""
    wanted = PHRASES[phrase]
    assert wanted <= set(ranked(phrase, OURS)[:FIRST])


def node(name: str, display_name: str = "", *aliases: str) -> dict:
    return {"name": name, "display_name": display_name or name, "search_aliases": list(aliases)}


def test_ranks_as_the_frontend_does():
    """Names before display names that hold it, before those that hold its words, before aliases; among aliases the
    nearest, and the whole before a part."""
    nodes = [
        node("A", "", "burnt colours and fried ones"),
        node("B", "", "fried"),
        node("C", "Twice fried"),
        node("Fried"),
        node("D", "Friedrich"),
        node("E", "Something else"),
        node("F", "", "frieb"),
        node("G", "", "it is far too long a way from here to fried"),
    ]
    assert ranked("fried", nodes) == ["Fried", "D", "C", "B", "F", "A"]
    assert ranked("else some", nodes) == ["E"]
    assert ranked("fried colours", nodes) == ["A"]
