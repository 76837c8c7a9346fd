"""Settings of a worker and of the commands around it.

Sources, later ones win: defaults, a TOML file, environment variables
`FRESHET_<NAME>` (of a secret also `FRESHET_<NAME>_FILE`), command-line flags.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from freshet import resources
from freshet.core.catalogue import TEXT_FIELDS, TextField
from freshet.core.decoding import Undecodable, decode
from freshet.core.events import DEFAULT_BEHAVIOURS, Weight, wrong_behaviours
from freshet.core.state import HISTORY
from freshet.errors import FreshetError

PREFIX = "FRESHET_"
TRAINING = "training"
"""The table of a settings file that is for `freshet train` alone."""
PATHS = frozenset(
    {
        *(
            "kafka_ca",
            "kafka_certificate",
            "kafka_key",
            "redis_ca",
            "triton_ca",
            "model_repository",
            "trusted_keys",
            "feature_repo",
        ),
        *("feast_dir", "data_dir", "archive_dir", "http_certificate", "http_key", "http_client_ca"),
    }
)
"""Files and folders; in a settings file a relative one starts from the file's folder."""
FOLDERS = ("feature_repo", "model_repository", "trusted_keys")
"""Folders that a worker reads and does not make."""
SECRETS = frozenset({"kafka_password", "kafka_key_password", "redis_password", "triton_control_key", "http_api_keys"})

SECRET_WORDS = ("password", "secret", "key", "jaas")
"""What the name of a librdkafka property says of a secret."""
MASK = "********"
FILE = "_file"
"""`FRESHET_<SECRET>_FILE` names a file that holds the secret, as a mounted secret of a cluster does."""

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


