"""Freshet's stream workers: a stream of user events in, fresh recommendations out."""
