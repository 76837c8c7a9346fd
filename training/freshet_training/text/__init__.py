"""Item texts in training: the text encoder, the cache of its vectors, and the vocabulary that texts share."""
