"""Whole scripts for the question `recipes`: each job with procbus, in a loop, and with a peer.

`thumbnails.py` is the script that the page in `docs/recipes/` shows, `thumbnails_loop.py` does the
same one by one, and `thumbnails_peer.py` with the library that its first line names.
"""
