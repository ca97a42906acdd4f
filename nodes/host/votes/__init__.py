"""Votes: images that were liked or disliked, with all that training needs of them, and how they were made.

They are stored in one folder of the host's user folder: a database, and the latents, prompts and images that it names.
Nodes use `opened.store()`, the types in `vote` and `vote_set`, and `digest.policy_digest`. Below it: run/, files/.
"""
