"""Options of `freshet train`, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from freshet.cli.errors import UserError
from freshet.cli.options import read_seconds, record_time

_TUNING = "Training"


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is learned from."""

    events: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="FILE.jsonl, an archive's folder, `kafka` or `kafka:TOPIC`. Without it the version is made of the "
            "catalogue alone, before the first event; without a catalogue too, of MovieLens-100K.",
        ),
    ] = None
    items: Annotated[
        str | None, typer.Option(metavar="FILE.jsonl|kafka", help="The catalogue; without one items have no text.")
    ] = None
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Leave out records before (UTC).")] = None
    end: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Leave out records from then on (UTC).")
    ] = None
    newest: Annotated[
        str | None, typer.Option("--window", metavar="30d", help="Leave out records older than this.")
    ] = None
    types: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Behaviour types, where no settings file names them: one is written, domain.toml in --dir.",
        ),
    ] = None

    @property
    def window(self) -> tuple[int | None, int | None]:
        """Record times in ms, the end left out. Raises `UserError`."""
        return record_time("--from", self.start), record_time("--until", self.end)

    @property
    def newest_seconds(self) -> float | None:
        """How old a record may be. Raises `UserError`."""
        return read_seconds("--window", self.newest) if self.newest else None

    def check(self) -> None:
        """Refuse options that do not go together. Raises `UserError`."""
        if self.newest is not None and (self.start or self.end):
            raise UserError("--window ends now: it goes without --from and --until")

    def check_without_events(self, *, incremental: bool) -> None:
        """Refuse options that need a log of one's own where none is named. Raises `UserError`."""
        if incremental:
            raise UserError("--events says where new events come from: an archive's folder, or kafka")
        if self.types is not None and self.items is None:
            raise UserError("--types are those of the log that --events names")
        if self.start or self.end or self.newest:
            raise UserError("--from, --until and --window choose from the log that --events names")


@dataclass(frozen=True, kw_only=True)
class VersionOptions:
    """Which version is made, and what becomes of it."""

    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the bundle; without, `bundle` in --dir, for an incremental run a new one in `candidates`.",
        ),
    ] = None
    live: Annotated[
        Path | None,
        typer.Option(
            metavar="VERSION_DIR",
            help="What the gate compares with, and what an incremental run starts from; else the promoted version.",
        ),
    ] = None
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Start from the live version and learn what is new since.")
    ] = False
    every: Annotated[
        str | None, typer.Option(metavar="1h", help="Run incrementally again and again, never two at once.")
    ] = None
    publish: Annotated[bool, typer.Option("--publish", help="Publish each candidate that the gate accepts.")] = False
    key: Annotated[
        Path | None, typer.Option(metavar="FILE.key", help="Key to sign with; without, the local stack's own.")
    ] = None

    @property
    def interval(self) -> float | None:
        """Seconds between two runs; None for one run. Raises `UserError`."""
        return read_seconds("--every", self.every) if self.every else None

    def check(self) -> None:
        """Refuse options that do not go together. Raises `UserError`."""
        if self.every is not None and self.out is not None:
            raise UserError("--every writes each bundle to a new folder in `candidates`: it goes without --out")
        if self.key is not None and not self.key.is_file():
            raise UserError(f"{self.key} does not exist: `freshet keys` makes one")


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """How the version is trained: what is given wins over the settings file."""

    search: Annotated[str | None, typer.Option(metavar="10m", help="First search hyperparameters for so long.")] = None
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="M", min=0.1, help="Time that the training may take, about; 30 where the log chooses the settings."
        ),
    ] = None
    name: Annotated[str | None, typer.Option(help="Name in the manifest.", rich_help_panel=_TUNING)] = None
    epochs: Annotated[int | None, typer.Option(help="At most so many.", rich_help_panel=_TUNING)] = None
    positions: Annotated[int | None, typer.Option(help="Targets a step.", rich_help_panel=_TUNING)] = None
    learning_rate: Annotated[float | None, typer.Option(rich_help_panel=_TUNING)] = None
    teachers: Annotated[
        int | None,
        typer.Option(help="Models fitted first, whose mean scores are learned too.", rich_help_panel=_TUNING),
    ] = None
    repeats: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Behaviours after which an item may be recommended again.",
            rich_help_panel=_TUNING,
        ),
    ] = None
    seed: Annotated[int | None, typer.Option(rich_help_panel=_TUNING)] = None
    threads: Annotated[int | None, typer.Option(help="Bounds the CPU used.", rich_help_panel=_TUNING)] = None
    tracking: Annotated[
        str | None,
        typer.Option(
            metavar="URI|none", help="MLflow store; an SQLite file in --dir where left out.", rich_help_panel=_TUNING
        ),
    ] = None
    data_terms: Annotated[
        str | None, typer.Option(help="Terms of the data, which the weights stand under.", rich_help_panel=_TUNING)
    ] = None
    text_encoder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the text encoder; without, the model repository's."),
    ] = None

    @property
    def flags(self) -> dict[str, object]:
        """Flags of the training job, by name; None for what is not given. Raises `UserError`."""
        return {
            "minutes": self.minutes,
            "name": self.name,
            "epochs": self.epochs,
            "positions": self.positions,
            "learning-rate": self.learning_rate,
            "teachers": self.teachers,
            "repeats": self.repeats,
            "seed": self.seed,
            "threads": self.threads,
            "tracking": self.tracking,
            "data-terms": self.data_terms,
            "search": read_seconds("--search", self.search) if self.search else None,
        }

    @property
    def unlearned(self) -> dict[str, object]:
        """The flags that a version of a catalogue alone takes. Raises `UserError` where others are given."""
        taken = {name: self.flags[name] for name in ("name", "threads", "data-terms")}
        if others := [name for name, value in self.flags.items() if value is not None and name not in taken]:
            raise UserError(f"--{others[0]} is for a training: --events says what to learn from")
        return taken
