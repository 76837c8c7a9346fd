"""Offline evaluation: pure statistics over what was shown and what the user did next."""
