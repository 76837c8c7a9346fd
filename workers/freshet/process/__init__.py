"""What every long-running process has: health, metrics, logs, and an end."""
