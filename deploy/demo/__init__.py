"""The demo: MovieLens-100K streamed through the local stack, and a live view of what comes out."""
