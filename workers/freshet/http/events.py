"""Events over HTTP: the stream's own decoding, and an answer when Kafka has them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from freshet.core.decoding import Undecodable, decode
from freshet.core.events import BadEvent, BadReason, Event, decode_event, encode_event
from freshet.http.messages import MAX_EVENTS, Accepted, AcceptedEvents
from freshet.http.problems import ProblemError
from freshet.ports import DeliveryError, Message, Publisher, TooLargeError
from freshet.settings import Settings

JSON = "application/json"
CLOUDEVENT = "application/cloudevents+json"
CLOUDEVENTS = "application/cloudevents-batch+json"
MEDIA_TYPES = (JSON, CLOUDEVENT, CLOUDEVENTS)
CLOUDEVENT_HEADERS = {
    "specversion": "ce_specversion",
    "id": "ce_id",
    "type": "ce_type",
    "subject": "ce_subject",
    "time": "ce_time",
}
"""What the stream takes of a CloudEvent's attributes, under the names of its headers."""

_many = msgspec.json.Decoder(list[msgspec.Raw])
_one = msgspec.json.Decoder(dict[str, Any])


class EventSink:
    """Takes events from requests to the events topic."""

    def __init__(self, settings: Settings, publisher: Publisher, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._publisher = publisher
        self._clock = clock

    async def take(self, body: bytes, media_type: str) -> AcceptedEvents:
        """Send the events of a body on, and return once Kafka has them.

        Raises `ProblemError` for a body that is none, and where Kafka does not answer: then no event is accepted,
        though Kafka may have some. Sent again under the same ids, an event that Kafka has counts once.
        """
        given = _split(body, media_type)
        decoded = [self._decoded(raw, cloudevent=media_type != JSON) for raw in given]
        outcomes = [
            Accepted(event.event_id) if isinstance(event, Event) else Accepted(None, event.reason, event.detail)
            for event in decoded
        ]
        messages: dict[int, Message] = {
            number: Message(self._settings.events_topic, event.user_id.encode(), encode_event(event))
            for number, event in enumerate(decoded)
            if isinstance(event, Event)
        }
        for number in await self._publish(messages):
            detail = "the broker refuses the record as too large"
            outcomes[number] = Accepted(outcomes[number].event_id, BadReason.TOO_LARGE, detail)
        refused = sum(outcome.reason is not None for outcome in outcomes)
        return AcceptedEvents(len(outcomes) - refused, refused, outcomes)

    async def _publish(self, messages: Mapping[int, Message]) -> list[int]:
        """Publish; the numbers of those that the broker refuses as too large. Raises `ProblemError`."""
        try:
            await self._publisher.publish(list(messages.values()))
        except TooLargeError as error:
            return [number for number, message in messages.items() if message in error.messages]
        except DeliveryError as error:
            raise ProblemError(503, f"Kafka did not take the events ({error}): send them again", 1) from None
        return []

    def _decoded(self, raw: bytes, *, cloudevent: bool) -> Event | BadEvent:
        """An event as the stream would see it; an id and a time are given where there is none."""
        given = decode(_one, raw)
        if isinstance(given, Undecodable):
            return BadEvent(BadReason.INVALID if given.well_formed else BadReason.NOT_JSON, given.why)
        now = int(self._clock() * 1000)
        headers: Sequence[tuple[str, bytes | None]] = ()
        fields: Any = given
        if cloudevent:
            headers, fields = _attributes(given), given.get("data")
            if not isinstance(fields, dict):
                return BadEvent(BadReason.INVALID, "the CloudEvent's `data` is no object")
        else:
            fields = {"event_id": uuid.uuid4().hex, "ts": now, **given}
        user_id = fields.get("user_id", given.get("subject"))
        key = user_id.encode(errors="surrogatepass") if isinstance(user_id, str) else b""
        value = msgspec.json.encode(fields)
        return decode_event(value, key, self._settings.behaviours, headers, self._settings.latest_ts(now))


def _split(body: bytes, media_type: str) -> list[bytes]:
    """The events of a body, each as JSON. Raises `ProblemError`."""
    if media_type not in MEDIA_TYPES:
        raise ProblemError(415, f"a body of {media_type or 'no type'}: send {', '.join(MEDIA_TYPES)}")
    if media_type == CLOUDEVENT or (media_type == JSON and not body.lstrip().startswith(b"[")):
        return [body]
    events = decode(_many, body)
    if isinstance(events, Undecodable):
        raise ProblemError(400, f"the body is no JSON array of events: {events.why}")
    if not 1 <= len(events) <= MAX_EVENTS:
        raise ProblemError(400, f"{len(events)} events: send 1 to {MAX_EVENTS} at once")
    return [bytes(event) for event in events]


def _attributes(cloudevent: Mapping[str, Any]) -> list[tuple[str, bytes | None]]:
    """A CloudEvent's attributes as the headers that the stream reads."""
    return [
        (header, value.encode(errors="surrogatepass"))
        for name, header in CLOUDEVENT_HEADERS.items()
        if isinstance(value := cloudevent.get(name, ""), str)
    ]
