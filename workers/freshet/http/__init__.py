"""The read service: lists as of now and events over HTTP, beside the workers; it reads no event and keeps nothing."""
