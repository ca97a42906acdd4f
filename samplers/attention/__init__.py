"""Attention maps other than the network's own, on plain tensors [rows, heads, tokens, dim]."""
