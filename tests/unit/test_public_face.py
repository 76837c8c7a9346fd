"""`import freshet`: what it hands on, and what it costs."""

import subprocess
import sys

import freshet
import pytest


def test_all_is_sorted_importable_and_the_whole_face() -> None:
    """`__all__` is sorted and names every public object."""
    assert freshet.__all__ == sorted(freshet.__all__) == sorted(set(freshet.__all__))
    assert dir(freshet) == freshet.__all__
    assert all(getattr(freshet, name).__module__.startswith("freshet.") for name in freshet.__all__)
    ours = {name for name, value in vars(freshet).items() if getattr(value, "__module__", "").startswith("freshet")}
    assert {name for name in ours if not name.startswith("_")} <= set(freshet.__all__)
    with pytest.raises(AttributeError, match="'freshet' has no attribute 'Streams'"):
        freshet.Streams  # noqa: B018 - the access is the test


def test_everything_public_says_what_it_is() -> None:
    """Each public object has a docstring of its own."""
    assert [name for name in freshet.__all__ if not getattr(freshet, name).__doc__] == []


def test_importing_freshet_loads_no_client() -> None:
    """`import freshet` loads neither a client library nor NumPy."""
    heavy = "numpy kafka confluent_kafka faust feast tritonclient onnxruntime pyarrow typer"
    code = f"import sys, freshet; print(sorted(sys.modules.keys() & set({heavy!r}.split())))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
