"""Attention by role, on every family: replaced, or with its queries or its output changed.

Nodes use `replace_self_attention`, `change_queries`, `change_attention_output`. Below it: run/, network/, models/.
"""
