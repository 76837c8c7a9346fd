"""kafka-python's consumers, read so that nothing in a record can raise out of a fetch."""

from __future__ import annotations

from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher

from freshet.adapters.wire_batches import PlainWireBatches
from freshet.settings import Settings

BOOTSTRAP_SECONDS = 5.0


def client_config(settings: Settings) -> dict[str, Any]:
    """kafka-python's connection settings."""
    config: dict[str, Any] = {
        "bootstrap_servers": settings.kafka.split(","),
        "bootstrap_timeout_ms": int(BOOTSTRAP_SECONDS * 1000),
        "security_protocol": settings.kafka_security,
    }
    if settings.kafka_ca:
        config["ssl_cafile"] = settings.kafka_ca
    if settings.kafka_security == "SASL_SSL":
        config |= {
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": settings.kafka_username,
            "sasl_plain_password": settings.kafka_password,
        }
    return config


class WireRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of a fetch; stands for kafka-python's class in one consumer."""

    def __init__(self, fetch_offset: int, tp: Any, records: Any, **options: Any) -> None:
        super().__init__(fetch_offset, tp, PlainWireBatches(records._buffer), **options)


def new_consumer(settings: Settings, **options: Any) -> KafkaConsumer:
    """A consumer that leaves aborted transactions out. Raises kafka-python's errors where the broker does not answer.

    A batch with a wrong checksum is quarantined, not refused.
    """
    config = {"isolation_level": "read_committed", "check_crcs": False, **options}
    consumer = KafkaConsumer(**client_config(settings), **config)
    consumer._fetcher.PartitionRecords = WireRecords
    return consumer
