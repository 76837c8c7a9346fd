"""`import freshet`: what it hands on, and what it costs."""

import subprocess
import sys

import freshet


def test_all_is_sorted_importable_and_the_whole_face() -> None:
    """`__all__` names everything public; submodules aside, nothing else is to be found there."""
    assert freshet.__all__ == sorted(freshet.__all__)
    assert all(hasattr(freshet, name) for name in freshet.__all__)
    modules = {name.split(".")[1] for name in sys.modules if name.startswith("freshet.")}
    assert {name for name in vars(freshet) if not name.startswith("_")} - modules <= set(freshet.__all__)
    assert set(freshet.__all__) <= set(dir(freshet))


def test_everything_public_says_what_it_is() -> None:
    """Each name has a docstring of its own."""
    assert [name for name in freshet.__all__ if not getattr(freshet, name).__doc__] == []


def test_importing_it_loads_no_client() -> None:
    """The clients, and numpy for them, are loaded when asked for."""
    heavy = "numpy kafka confluent_kafka faust feast tritonclient onnxruntime pyarrow typer"
    code = f"import sys, freshet; print(sorted(sys.modules.keys() & set({heavy!r}.split())))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