class SettingsError(FreshetError):
    """A setting is unknown or has a bad value; the message names it and its source."""


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One arm of an experiment: its share of the users, and where it differs from the settings beside it."""

    share: Annotated[float, msgspec.Meta(gt=0, le=1)]
    diversity: Fraction | None = None
    prior_weight: float | None = None
    value_weight: Weight | None = None
    novelty_weight: Weight | None = None
    exploration: Fraction | None = None


KNOBS = ("diversity", "prior_weight", "value_weight", "novelty_weight", "exploration")
"""Settings by which an experiment's variants may differ."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set; times are seconds."""

    kafka: str = "127.0.0.1:9092"
    """Bootstrap servers, `host:port[,host:port…]`."""
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Whether connections are encrypted (`SSL`), and whether a client shows a password or a token (`SASL`)."""
    kafka_mechanism: Mechanism = "SCRAM-SHA-512"
    """How a client shows who it is under `SASL_PLAINTEXT` and `SASL_SSL`."""
    kafka_ca: str | None = None
    """File with the CA certificates of the brokers; without it the system's."""
    kafka_certificate: str | None = None
    """File with the client's own certificate (PEM), where the brokers ask for it."""
    kafka_key: str | None = None
    """File with the key of the client's certificate (PEM)."""
    kafka_key_password: str | None = None
    kafka_username: str | None = None
    """The user's name; under `OAUTHBEARER` the client id that the token endpoint knows."""
    kafka_password: str | None = None
    """The user's password; under `OAUTHBEARER` the client secret."""
    kafka_oauth_url: str | None = None
    """Token endpoint of `OAUTHBEARER` (the client credentials grant of OAuth 2.0)."""
    kafka_oauth_scope: str | None = None
    kafka_region: str | None = None
    """AWS region of the cluster under `AWS_MSK_IAM`."""
    kafka_rack: str | None = None
    """Rack or availability zone of this host: reads go to a replica there where the brokers allow it."""
    librdkafka: dict[str, str | int | float | bool] = {}
    """Properties of librdkafka for every client of it, as `socket.keepalive.enable`; they win over Freshet's own."""

    group: str = "freshet"
    """Consumer group, and the prefix of the changelog topic."""
    changelog_replication_factor: Positive | None = None
    """Replicas of the topic of states, when the first worker creates it; by default the broker's own number."""
    changelog_min_insync_replicas: Positive | None = None
    """Replicas that must have a state before it counts as written; by default the broker's own number."""
    events_topic: str = "events"
    items_topic: str = "items"
    recommendations_topic: str = "recommendations"
    dlq_topic: str = "events.dlq"
    models_topic: str = "models"
    popularity_topic: str = "popularity"

    triton: str = "127.0.0.1:8001"
    """gRPC address of Triton."""
    triton_security: Literal["PLAINTEXT", "SSL"] = "PLAINTEXT"
    triton_ca: str | None = None
    """File with the CA certificates of Triton; without it the system's."""
    triton_control_key: str | None = None
    """Secret that Triton asks for where models are loaded; `publish`, `promote`, `rollback` and `models` show it."""
    triton_deadline: Seconds = 1.0
    model_repository: str = str(resources.MODELS)
    """Folder of Triton's model repository; workers read item tables from it."""

    versions_kept: Annotated[int, msgspec.Meta(ge=2)] = 5
    """Versions whose folders stay in the model repository; Triton serves the newest two."""
    trusted_keys: str = str(resources.KEYS)
    """Folder of public keys (`*.pub`); a version is served only where one of them signed it."""

    feature_repo: str = str(resources.FEATURE_REPO)
    """Feast repository with `feature_store.yaml` and `definitions.py`."""
    online_store: str = "sqlite"
    """`sqlite`, `redis://host:port`, or `rediss://host:port` over TLS."""
    redis_ca: str | None = None
    """File with the CA certificates of Redis; without it the system's."""
    redis_username: str | None = None
    redis_password: str | None = None
    """In no file of Feast's: other Feast clients need it in FRESHET_REDIS_PASSWORD."""
    feast_dir: str = ".feast"
    """Feast's registry, its SQLite file and the `feature_store.yaml` in force; shared by the workers of a group."""

    data_dir: str = ".freshet/worker"
    """RocksDB files and Faust's data; each worker has its own."""
    archive_dir: str = ".freshet/archive"
    """Parquet files of events, items and popularity, and Feast's history; shared by the archivers of a group."""
    archive_roll: Seconds = 60.0
    """Longest time that archived records wait for their file."""
    archive_file_mb: Positive = 128
    """Size of a full file; smaller ones are merged up to it."""
    health_host: str = "127.0.0.1"
    health_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    """Port of `/healthz`, `/readyz` and `/metrics`; 0 picks a free one."""

    http_host: str = "127.0.0.1"
    """Where `freshet serve` listens; on an address that others reach it wants keys or mutual TLS."""
    http_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080
    """Port of `freshet serve`; 0 picks a free one."""
    http_api_keys: str | None = None
    """Keys of `freshet serve`'s clients, separated by spaces or lines; each client shows one of them."""
    http_certificate: str | None = None
    """File with the certificate of `freshet serve` (PEM); with it HTTP is over TLS."""
    http_key: str | None = None
    """File with the key of that certificate (PEM)."""
    http_client_ca: str | None = None
    """File with the CA certificates of clients: only who shows a certificate of theirs is let in (mutual TLS)."""
    http_rate: Annotated[float, msgspec.Meta(ge=1)] = 1000.0
    """Requests a second of one client, told by its key, or by its address where there are no keys."""
    http_streams: Positive = 1000
    """Most open streams of lists; each takes a connection."""

    behaviours: dict[str, Weight] = msgspec.field(default_factory=lambda: dict(DEFAULT_BEHAVIOURS))
    """Behaviour types with their weights."""
    history: Annotated[int, msgspec.Meta(ge=1, le=1000)] = HISTORY
    """Recent events kept per user; a model version reads the last of them, as many as it was trained with."""
    text_fields: tuple[TextField, ...] = TEXT_FIELDS
    """Fields of a catalogue item that its text is joined from, in order."""
    list_size: Annotated[int, msgspec.Meta(ge=1, le=50)] = 10
    max_batch_events: Positive = 2048
    """Most events folded as one micro-batch."""
    encode_batch: Annotated[int, msgspec.Meta(ge=1, le=256)] = 64
    """Users per encoder call."""
    diversity: Fraction = 0.0
    """Maximal marginal relevance: 0 ranks by score alone, 1 by dissimilarity alone."""
    prior_weight: float | None = None
    """Weight of the popularity prior; by default the one fitted with the model."""
    value_weight: Weight = 0.0
    """Weight of an item's value in its score: at 1 its chance to be next counts times what its events are worth."""
    novelty_weight: Weight = 0.0
    """Weight of an item's rarity in its score: at 1 its chance to be next counts by how frequent it is anyway."""
    exploration: Fraction = 0.0
    """Chance that a list has two slots swapped or one item brought in at random; every slot's propensity is logged."""
    experiment: str = ""
    """Name of the experiment under way: users are assigned to its variants anew for every name."""
    variants: dict[str, Variant] = {}
    """Variants by name; their shares sum to 1. Without any, all lists are of the variant `live`."""
    canary_lists: Positive = 200
    """Users to compare before a canary is judged: by the newest 2000, or by so many where that is more."""
    canary_error_rate: Fraction = 0.01
    """A canary is rolled back where more of its inferences fail."""
    canary_latency_ratio: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """A canary is rolled back where it takes so many times as long as the live version for the same users."""
    canary_overlap: Fraction = 0.1
    """A canary is rolled back where its lists have less in common with the live version's (mean average overlap)."""
    living_budget: Fraction = 0.1
    """Share of a worker's time in which lists are made again as the world moves; 0 leaves lists to their users."""
    living_horizon: Seconds = 30 * 86_400.0
    """Lists of users who have been quiet for longer are left to their next visit, but where an item of them goes."""
    event_ahead: Seconds = 86_400.0
    """How much later than its record's time an event's `ts` may be; a later event is a dead letter."""
    popularity_half_life: Seconds = 7 * 86_400.0
    """Half-life of an interaction in the popularity prior, in event time."""

    def latest_ts(self, record_ms: int) -> int:
        """The latest `ts` (ms) of an event whose record has this time (ms)."""
        return record_ms + int(self.event_ahead * 1000)

    def of_variant(self, name: str) -> Settings:
        """What holds for the users of a variant; for a name that is none, what holds for all."""
        arm = self.variants.get(name)
        own = {knob: value for knob in KNOBS if arm is not None and (value := getattr(arm, knob)) is not None}
        return msgspec.structs.replace(self, **own)

    def masked(self) -> dict[str, Any]:
        """All settings by name, secrets replaced."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        values["librdkafka"] = {
            name: MASK if any(word in name for word in SECRET_WORDS) else value
            for name, value in self.librdkafka.items()
        }
        return {name: MASK if name in SECRETS and value else value for name, value in values.items()}


_EXAMPLES = {
    "librdkafka": '{"socket.keepalive.enable": true}',
    "behaviours": '{"view": 1, "click": 2}',
    "text_fields": '["title", "category"]',
    "variants": '{"control": {"share": 0.5}, "diverse": {"share": 0.5, "diversity": 0.3}}',
}
"""Settings that are mappings or lists, with an example of their JSON."""


def load_settings(
    file: Path | None = None, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Merge all sources. `flags` that are None are not given. Raises `SettingsError`."""
    names = set(Settings.__struct_fields__)
    merged = _from_file(file, names) if file is not None else {}
    for variable, value in environ.items():
        if variable.startswith(PREFIX):
            name = variable[len(PREFIX) :].lower()
            if (secret := name.removesuffix(FILE)) != name and secret in SECRETS:
                merged[secret] = _from_secret_file(variable, Path(value))
                continue
            if name not in names:
                raise SettingsError(f"environment variable {variable}: unknown setting {name!r}")
            merged[name] = _structured(variable, name, value)
    merged.update({name: value for name, value in (flags or {}).items() if value is not None})
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"settings: {error}") from None
    if settings.variants and not math.isclose(sum(arm.share for arm in settings.variants.values()), 1.0):
        raise SettingsError("settings: the shares of the variants do not sum to 1")
    if wrong := wrong_behaviours(settings.behaviours) or _wrong_access(settings):
        raise SettingsError(f"settings: {wrong}")
    return settings


