"""The wire format: JSON Schemas of the topics, and an AsyncAPI 3.0 document, made from the types.

The files beside this module are what `freshet schemas` writes.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from inspect import cleandoc
from typing import Any, NamedTuple

import msgspec

from freshet.core.catalogue import CatalogueItem
from freshet.core.events import DeadLetterHeaders, Event
from freshet.core.popularity import Partial
from freshet.core.recommendation import Recommendation
from freshet.core.rollout import Report, Rollout
from freshet.settings import Settings

DIALECT = "https://json-schema.org/draft/2020-12/schema"
BINDING_VERSION = "0.5.0"
"""Of AsyncAPI's Kafka bindings."""
TOMBSTONE = {"type": "null"}
CLOUDEVENT_HEADERS = ("ce_specversion", "ce_id", "ce_type", "ce_subject", "ce_time")
"""Of CloudEvents' Kafka binding 1.0.2, in binary mode: they fill fields that the value leaves out."""


class MessageSchema(NamedTuple):
    """A kind of record."""

    name: str
    summary: str
    payload: dict[str, Any]
    headers: dict[str, Any] | None = None
    content_type: str = "application/json"


class Channel(NamedTuple):
    """A topic as the worker sees it."""

    name: str
    topic: str
    key: str
    schema: dict[str, Any]
    messages: tuple[MessageSchema, ...]
    actions: tuple[str, ...]
    """What the worker does: `receive`, `send`."""


def documents() -> dict[str, bytes]:
    """Every file by name: a JSON Schema a topic, and the AsyncAPI document."""
    channels = _channels()
    files = {f"{channel.topic}.json": channel.schema for channel in channels}
    files["asyncapi.json"] = _asyncapi(channels)
    return {name: as_file(document) for name, document in files.items()}


def as_file(document: dict[str, Any]) -> bytes:
    """A document as it is checked in."""
    return msgspec.json.format(msgspec.json.encode(document)) + b"\n"


def _channels() -> tuple[Channel, ...]:
    topics = Settings()
    strings = {"type": "object", "properties": {name: {"type": "string"} for name in CLOUDEVENT_HEADERS}}
    dead_letter = MessageSchema(
        "deadLetter",
        "A record that is no event: its own key, bytes and headers, and headers that say why.",
        {"description": "The record's value as it came, or null where it had none."},
        {"$ref": f"{topics.dlq_topic}.json"},
        "application/octet-stream",
    )
    return (
        Channel(
            "events",
            topics.events_topic,
            "The user id in UTF-8; murmur2 over the key names the partition.",
            _schema(Event),
            (_message("event", "Something that a user did, or asked for.", topics.events_topic, strings),),
            ("receive",),
        ),
        Channel(
            "items",
            topics.items_topic,
            "The item id in UTF-8.",
            _schema(CatalogueItem),
            (
                _message("item", "An item of the catalogue.", topics.items_topic),
                MessageSchema("itemWithdrawal", "No list may hold the item any more.", TOMBSTONE),
            ),
            ("receive",),
        ),
        Channel(
            "recommendations",
            topics.recommendations_topic,
            "The user id in UTF-8; murmur2 over the key names the partition.",
            _schema(Recommendation),
            (
                _message("recommendation", "A user's list.", topics.recommendations_topic),
                MessageSchema("erasure", "The user is erased: forget every list of theirs.", TOMBSTONE),
            ),
            ("send",),
        ),
        Channel(
            "deadLetters",
            topics.dlq_topic,
            "The record's own key, or none.",
            _schema(DeadLetterHeaders),
            (dead_letter,),
            ("send",),
        ),
        Channel(
            "models",
            topics.models_topic,
            "Model and version, or model and worker.",
            _schema(Rollout | Report),
            (
                _message("rolloutRecord", "A step of a version, or what a worker makes of it.", topics.models_topic),
                MessageSchema("reportWithdrawal", "The worker is gone.", TOMBSTONE),
            ),
            ("receive", "send"),
        ),
        Channel(
            "popularity",
            topics.popularity_topic,
            "The partition number of the events topic, in decimal digits.",
            _schema(Partial),
            (_message("counts", "Popularity as one partition of the events topic has it.", topics.popularity_topic),),
            ("receive", "send"),
        ),
    )


def _message(name: str, summary: str, topic: str, headers: dict[str, Any] | None = None) -> MessageSchema:
    """A kind of record whose value is of the topic's schema."""
    return MessageSchema(name, summary, {"$ref": f"{topic}.json"}, headers)


def _schema(kind: Any) -> dict[str, Any]:
    """The JSON Schema of a type."""
    schema = msgspec.json.schema(kind)
    for definition in schema["$defs"].values():
        described(definition)
    return {"$schema": DIALECT, **schema}


def described(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition, in which each property has what the docstring of the type says of it under `Attributes:`."""
    description, _, attributes = cleandoc(definition.pop("description", "")).partition("\n\nAttributes:\n")
    if description:
        definition["description"] = description
    _, *parts = re.split(r"^    (\w+): ", attributes, flags=re.MULTILINE)
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        definition["properties"][name]["description"] = " ".join(text.split())
    return definition


def _asyncapi(channels: tuple[Channel, ...]) -> dict[str, Any]:
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Freshet",
            "version": version("freshet"),
            "description": "A stream of user events in, a stream of fresh recommendations out. "
            "Addresses are the default names of the topics; the settings name others.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {channel.name: _channel(channel) for channel in channels},
        "operations": {
            f"{action}{channel.name[0].upper()}{channel.name[1:]}": {
                "action": action,
                "channel": {"$ref": f"#/channels/{channel.name}"},
            }
            for channel in channels
            for action in channel.actions
        },
        "components": {
            "messages": {
                message.name: _component(message, channel.key) for channel in channels for message in channel.messages
            }
        },
    }


def _channel(channel: Channel) -> dict[str, Any]:
    references = {message.name: {"$ref": f"#/components/messages/{message.name}"} for message in channel.messages}
    return {
        "address": channel.topic,
        "messages": references,
        "bindings": {"kafka": {"topic": channel.topic, "bindingVersion": BINDING_VERSION}},
    }


def _component(message: MessageSchema, key: str) -> dict[str, Any]:
    headers = {} if message.headers is None else {"headers": message.headers}
    return {
        "name": message.name,
        "summary": message.summary,
        "contentType": message.content_type,
        "payload": message.payload,
        **headers,
        "bindings": {"kafka": {"key": {"type": "string", "description": key}, "bindingVersion": BINDING_VERSION}},
    }
