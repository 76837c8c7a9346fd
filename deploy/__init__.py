"""Setting up and starting Freshet: the local stack and what it is made of."""
