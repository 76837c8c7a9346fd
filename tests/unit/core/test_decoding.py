"""Any bytes on a topic or in a file decode to a value or a reason, and raise nothing."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from freshet.archive.rows import event_rows, item_rows
from freshet.bundle.arrays import load_array, load_arrays
from freshet.bundle.bundle import BundleError, read_manifest
from freshet.core.catalogue import CatalogueItem, decode_item
from freshet.core.decoding import MAX_NESTING, Undecodable, decode
from freshet.core.events import BadEvent, BadReason, Event, decode_event, encode_event
from freshet.core.popularity import Partial, decode_partial
from freshet.core.recommendation import Recommendation, decode_recommendation
from freshet.core.rollout import Report, Rollout, decode_record
from freshet.logs.json_lines import JsonLinesLog
from freshet.logs.source import decoded as decoded_log
from freshet.ports import Record
from freshet.report.results_file import ResultsError, read_results
from freshet.settings import Settings
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.memory_replays import ListLog

NOW = 1_790_000_000_000


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


ITEM = b'{"item_id":"a","title":%s}'
EVENT = b'{"event_id":"e","user_id":"u","type":"view","ts":1790000000000,"item_id":"i","context":{"x":%s}}'
STEP = b'{"record":"rollout","model":"user_encoder","version":1,"stage":"promoted","ts":1,"reason":%s}'
COUNTS = b'{"partition":0,"offset":1,"ts":1790000000000,"half_life":1,"counts":{%s:1}}'
LIST = (
    b'{"recommendation_id":"r","user_id":"u","items":[],"model_version":1,"as_of":{"partition":0,"offset":0,"ts":1},'
    b'"side_inputs":{"items":1,"popularity":1,"models":1},"degraded":false,"personalised":true,'
    b'"timings":{"event":1,"broker":1,"state":1,"inference":1,"publish":1},"variant":%s}'
)
GOOD = b'"a"'
TOPICS: dict[str, tuple[Callable[[bytes], Any], bytes, type | tuple[type, ...]]] = {
    "events": (lambda raw: decode_event(raw, b"u"), EVENT, BadEvent),
    "items": (lambda raw: decode_item(raw, b"a"), ITEM, str),
    "models": (decode_record, STEP, str),
    "popularity": (decode_partial, COUNTS, str),
    "recommendations": (decode_recommendation, LIST, str),
}
HOSTILE = {
    "Latin-1": '"é"'.encode("latin-1"),
    "a lone surrogate": b'"\\ud800"',
    "nested 1,200 deep": nested(1200),
    "nested 20,000 deep": nested(20_000),
    "nested behind a string": b'{"[\\"[": "]]]", "y":' + nested(MAX_NESTING + 10) + b"}",
    "an integer of 6,000 digits": b"9" * 6000,
    "cut off": b"[",
    "NaN": b"NaN",
}


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_is_a_reason(topic: str, name: str) -> None:
    """A hostile record of any topic decodes to a reason, or to a value where the bytes stand in a dropped field."""
    decoded, body, bad = TOPICS[topic]
    assert isinstance(decoded(body % HOSTILE[name]), bad)
    decoded((body % GOOD)[:-1] + b',"dropped":' + HOSTILE[name] + b"}")


@pytest.mark.parametrize("topic", TOPICS)
def test_the_same_record_without_the_harm_is_a_value(topic: str) -> None:
    """Each hostile record of the tests decodes to a value once the harm is removed."""
    decoded, body, bad = TOPICS[topic]
    for dropped in (nested(MAX_NESTING - 5), b'"' + b"[{" * MAX_NESTING + b'\\"["'):
        assert not isinstance(decoded((body % GOOD)[:-1] + b',"dropped":' + dropped + b"}"), bad)


@given(st.binary(max_size=60), st.integers(0, 300))
def test_any_bytes_are_a_value_or_a_reason(junk: bytes, position: int) -> None:
    """Random bytes at any position of a record decode to a value or a reason."""
    for decoded, body, _ in TOPICS.values():
        whole = body % GOOD
        decoded(whole[:position] + junk + whole[position:])


def test_the_reason_tells_json_of_another_shape_from_what_is_no_json() -> None:
    """The reason tells JSON of another shape from bytes that are no JSON."""
    decoder = msgspec.json.Decoder(CatalogueItem)
    assert decode(decoder, b'{"item_id":1}') == Undecodable("Expected `str`, got `int` - at `$.item_id`", True)
    assert isinstance(decode(decoder, b"{"), Undecodable)
    assert decode_event(EVENT % nested(1200), b"u") == BadEvent(BadReason.NOT_JSON, "nested more than 100 deep")


@pytest.mark.parametrize(
    "raw",
    [
        STEP.replace(b'"version":1', b'"version":1' + b"0" * 23) % GOOD,
        STEP.replace(b'"ts":1', b'"ts":1' + b"0" * 23) % GOOD,
    ],
)
def test_numbers_beyond_64_bits_are_refused(raw: bytes) -> None:
    """A number beyond 64 bits is refused, because msgpack could not hold it."""
    assert isinstance(decode_record(raw), str)
    partial = COUNTS % GOOD
    assert isinstance(decode_partial(partial.replace(b'"offset":1', b'"offset":1' + b"0" * 23)), str)
    assert isinstance(decode_partial(partial.replace(b'"a":1', b'"a":1e300')), str)
    assert isinstance(decode_recommendation((LIST % GOOD).replace(b'"ts":1', b'"ts":1' + b"0" * 18)), str)


def test_good_records_are_values() -> None:
    """A good record of each kind decodes to a value."""
    assert isinstance(decode_record(STEP % GOOD), Rollout)
    assert isinstance(decode_record(b'{"record":"report","model":"m","worker":"w","ts":1,"live":1}'), Report)
    assert isinstance(decode_partial(COUNTS % GOOD), Partial)
    assert isinstance(decode_recommendation(LIST % GOOD), Recommendation)


def test_what_was_decoded_can_be_written_again() -> None:
    """Every decoded event can be encoded again as JSON and as msgpack."""
    for harm in (b"9" * 40, nested(MAX_NESTING - 5)):
        raw = EVENT % harm
        event = decode_event(raw, b"u")
        assert decode_event(encode_event(event), b"u") == event
        assert event_rows(0, [Record(0, NOW, b"u", raw)], Settings())["context"].to_pylist() != [None]


def test_hostile_records_have_rows_in_the_archive() -> None:
    """The archive writes a row for every hostile record."""
    records = [Record(at, NOW, b"a", ITEM % harm) for at, harm in enumerate(HOSTILE.values())]
    assert item_rows(0, records)["item_id"].null_count == len(records)
    assert event_rows(0, records, Settings())["bad_reason"].null_count == 0


def numpy_file(header: str) -> bytes:
    text = header.encode() + b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(12)


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    "header",
    [
        HEADER % ("<f4", "(100000000, 64000)"),
        HEADER % ("<f4", "(10000000000000000000000,)"),
        HEADER % ("<f4", "(-1,)"),
        HEADER % ("<f4", "(" * 800 + ")" * 800),
        HEADER % ("|O", "(1,)"),
        "{'descr': [['x']], 'fortran_order': False, 'shape': (3,)}",
        "nonsense(",
    ],
)
def test_a_hostile_array_is_a_reason(tmp_path: Path, header: str) -> None:
    """An array whose header claims 25 TB is a reason and allocates no memory."""
    (tmp_path / "a.npy").write_bytes(numpy_file(header))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", numpy_file(header))
    assert isinstance(load_array(tmp_path / "a.npy"), Undecodable)
    assert isinstance(load_arrays(tmp_path / "a.npz"), Undecodable)


def test_a_good_array_is_a_value(tmp_path: Path) -> None:
    """A good array decodes to a value, and an array larger than any golden tensor is not unpacked."""
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", table)
    np.savez(tmp_path / "a.npz", a=table)
    assert np.array_equal(load_array(tmp_path / "a.npy"), table)
    assert np.array_equal(load_arrays(tmp_path / "a.npz")["a"], table)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(300_000_000))
    found = load_arrays(tmp_path / "bomb.npz")
    assert isinstance(found, Undecodable)
    assert "300,000,000 bytes" in found.why


@pytest.mark.parametrize("harm", [b'{"name":"\xe9"}', nested(1200), b""])
def test_hostile_files_are_named(tmp_path: Path, harm: bytes) -> None:
    """A hostile manifest or results file is one line that names the file."""
    (tmp_path / "manifest.json").write_bytes(harm)
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path)
    with pytest.raises(ResultsError, match="holds no results"):
        read_results(tmp_path / "manifest.json")


def test_live_archive_and_replay_take_the_same_events(tmp_path: Path) -> None:
    """An event dated ahead is no event in the archive's rows, in a log and in a JSON lines file."""
    settings = Settings(event_ahead=60.0)
    on_time, late = (Event(f"e{ts}", "u", "view", ts, "i") for ts in (NOW + 60_000, NOW + 60_001))
    records = [Record(at, NOW, b"u", encode_event(event)) for at, event in enumerate((on_time, late))]
    assert event_rows(0, records, settings)["bad_reason"].to_pylist() == [None, "ahead_of_time"]
    [run] = decoded_log(ListLog({0: records}), 0, settings)
    assert [event for _, event in run if isinstance(event, Event)] == [on_time]
    lines = tmp_path / "log.jsonl"
    lines.write_bytes(b"\n".join([encode_event(on_time), EVENT.replace(b"1790000000000", b"4090000000000") % GOOD]))
    [run] = decoded_log(JsonLinesLog(lines), 0, settings)
    assert [isinstance(event, Event) for _, event in run] == [True, False]
