"""Changes to attention: its maps, queries [rows, heads, tokens, dim] and outputs [..., tokens, channels]."""
