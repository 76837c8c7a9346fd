"""The live worker: wires the pipeline into a Faust app and runs it."""

from __future__ import annotations

import asyncio
import gc
import logging.config
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import faust
import faust.worker

from freshet.adapters.faust import FlowControl, Inbox, RunSchema, RunTransport, credentials
from freshet.adapters.feast import open_feature_store
from freshet.adapters.kafka import KafkaPublisher
from freshet.adapters.kafka_python import SideInputReader
from freshet.adapters.state_table import PartitionState, StateTable, StateTables
from freshet.adapters.triton import TritonEncoder
from freshet.adapters.triton_address import TritonAddress
from freshet.process import metrics, watchdog
from freshet.process.data_dir import instance_id
from freshet.process.health import Health, HealthServer, write_port
from freshet.process.json_logging import JSON_LOGS
from freshet.serving.canary import CanaryAnalysis
from freshet.serving.feature_keeper import FeatureKeeper, FeatureStamp
from freshet.serving.first_version import StartError, make_live
from freshet.serving.list_publication import ListPublication
from freshet.serving.live_versions import LiveVersions
from freshet.serving.living_lists import LivingLists
from freshet.serving.pipeline import PartitionBatch, Pipeline
from freshet.serving.side_inputs import POPULARITY_SECONDS
from freshet.serving.source_watch import SourceWatch
from freshet.serving.start import events_partitions
from freshet.settings import Settings, require_folders

TABLE = "user_state"
COMMIT_SECONDS = 0.25
BACKLOG = 64
"""A second micro-batch is begun while one is under way when so many records wait, or any for `BACKLOG_SECONDS`."""
BACKLOG_SECONDS = 0.1
"""A batch that takes longer waits for the network, which the next one can use meanwhile."""
SESSION_SECONDS = 10.0
HEARTBEAT_SECONDS = 1.0
HEALTH_SECONDS = 1.0

log = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit status. Raises `StartError`, `SettingsError`, `Unavailable`."""
    logging.config.dictConfig(_LOGGING)
    require_folders(settings)
    partitions = events_partitions(settings)
    runtime = Runtime(settings, partitions)
    try:
        runtime.open()
    except OSError as error:
        raise StartError(str(error)) from None
    return run_app(WorkerApp(settings, partitions, runtime))


def run_app(app: faust.App) -> int:
    """Run a Faust app in this process until it is told to stop. Returns the exit status."""
    gc.freeze()  # what has been imported stays: collections need not look at it
    worker = faust.worker.Worker(app, loglevel="INFO", redirect_stdouts=False, logging_config=_LOGGING, quiet=True)
    try:
        worker.execute_from_commandline()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


_LOGGING = JSON_LOGS | {
    "loggers": {name: {"level": "WARNING"} for name in ("faust", "mode", "aiokafka")},
}


class Runtime:
    """Everything of a worker that lives in its event loop beside Faust."""

    def __init__(self, settings: Settings, partitions: int = 1) -> None:
        self.settings = settings
        self.partitions = partitions
        self.health = Health()
        self.recovering: Callable[[], bool] = lambda: True
        self.assigned: Callable[[], set[int]] = set

    def open(self) -> None:
        """Open what needs no event loop. Raises `OSError` (a port that is taken), `SettingsError`, `Unavailable`."""
        settings = self.settings
        self.features = open_feature_store(settings)
        self.server = HealthServer(self.health, settings.health_host, settings.health_port)
        log.info("health", extra={"port": self.server.port})
        write_port(settings.data_dir, self.server.port)

    async def start(self) -> None:
        """Open every other edge and make a model live."""
        settings = self.settings
        self.publisher = KafkaPublisher(settings, watchdog.Watchdog(SESSION_SECONDS - HEARTBEAT_SECONDS).check)
        self.encoder = TritonEncoder(TritonAddress.of(settings), settings.triton_deadline)
        self.model = LiveVersions(
            self.encoder,
            Path(settings.model_repository),
            Path(settings.trusted_keys),
            settings.text_fields,
            settings.latest_ts,
        )
        counts = SideInputReader(settings, settings.popularity_topic, self.model.apply_popularity, POPULARITY_SECONDS)
        self.readers = [
            SideInputReader(settings, settings.models_topic, self.model.apply_models),
            SideInputReader(settings, settings.items_topic, self.model.apply_items),
            counts,
        ]
        await asyncio.gather(*(reader.start() for reader in self.readers))
        await make_live(settings, self.model, self.encoder)
        self.trial_encoder = TritonEncoder(TritonAddress.of(settings), settings.triton_deadline, once=True)
        instance = instance_id(settings.group, settings.data_dir)
        self.trial = CanaryAnalysis(settings, self.model, self.trial_encoder, self.publisher, instance)
        self.publication = ListPublication(settings, self.publisher)
        self.pipeline = Pipeline(
            settings,
            self.model,
            self.encoder,
            self.features,
            self.publisher,
            self.trial,
            catch_up=counts.catch_up,
            publication=self.publication,
        )
        self.source = SourceWatch(settings, self.partitions)
        self.source_checks = await asyncio.to_thread(self.source.look, None)
        running = (self.model.run, self.trial.run, self._watch_source, self._watch)
        self.tasks = [asyncio.create_task(run()) for run in running]

    async def stop(self) -> None:
        """Close every edge."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.trial.leave()
        await asyncio.to_thread(self._close_threads)
        await self.trial_encoder.close()
        await self.encoder.close()

    def _close_threads(self) -> None:
        for reader in self.readers:
            reader.close()
        self.publisher.close()
        self.features.close()
        self.server.close()

    async def _watch(self) -> None:
        """Renew the health verdicts, and end the worker when a side task died."""
        while True:
            checks = {"tables": "recovering" if self.recovering() else "ok"}
            live = self.model.current
            ready = await self.encoder.ready(live.version)
            checks["model"] = "ok" if ready else f"version {live.version} is not ready at Triton"
            checks["features"] = await self._features_verdict()
            checks |= self.source_checks
            self.health.renew(checks)
            for reader in self.readers:
                if reader.failure is not None:
                    watchdog.fail_fast(reader.failure)
            for task in self.tasks[:-1]:
                if task.done():
                    watchdog.fail_fast(task.exception() or RuntimeError("a side task ended"))
            await asyncio.sleep(HEALTH_SECONDS)

    async def _watch_source(self) -> None:
        """Renew the verdicts on the broker and the events topic. Raises `OtherTopicError`."""
        while True:
            self.source_checks = await asyncio.to_thread(self.source.look, self.assigned())
            await asyncio.sleep(HEALTH_SECONDS)

    async def _features_verdict(self) -> str:
        try:
            await self.features.ping()
        except Exception as error:
            return str(error)
        return "ok"


