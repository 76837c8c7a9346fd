"""A reader of side inputs whose broker is away."""

import asyncio
from typing import Any

import pytest
from freshet.adapters import kafka_python
from freshet.adapters.kafka_python import SideInputReader
from freshet.settings import Settings
from kafka.errors import KafkaConnectionError


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_fails_after_the_loop_fails_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of several readers ends the process with its error; the others have nobody to tell."""

    def away(*_: Any, **__: Any) -> Any:
        raise KafkaConnectionError

    monkeypatch.setattr(kafka_python, "new_consumer", away)
    reader = SideInputReader(Settings(), "items", lambda _: None)
    with pytest.raises(KafkaConnectionError):
        asyncio.run(reader.start())
    assert reader._loop.is_closed()
    reader._read()
