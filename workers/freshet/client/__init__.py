"""Clients of the stream, for programs other than the worker: events in, lists out."""

from freshet.client.connection import ClientError, ConnectionFailedError, NoTopicError
from freshet.client.events import Events, InvalidEventError
from freshet.client.lists import Lists, UnreadableListError
from freshet.ports import DeliveryError

__all__ = [
    "ClientError",
    "ConnectionFailedError",
    "DeliveryError",
    "Events",
    "InvalidEventError",
    "Lists",
    "NoTopicError",
    "UnreadableListError",
]
