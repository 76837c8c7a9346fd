"""Faults put into real parts, and a judge who shares no code with what is judged."""
