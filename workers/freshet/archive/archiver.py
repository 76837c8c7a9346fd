"""The archiver: a worker role that writes the events and the side inputs to Parquet, every record exactly once.

The archiver's group shares the partitions out. The files of a partition say where the partition goes on
(`archive.chain`). Group offsets are committed for lag monitors alone. Whatever the group offsets say, no row is lost
or doubled. librdkafka is the member of the group and fetches nothing: its decompression has no bound, and a batch
that it cannot read ends it. The records are read as the worker reads them (`adapters.wire_batches`).

When a file brings a `user.erase`, the archiver takes that user's records out of every file up to the event. The
archiver does so after a restart, too.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from freshet.adapters.kafka import client_config
from freshet.adapters.kafka_python import PartitionReader
from freshet.adapters.topics import missing_topics
from freshet.archive.appender import Appender
from freshet.archive.chain import ArchiveError, Chain
from freshet.archive.rows import erasures, event_rows, holds, item_rows, record_rows, without
from freshet.ports import Record
from freshet.process import metrics
from freshet.process.data_dir import instance_id
from freshet.process.health import Health, HealthServer, write_port
from freshet.process.json_logging import json_logs
from freshet.process.watchdog import EXIT_FAILED
from freshet.settings import Settings

FETCH_RECORDS = 10_000
FETCH_SECONDS = 0.5
REPORT_SECONDS = 1.0
SESSION_SECONDS = 10.0
ANSWER_SECONDS = 10.0

log = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Archive until SIGTERM or SIGINT. Returns the exit status. Raises `ArchiveError` where it cannot start."""
    json_logs()
    _require_topics(settings)
    try:
        Path(settings.archive_dir).mkdir(parents=True, exist_ok=True)
        health = Health()
        server = HealthServer(health, settings.health_host, settings.health_port)
        write_port(settings.data_dir, server.port)
    except OSError as error:
        raise ArchiveError(str(error)) from None
    log.info("health", extra={"port": server.port})
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    archiver = Archiver(settings, health)
    try:
        archiver.run(stopping)
    except Exception as error:
        log.critical("the archiver ends", exc_info=error)
        archiver.abandon()
        return EXIT_FAILED
    finally:
        server.close()
    return 0


class _ArchivedPartition:
    """A partition on its way into its chain, and since when its oldest record waits for a file."""

    def __init__(self, appender: Appender[Record]) -> None:
        self.appender = appender
        self.since = 0.0


