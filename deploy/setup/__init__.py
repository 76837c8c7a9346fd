"""Fetches everything Freshet runs on, before any environment exists."""
