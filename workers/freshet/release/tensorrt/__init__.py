"""TensorRT plans: built on the serving host, stamped, refused elsewhere."""
