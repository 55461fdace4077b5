"""Images by the name of their set, as uint8 tensors or as files, and how a training crop is made. Nothing is downloaded
unless asked for.

May use: no other room.
"""
