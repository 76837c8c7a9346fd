"""Topics made for the contracts."""

import time

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec


def make_topic(broker: str, topic: NewTopic) -> None:
    """Create a topic and wait until each partition's leader answers: it is named before it does."""
    admin = AdminClient({"bootstrap.servers": broker})
    [created] = admin.create_topics([topic]).values()
    created.result(30)
    deadline = time.monotonic() + 30
    partitions = {TopicPartition(topic.topic, number): OffsetSpec.latest() for number in range(topic.num_partitions)}
    while True:
        try:
            for answer in admin.list_offsets(partitions).values():
                answer.result(30)
        except KafkaException:
            assert time.monotonic() < deadline, f"{topic.topic} has no leaders"
            time.sleep(0.05)
        else:
            return
