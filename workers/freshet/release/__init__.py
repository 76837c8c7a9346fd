"""From a finished bundle to a version in service, and back.

`publish.py` has the steps, `repository.py` moves folders in Triton's model repository, `server.py`
asks Triton, `records.py` says what both need of the models topic.
"""
