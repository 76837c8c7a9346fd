"""A version of the model as files: read, verified, signed."""