def _wrong_access(settings: Settings) -> str:
    """What does not fit among the Kafka security settings; empty where all fits."""
    sasl = settings.kafka_security in ("SASL_PLAINTEXT", "SASL_SSL")
    if settings.kafka_password and not sasl:
        return f"kafka_password is set, and kafka_security {settings.kafka_security} shows no password: set SASL_SSL"
    has_url = (settings.kafka_oauth_url or "").startswith(("https://", "http://"))
    if sasl and settings.kafka_mechanism == "OAUTHBEARER" and not has_url:
        return "kafka_mechanism OAUTHBEARER needs kafka_oauth_url, the http(s) address of the token endpoint"
    if sasl and settings.kafka_mechanism == "AWS_MSK_IAM" and not settings.kafka_region:
        return "kafka_mechanism AWS_MSK_IAM needs kafka_region"
    if (settings.kafka_certificate is None) != (settings.kafka_key is None):
        return "kafka_certificate and kafka_key belong together: set both, or none"
    return ""


def _from_secret_file(variable: str, file: Path) -> str:
    try:
        return file.read_text().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"environment variable {variable}: {file} cannot be read ({error})") from None


def _from_file(file: Path, names: Collection[str]) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise SettingsError(f"settings file {file} does not exist") from None
    except OSError as error:
        raise SettingsError(f"settings file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"settings file {file}: {error}") from None
    found.pop(TRAINING, None)
    if unknown := found.keys() - names:
        raise SettingsError(
            f"settings file {file}: unknown setting {min(unknown)!r}; `freshet check` shows those there are"
        )
    for name in PATHS & found.keys():
        if isinstance(found[name], str):
            found[name] = str(file.parent / found[name])
    return found


def require_folders(settings: Settings) -> None:
    """See that the folders that a worker reads are there. Raises `SettingsError`."""
    for name in FOLDERS:
        if not Path(getattr(settings, name)).is_dir():
            raise SettingsError(
                f"{name}: {getattr(settings, name)} is no folder: set it anew, or take the layout of `freshet init DIR`"
            )


def _structured(variable: str, name: str, value: str) -> Any:
    """A mapping or list is written as JSON in its environment variable."""
    if name not in _EXAMPLES:
        return value
    found = decode(_json, value.encode(errors="surrogateescape"))
    if isinstance(found, Undecodable):
        raise SettingsError(f"environment variable {variable}: not JSON such as {_EXAMPLES[name]}")
    return found


_json = msgspec.json.Decoder()