class Archiver:
    """Consumes the topics and appends to their chains."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health
        self._file_size = settings.archive_file_mb << 20
        self._encoders: dict[str, Callable[[Chain, Sequence[Record]], pa.Table]] = {
            settings.events_topic: self._event_rows,
            settings.items_topic: _item_rows,
            settings.popularity_topic: _record_rows,
        }
        self._partitions: dict[tuple[str, int], _ArchivedPartition] = {}
        self._joined = False
        self._away = ""
        self._reported = 0.0
        self._moved = False
        self._reader = PartitionReader(settings)
        self._member = Consumer(
            client_config(settings)
            | {
                "group.id": f"{settings.group}-archive",
                "group.instance.id": instance_id(f"{settings.group}-archive", settings.data_dir),
                "session.timeout.ms": int(SESSION_SECONDS * 1000),
                "partition.assignment.strategy": "cooperative-sticky",
                "enable.auto.commit": False,
                "error_cb": self._on_error,
            }
        )

    def run(self, stopping: threading.Event) -> None:
        """Archive until `stopping` is set, then finish every file."""
        self._member.subscribe(
            list(self._encoders), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )
        while not stopping.is_set():
            self._keep_membership()
            for partition, record in self._reader.read(FETCH_RECORDS, FETCH_SECONDS) if self._partitions else ():
                self._take(partition, record)
            now = time.monotonic()
            for archived in self._partitions.values():
                if not archived.appender.is_empty and now - archived.since >= self._settings.archive_roll:
                    archived.appender.cut()
            if now - self._reported >= REPORT_SECONDS:
                self._reported = now
                self._report()
        for archived in self._partitions.values():
            archived.appender.cut()
        self._member.close()
        self._reader.close()

    def abandon(self) -> None:
        """Leave out what is in no finished file."""
        for archived in self._partitions.values():
            archived.appender.abandon()
        self._partitions.clear()

    def _keep_membership(self) -> None:
        """Take part in the group; where partitions came or went, the reader goes on with those that are here."""
        message = self._member.poll(0 if self._partitions else FETCH_SECONDS)
        if message is not None and (error := message.error()) is not None and not error.retriable():
            raise KafkaException(error)
        if self._moved:
            self._moved = False
            self._reader.seek({partition: archived.appender.next for partition, archived in self._partitions.items()})

    def _take(self, partition: tuple[str, int], record: Record) -> None:
        archived = self._partitions[partition]
        if record.offset < archived.appender.next:
            return
        if archived.appender.is_empty:
            archived.since = time.monotonic()
        archived.appender.take(record.offset, record.timestamp, len(record.value or b""), record)

    def _event_rows(self, chain: Chain, records: Sequence[Record]) -> pa.Table:
        """Make the rows of the next file. Its erasures are noted before the file counts."""
        table = event_rows(chain.partition, records, self._settings)
        if users := erasures(table):
            chain.begin_erasing(users)
        return table

    def _erase(self, chain: Chain) -> None:
        """Take out the records of users who were erased by now."""
        began = time.monotonic()
        if files := chain.erase(holds, without):
            metrics.ARCHIVE_FILES.labels("rewritten").inc(files)
            seconds = round(time.monotonic() - began, 3)
            log.info("erased", extra={"partition": chain.partition, "files": files, "seconds": seconds})

    def _added(self, chain: Chain, tp: TopicPartition, count: int) -> None:
        """A file is finished: tell the group, take out whom it erases, and merge small files."""
        metrics.ARCHIVED.labels(tp.topic).inc(count)
        metrics.ARCHIVE_FILES.labels("added").inc()
        self._member.commit(offsets=[TopicPartition(tp.topic, tp.partition, chain.end())], asynchronous=True)
        self._erase(chain)
        metrics.ARCHIVE_FILES.labels("merged").inc(chain.merge(self._file_size))

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Go on where each partition's files end."""
        for tp in partitions:
            chain = Chain(Path(self._settings.archive_dir) / tp.topic, tp.partition)
            chain.tidy()
            self._erase(chain)
            end = chain.end()
            low, high = consumer.get_watermark_offsets(tp, ANSWER_SECONDS)
            if end > high:
                raise ArchiveError(
                    f"{chain.folder} holds offsets up to {end - 1} of partition {tp.partition}, the topic ends at "
                    f"{high}: it is another topic of that name, which needs another archive_dir"
                )
            if low > end:
                log.error(
                    "retention took records before they were archived",
                    extra={"topic": tp.topic, "partition": tp.partition, "first": end, "last": low - 1},
                )
                metrics.ARCHIVE_LOST.labels(tp.topic).inc(low - end)
            start = max(end, low)
            encode = partial(self._encoders[tp.topic], chain)
            added = partial(self._added, chain, tp)
            self._partitions[tp.topic, tp.partition] = _ArchivedPartition(
                Appender(chain, encode, self._file_size, added, start)
            )
            tp.offset = OFFSET_END
        self._joined = self._moved = True
        consumer.incremental_assign(partitions)
        consumer.pause(partitions)

    def _revoked(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Finish the files of partitions that another archiver takes over: it goes on where the files end."""
        self._moved = True
        for tp in partitions:
            if (archived := self._partitions.pop((tp.topic, tp.partition), None)) is not None:
                archived.appender.cut()

    def _lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Another archiver has taken partitions over already."""
        self._moved = True
        for tp in partitions:
            if (archived := self._partitions.pop((tp.topic, tp.partition), None)) is not None:
                archived.appender.abandon()

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - librdkafka's own codes begin so
            self._away = error.str()

    def _report(self) -> None:
        """Renew the verdicts and the lag."""
        if self._away:
            try:
                self._member.list_topics(self._settings.events_topic, timeout=1)
                self._away = ""
            except KafkaException as error:
                self._away = error.args[0].str()
        self._health.renew({"kafka": self._away or "ok", "group": "ok" if self._joined else "joining"})
        for (topic, partition), archived in self._partitions.items():
            high = self._reader.end(topic, partition)
            metrics.ARCHIVE_LAG.labels(topic, partition).set(max(0, high - archived.appender.end))


def _item_rows(chain: Chain, records: Sequence[Record]) -> pa.Table:
    return item_rows(chain.partition, records)


def _record_rows(chain: Chain, records: Sequence[Record]) -> pa.Table:
    return record_rows(chain.partition, records)


def _require_topics(settings: Settings) -> None:
    try:
        topics = AdminClient(client_config(settings)).list_topics(timeout=ANSWER_SECONDS).topics
    except KafkaException as error:
        raise ArchiveError(f"Kafka at {settings.kafka} does not answer: {error.args[0].str()}") from None
    names = settings.events_topic, settings.items_topic, settings.popularity_topic
    if missing := missing_topics(topics, names):
        raise ArchiveError("; ".join(missing))
