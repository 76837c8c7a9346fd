"""Logs of events, whatever they are stored as."""