class WorkerApp(faust.App):
    """Faust with runs for messages, and the worker's runtime started before anything is consumed."""

    def __init__(self, settings: Settings, partitions: int, runtime: Runtime) -> None:
        self.settings = settings
        self.runtime = runtime
        self.last_commit = 0.0
        self.committing: asyncio.Task[None] | None = None
        self.restoring: asyncio.Task[None] | None = None
        self.living: LivingLists | None = None
        self.making_again: asyncio.Task[None] | None = None
        super().__init__(
            settings.group,
            broker=[f"kafka://{server}" for server in settings.kafka.split(",")],
            store="rocksdb://",
            datadir=str(Path(settings.data_dir).resolve() / settings.group),
            topic_partitions=partitions,
            topic_disable_leader=True,
            topic_allow_declare=False,  # `create_changelog` has; a worker may have no right to create a topic
            table_standby_replicas=0,
            web_enabled=False,
            autodiscover=False,
            broker_credentials=credentials(settings),
            broker_commit_interval=4 * COMMIT_SECONDS,
            broker_session_timeout=SESSION_SECONDS,
            broker_heartbeat_interval=HEARTBEAT_SECONDS,
            broker_max_poll_records=settings.max_batch_events,
            broker_request_timeout=60.0,
            producer_request_timeout=30.0,
            consumer_auto_offset_reset="earliest",
            consumer_group_instance_id=instance_id(settings.group, settings.data_dir),
            stream_buffer_maxsize=16,
            stream_wait_empty=True,
            stream_recovery_delay=0.0,
            TableManager=StateTables,
        )
        self.conf.events_topic = settings.events_topic
        self.inbox = Inbox(settings.max_batch_events)
        self.conf.kafka_rack = settings.kafka_rack
        self.table = StateTable(
            self,
            name=TABLE,
            schema=RunSchema(),
            key_type=bytes,
            value_type=bytes,
            partitions=partitions,
            recovery_buffer_size=2,  # runs; with 1 Faust reads the changelog on for good
        )
        self.tables.add(self.table)
        channel = self.topic(settings.events_topic, schema=RunSchema())
        self.agent(channel, name="events", concurrency=1)(self._process)
        self.on_partitions_revoked.connect(self._release)

    @cached_property
    def flow_control(self) -> FlowControl:
        """Flow control of the streams' queues."""
        return FlowControl()

    def _new_transport(self) -> Any:
        return RunTransport(self.conf.broker_consumer, self)

    async def on_first_start(self) -> None:
        """Start the runtime first: agents need it."""
        self.conf.datadir.mkdir(parents=True, exist_ok=True)
        await super().on_first_start()
        try:
            await self.runtime.start()
        except Exception as error:
            watchdog.fail_fast(error)
        self.table.publisher = self.runtime.publisher

    async def on_started(self) -> None:
        """Tables are recovered once Faust is fully started, and again after each rebalance."""
        await super().on_started()
        self.runtime.recovering = lambda: self.in_recovery or self.rebalancing
        self.runtime.assigned = self._assigned
        if self.restoring is None:
            self.restoring = asyncio.create_task(self._feature_keeper().run())
            if self.settings.living_budget > 0:
                self.making_again = asyncio.create_task(self._make_again())

    def _assigned(self) -> set[int]:
        """The partitions of the events topic that this worker reads."""
        return {tp.partition for tp in self.consumer.assignment() if tp.topic == self.settings.events_topic}

    async def on_stop(self) -> None:
        """Drain first, then close the edges; where that does not end, end at once."""
        late = TimeoutError(f"the stop took longer than {watchdog.STOP_SECONDS} s")
        asyncio.get_running_loop().call_later(watchdog.STOP_SECONDS, watchdog.fail_fast, late)
        for task in (self.restoring, self.making_again):
            if task is not None:
                task.cancel()
        await super().on_stop()
        await self.runtime.stop()

    async def _process(self, stream: Any) -> None:
        """The agent: gather fetched runs here while earlier ones are processed."""
        working = [asyncio.create_task(self._work(least)) for least in (1, BACKLOG)]
        try:
            async for event in stream.noack().events():
                await self.inbox.put(event)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    async def _work(self, least: int) -> None:
        """Process micro-batches of at least so many records, in the order they are taken."""
        while True:
            events = await self.inbox.take(least, BACKLOG_SECONDS)
            by_partition: dict[int, list[Any]] = {}
            for event in events:
                by_partition.setdefault(event.message.partition, []).append(event)
            runs = [
                PartitionBatch(
                    PartitionState(self.table, partition),
                    partition,
                    [record for event in own for record in event.value.records],
                )
                for partition, own in by_partition.items()
            ]
            try:
                await self.runtime.pipeline.process(runs)
                for event in events:
                    event.ack()
                for own in by_partition.values():
                    self._note_lag(own[-1].message)
                self._commit_soon()
            except Exception as error:
                watchdog.fail_fast(error)

    def _feature_keeper(self) -> FeatureKeeper:
        settings = self.settings
        stamp = FeatureStamp(
            self.runtime.features,
            f"{settings.group}:{instance_id(settings.group, settings.data_dir)}",
            Path(settings.data_dir) / "features.stamp",
        )
        return FeatureKeeper(stamp, self.runtime, self._states)

    def _states(self, partition: int) -> PartitionState:
        return PartitionState(self.table, partition)

    async def _make_again(self) -> None:
        """Keep the lists that stand living. A surprise ends the process."""
        runtime = self.runtime
        self.living = LivingLists(
            self.settings, runtime.model, runtime.encoder, runtime.pipeline, runtime.publication, self._states
        )
        try:
            await self.living.run(self._assigned, runtime.recovering)
        except Exception as error:
            watchdog.fail_fast(error)

    def _note_lag(self, last: Any) -> None:
        highwater = self.consumer.highwater(last.tp)
        if highwater is not None:
            metrics.LAG.labels(last.partition).set(max(0, highwater - last.offset - 1))

    def _commit_soon(self) -> None:
        """Drive the commits from here: Faust's own timer lags by seconds under load. No batch waits for a commit."""
        now = time.monotonic()
        if now - self.last_commit >= COMMIT_SECONDS and (self.committing is None or self.committing.done()):
            self.last_commit = now
            self.committing = asyncio.create_task(self._commit())

    async def _commit(self) -> None:
        try:
            await self.consumer.commit()
        except Exception as error:
            watchdog.fail_fast(error)

    async def _release(self, _app: Any, revoked: Any, **_: Any) -> None:
        if self.living is not None:
            await self.living.suspend()
        self.runtime.pipeline.release([tp.partition for tp in revoked if tp.topic == self.settings.events_topic])
