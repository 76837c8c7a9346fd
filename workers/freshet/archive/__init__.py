"""Topics as Parquet, each record exactly once, and what is read off them."""
