"""Replay a log through the serving code, with other models, other settings or at another time."""
