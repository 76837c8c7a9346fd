"""Lists out: the reader of the recommendations topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from freshet.client.connection import ClientError
from freshet.client.reader import TopicReader, TopicRecord
from freshet.core.recommendation import Recommendation, decode_recommendation
from freshet.settings import Settings


class UnreadableListError(ClientError):
    """A record of the recommendations topic holds no list; a new loop goes on behind it."""


class Lists:
    """Reads the lists of all users, or of one.

    A loop gives user ids with their lists as they are published, and None for a user who has been erased: forget
    what you hold of them. Each loop goes on where the one before has ended::

        with freshet.Lists(freshet.load_settings()) as lists:
            for user_id, recommendation in lists:
                ...
    """

    def __init__(
        self,
        settings: Settings,
        *,
        user_id: str | None = None,
        from_beginning: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Connect, and begin behind what has been published, or with it where `from_beginning`.

        A loop ends after `timeout` seconds without a list, and when the reader is closed. Raises
        `ConnectionFailedError` and `NoTopicError`.
        """
        self._settings = settings
        self._timeout = timeout
        self._lookup: TopicReader | None = None
        self._reader = TopicReader(settings, settings.recommendations_topic)
        self._reader.follow(None if user_id is None else user_id.encode(), from_beginning=from_beginning)

    def __iter__(self) -> Iterator[tuple[str, Recommendation | None]]:
        """User ids and lists. Raises `ConnectionFailedError` and `UnreadableListError`."""
        while (record := self._reader.next_record(self._timeout)) is not None:
            yield (record.key or b"").decode(errors="replace"), self._decoded(record)

    def newest(self, user_id: str) -> Recommendation | None:
        """The user's newest list; None where there is none, or the user has been erased.

        Kafka has no index: the time grows with what was published since. Raises `ClientError` when a read stalls, and
        `UnreadableListError`.
        """
        if self._lookup is None:
            self._lookup = TopicReader(self._settings, self._settings.recommendations_topic)
        found = self._lookup.newest(user_id.encode())
        return self._decoded(found[0]) if found else None

    def close(self) -> None:
        """End every loop, in other threads as well."""
        self._reader.close()
        if self._lookup is not None:
            self._lookup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decoded(self, record: TopicRecord) -> Recommendation | None:
        if not record.value:
            return None
        recommendation = decode_recommendation(record.value)
        if isinstance(recommendation, str):
            where = f"{self._settings.recommendations_topic} {record.partition}@{record.offset}"
            raise UnreadableListError(f"{where} is {recommendation}: is the topic another program's?")
        return recommendation
