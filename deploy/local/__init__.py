"""The local stack: a real Kafka broker, Triton and Redis as processes on the loopback address."""

from freshet.adapters.topic_creation import create_topics

from deploy.local.errors import (
    AlreadyRunning,
    MissingPart,
    NotRunning,
    PartDied,
    PartNotReady,
    PortTaken,
    StackError,
)
from deploy.local.parts import missing_parts
from deploy.local.stack import (
    Stack,
    add_process,
    is_running,
    kill_part,
    load,
    restart_part,
    start,
    start_part,
    stop,
    stop_part,
)

__all__ = [
    "AlreadyRunning",
    "MissingPart",
    "NotRunning",
    "PartDied",
    "PartNotReady",
    "PortTaken",
    "Stack",
    "StackError",
    "add_process",
    "create_topics",
    "is_running",
    "kill_part",
    "load",
    "missing_parts",
    "restart_part",
    "start",
    "start_part",
    "stop",
    "stop_part",
]
