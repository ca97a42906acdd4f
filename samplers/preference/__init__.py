"""Preference alignment: what is learned from images that somebody likes and dislikes."""
