"""Random records and batches at the level of the protocol, on every topic that Freshet reads."""
