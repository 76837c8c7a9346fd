"""`freshet produce`: good and bad lines."""

import io

import pytest
from freshet.cli import produce
from freshet.cli.console import plain
from freshet.cli.errors import UserError
from freshet.client.events import Outbox
from freshet.core.events import Event, encode_event
from freshet.settings import Settings

GOOD = encode_event(Event("e1", "u1", "click", 881_250_949_000, item_id="i1"))


class FakeOutbox(Outbox):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[bytes | None, bytes]] = []

    def send(self, key: bytes | None, value: bytes) -> None:
        """Keep the line."""
        self.lines.append((key, value))


def send(text: bytes, *, strict: bool = False, judge: produce.Judge | None = None) -> tuple[FakeOutbox, int]:
    outbox = FakeOutbox()
    judge = judge or produce.event_judge(Settings())
    return outbox, produce._send_lines(io.BytesIO(text), len(text), outbox, judge, rate=None, strict=strict)


def test_good_lines_are_keyed_by_user() -> None:
    """Good lines go out with their bytes unchanged under the user's key, and blank lines are skipped."""
    outbox, bad = send(GOOD + b"\r\n\n  " + GOOD + b"\n")
    assert bad == 0
    assert outbox.lines == [(b"u1", GOOD), (b"u1", GOOD)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"[1]", "invalid"),
        (b'{"user_id": 5}', "invalid"),
        (b'{"event_id":"a","user_id":"u","type":"like","ts":881250949000,"item_id":"1"}', "unknown_type"),
        (b'{"event_id":"a","user_id":"u","type":"view","ts":881250949000}', "missing_item"),
        (b'{"event_id":"a","user_id":"u","type":"view","ts":881250949,"item_id":"1"}', "invalid"),
    ],
)
def test_bad_lines_are_reported_by_number_and_lose_no_good_one(
    line: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad line is reported by its number, and the good lines around it are sent."""
    outbox, bad = send(GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    assert bad == 1
    assert len(outbox.lines) == 2
    assert capsys.readouterr().err.startswith(f"line 2: {reason}: ")


def test_strict_stops_at_the_first_bad_line() -> None:
    """With `--strict` the lines before the first bad line are sent, and no later line."""
    outbox = FakeOutbox()
    source = io.BytesIO(GOOD + b"\nnonsense\n" + GOOD)
    with pytest.raises(UserError, match="line 2: not_json"):
        produce._send_lines(
            source, None, outbox, produce.event_judge(Settings(behaviours={"click": 1.0})), rate=None, strict=True
        )
    assert len(outbox.lines) == 1


def test_raw_lines_are_not_judged() -> None:
    """With `--raw` any line goes out without a key."""
    outbox, bad = send(b'nonsense\n{"user_id":"u9"}\n', judge=produce.judge_nothing)
    assert bad == 0
    assert outbox.lines == [(None, b"nonsense"), (b"u9", b'{"user_id":"u9"}')]


def test_items_are_keyed_by_item() -> None:
    """A catalogue line goes out under its item id, and a line without one is refused."""
    assert produce.judge_item(b'{"item_id":"i","title":"T"}') == produce.Line(b"i", None)
    assert "item_id" in (produce.judge_item(b'{"title":"T"}').fault or "")


def test_control_characters_never_reach_the_terminal() -> None:
    """Control characters in data are shown escaped."""
    assert plain("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    assert plain("Amélie ★") == "Amélie ★"
