"""The live worker: from fetched records to published lists."""
