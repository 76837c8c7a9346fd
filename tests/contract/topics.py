"""Topics for one contract."""

import time

from confluent_kafka.admin import AdminClient, NewTopic


def make_topic(broker: str, topic: NewTopic) -> None:
    """Create a topic and wait until the broker names a leader for each partition: it answers before it does."""
    admin = AdminClient({"bootstrap.servers": broker})
    [created] = admin.create_topics([topic]).values()
    created.result(30)
    deadline = time.monotonic() + 30
    while True:
        partitions = admin.list_topics(topic.topic, timeout=30).topics[topic.topic].partitions
        if len(partitions) == topic.num_partitions and all(entry.leader >= 0 for entry in partitions.values()):
            return
        assert time.monotonic() < deadline, f"{topic.topic} has no leaders"
        time.sleep(0.05)
