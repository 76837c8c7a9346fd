"""A log through the code that serves it: other models, other settings, another time, the same semantics."""
