"""The pure semantics that live worker, replay and training share.

Nothing here reads a clock, draws unseeded randomness or does I/O (bundle files
apart, in `bundle`). Depends on the standard library, numpy and msgspec alone.
"""
