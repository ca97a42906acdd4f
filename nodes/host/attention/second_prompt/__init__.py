"""A second prompt in the attention of the positive's rows.

Nodes use `attach.steer_with_text`; the other files implement it for the kinds of families. Below it: attention/ and
what is below that.
"""
