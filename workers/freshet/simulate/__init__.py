"""Shoppers with known tastes: event streams of any size in which the right answer is known by construction."""
