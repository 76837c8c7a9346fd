"""The edges: each module puts one outside system behind a protocol of `freshet.ports`."""
