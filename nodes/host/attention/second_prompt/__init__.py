"""A second prompt in the attention of the positive's rows.

Nodes use `attach.steer_with_text`; the other files are the ways in which families take it. Below it: attention/ and
what is below that.
"""
