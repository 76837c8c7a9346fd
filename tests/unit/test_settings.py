"""Settings: sources in order, bad ones named, secrets masked, and each one changes something."""

import asyncio
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import chdir
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import msgspec
import pytest
import yaml
from confluent_kafka import TopicPartition
from freshet.adapters.feast import redis_options
from freshet.adapters.kafka import client_config
from freshet.adapters.kafka_access import AccessError, token_source
from freshet.adapters.source import new_changelog
from freshet.archive import archiver
from freshet.core.comparison import Comparison, out_of_band
from freshet.core.events import encode_event
from freshet.core.popularity import Popularity, decode_partial
from freshet.http import server
from freshet.http.guard import Guard
from freshet.ports import Record
from freshet.process.health import Health
from freshet.release import publish
from freshet.release import repository as folders
from freshet.replay.policies import Target
from freshet.serving.canary import bands
from freshet.serving.list_maker import ListMaker
from freshet.settings import KNOBS, SECRETS, Settings, SettingsError, Variant, load_settings
from starlette.applications import Starlette

from tests.simulation.memory_world import NOW, MemoryWorld, clock, event, lists

NAMES = Settings.__struct_fields__


def toml(tmp_path: Path, text: str) -> Path:
    """A settings file."""
    file = tmp_path / "freshet.toml"
    file.write_text(text)
    return file


def test_later_sources_win(tmp_path: Path) -> None:
    """Flags win over the environment, the environment over the file and the file over defaults."""
    file = toml(tmp_path, 'group = "file"\nkafka = "file:1"\ntriton = "file:2"\n')
    environ = {"FRESHET_KAFKA": "environ:1", "FRESHET_TRITON": "environ:2", "HOME": "/"}
    settings = load_settings(file, {"triton": "flag:2", "kafka": None}, environ)
    assert (settings.group, settings.kafka, settings.triton) == ("file", "environ:1", "flag:2")
    assert settings.items_topic == Settings().items_topic


def test_nothing_given_is_the_defaults() -> None:
    """Without sources every setting has its default."""
    assert load_settings(environ={}) == Settings()


def test_environment_variables_are_typed() -> None:
    """Numbers and mappings are read from the environment's text."""
    environ = {
        "FRESHET_LIST_SIZE": "7",
        "FRESHET_DIVERSITY": "0.5",
        "FRESHET_PRIOR_WEIGHT": "2",
        "FRESHET_BEHAVIOURS": '{"listen": 1.5}',
    }
    settings = load_settings(environ=environ)
    assert (settings.list_size, settings.diversity, settings.prior_weight) == (7, 0.5, 2.0)
    assert settings.behaviours == {"listen": 1.5}


def test_a_file_may_hold_a_table(tmp_path: Path) -> None:
    """A TOML table sets the behaviours."""
    settings = load_settings(toml(tmp_path, "[behaviours]\nlisten = 1\n"), environ={})
    assert settings.behaviours == {"listen": 1.0}


@pytest.mark.parametrize(
    ("text", "environ", "flags", "named"),
    [
        ("colour = 1", {}, {}, "colour"),
        ("", {"FRESHET_COLOUR": "1"}, {}, "FRESHET_COLOUR"),
        ("", {}, {"colour": 1}, "colour"),
        ("not toml", {}, {}, "freshet.toml"),
        ("list_size = 0", {}, {}, "list_size"),
        ("", {"FRESHET_LIST_SIZE": "many"}, {}, "list_size"),
        ("", {"FRESHET_LIST_SIZE": "51"}, {}, "list_size"),
        ("", {"FRESHET_DIVERSITY": "1.5"}, {}, "diversity"),
        ("novelty_weight = -1", {}, {}, "novelty_weight"),
        ("", {"FRESHET_HEALTH_PORT": "65536"}, {}, "health_port"),
        ("", {"FRESHET_TRITON_DEADLINE": "0"}, {}, "triton_deadline"),
        ("", {"FRESHET_BEHAVIOURS": "view"}, {}, "FRESHET_BEHAVIOURS"),
        ("", {"FRESHET_BEHAVIOURS": '{"view": "x"}'}, {}, "behaviours"),
        ("[behaviours]\nview = nan", {}, {}, "behaviours"),
        ("[behaviours]\nview = 1\n'user.erase' = 1", {}, {}, r"none of user\.erase"),
        ("", {}, {"encode_batch": 0}, "encode_batch"),
        ("kafka_password = 'hunter2'", {}, {}, "shows no password: set SASL_SSL"),
        ("kafka_security = 'SASL_SSL'\nkafka_mechanism = 'GSSAPI'", {}, {}, "kafka_mechanism"),
        ("kafka_security = 'SASL_SSL'\nkafka_mechanism = 'OAUTHBEARER'", {}, {}, "needs kafka_oauth_url"),
        ("kafka_security = 'SASL_SSL'\nkafka_mechanism = 'AWS_MSK_IAM'", {}, {}, "needs kafka_region"),
        ("kafka_certificate = 'ann.pem'", {}, {}, "belong together"),
        ("", {"FRESHET_LIBRDKAFKA": "rack"}, {}, "FRESHET_LIBRDKAFKA"),
        ("", {"FRESHET_KAFKA_PASSWORD_FILE": "/no/such/secret"}, {}, "FRESHET_KAFKA_PASSWORD_FILE: /no/such/secret"),
        ("", {"FRESHET_KAFKA_FILE": "x"}, {}, "unknown setting 'kafka_file'"),
    ],
)
def test_a_bad_setting_is_named(
    tmp_path: Path, text: str, environ: dict[str, str], flags: dict[str, Any], named: str
) -> None:
    """An unknown name or a bad value is refused with the name."""
    with pytest.raises(SettingsError, match=named):
        load_settings(toml(tmp_path, text), flags, environ)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A settings file that is not there is named."""
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml", environ={})


def test_secrets_are_masked() -> None:
    """Shown settings have every name and no secret."""
    shown = Settings(kafka_password="hunter2").masked()  # noqa: S106 - a canary
    assert set(shown) == set(NAMES)
    assert "hunter2" not in str(shown)
    assert shown["kafka_password"]
    assert Settings().masked()["kafka_password"] is None


def test_a_secret_in_a_property_of_librdkafka_is_masked() -> None:
    """A property whose name says password, secret or key is not shown."""
    properties: dict[str, str | int | float | bool] = {"ssl.key.password": "hunter2", "socket.timeout.ms": 100}
    assert Settings(librdkafka=properties).masked()["librdkafka"] == {
        "ssl.key.password": "********",
        "socket.timeout.ms": 100,
    }


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    """`FRESHET_<SECRET>_FILE` names a file whose last line break is not part of the secret."""
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    settings = load_settings(environ={"FRESHET_REDIS_PASSWORD_FILE": str(file)})
    assert settings.redis_password == "hunter2"  # noqa: S105


def test_every_password_is_a_secret() -> None:
    """Every setting named like a secret is masked."""
    secret = {name for name in NAMES if any(word in name for word in ("password", "secret", "token"))}
    assert secret <= SECRETS


# Every setting changes something: what is observed with the default differs from what is observed without.


def client(settings: Settings) -> object:
    """How librdkafka connects."""
    return client_config(msgspec.structs.replace(settings, kafka_security="SASL_SSL"))


def changelog(settings: Settings) -> object:
    """How the topic of states is created."""
    topic = new_changelog(settings, 1)
    return topic.replication_factor, topic.config


def security(settings: Settings) -> object:
    """How librdkafka connects, as set."""
    return client_config(settings)


def redis(settings: Settings) -> object:
    """How Redis is connected to over TLS, by somebody with a password."""
    password = settings.redis_password or "first"
    return redis_options(
        msgspec.structs.replace(settings, online_store="rediss://10.0.0.1:6379", redis_password=password)
    )


def read_service(settings: Settings) -> object:
    """Where the read service listens, by whose certificates, whom it lets in, how often, and how many streams."""
    with patch("freshet.http.server.socket.socket") as made:
        server._listener(settings)
    app = Starlette()
    guard, config = Guard(app, settings), server._config(settings, app)
    tls = config.ssl_certfile, config.ssl_keyfile, config.ssl_ca_certs, config.ssl_cert_reqs
    rate = sum(guard._buckets.take("client") for _ in range(2000)) > 1500
    return made.return_value.bind.call_args, tls, guard._digests, rate, config.limit_concurrency


def published(settings: Settings) -> object:
    """What two users' clicks lead to on every topic, and how the encoder is asked."""

    async def run() -> object:
        world = MemoryWorld()
        world.settings = settings
        await world.start()
        world.model.live.space.set_popularity(Popularity.of({f"film-{number}": 50.0 - number for number in range(50)}))
        for item in range(20, 30):
            world.model.live.space.vectors[item] = world.model.live.space.vectors[20]
        ahead = encode_event(event(5, "dan", ts=NOW + 3_600_000))
        await world.process([Record(0, 0, b"k", b"junk"), Record(1, NOW, b"dan", ahead)])
        await world.run(event(1), event(2, "bob"), event(90, "bob"), event(3, "cyd", "listen"), event(4, ts=10**12))
        messages = [(message.topic, dict(message.headers).get("origin_topic")) for message in world.publisher.messages]
        made = lists(world.publisher.messages, settings.recommendations_topic)
        items = [(published.items, published.variant) for published in made]
        counts = [
            decode_partial(message.value).half_life
            for message in world.publisher.messages
            if message.topic == settings.popularity_topic
        ]
        return messages, items, counts, world.encoder.calls

    return asyncio.run(run())


def assigned(settings: Settings) -> object:
    """Which users get which variant of an experiment with two."""
    halves = {"even": Variant(share=0.5), "odd": Variant(share=0.5)}
    maker = ListMaker(msgspec.structs.replace(settings, variants=halves))
    return [maker.variant(f"user-{number}") for number in range(50)]


def living(settings: Settings) -> object:
    """Whose list waits to be made again, of two users of whom one was there long ago."""

    async def wait() -> list[str]:
        world = MemoryWorld()
        world.settings = settings
        await world.start()
        await world.run(event(1, "ann"), event(-4000, "bob"))
        records = world.publication.standing.values()
        for record in records:
            record.mark_versions({2}, clock(), 0.0)
        since_s = clock() - settings.living_horizon
        return [record.take(row) for record in records for row in record.due(clock() + 1, since_s).tolist()]

    return asyncio.run(wait())


def judged(settings: Settings) -> object:
    """Which canaries are rolled back, and why."""
    trials = [
        Comparison(lists, failed, failed / (lists + failed), overlap, 0.0, 1.0, candidate_ms)
        for lists in (100, 1000)
        for failed in (0, 20)
        for overlap in (0.05, 0.5)
        for candidate_ms in (1.0, 3.0)
    ]
    return [out_of_band(comparison, bands(settings)) for comparison in trials]


@pytest.fixture
def retired(tmp_path: Path) -> Callable[[Settings], object]:
    """Which versions' folders stay."""

    def observe(settings: Settings) -> object:
        for model, version in product(folders.MODELS, range(1, 10)):
            (tmp_path / "models" / model / str(version)).mkdir(parents=True, exist_ok=True)
        publish._retire(tmp_path / "models", settings.versions_kept, keep={8, 9})
        return folders.versions(tmp_path / "models")

    return observe


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app module; importing faust reads the command line."""
    monkeypatch.setattr(sys, "argv", ["freshet"])
    from freshet.serving import app  # noqa: PLC0415

    return app


@pytest.fixture
def consumer(app: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Settings], object]:
    """How the worker consumes."""
    monkeypatch.chdir(tmp_path)  # the worker's name is kept in its folder

    def observe(settings: Settings) -> object:
        conf = app.WorkerApp(settings, 1, None).conf
        return conf.id, conf.broker, str(conf.datadir), conf.broker_max_poll_records, conf.events_topic

    return observe


@pytest.fixture
def wiring(app: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Settings], object]:
    """What the worker's parts are opened with."""
    opened: list[tuple[Any, ...]] = []

    class Part:
        """Any part: remembers what it was made with, and starts."""

        port = 1

        def __init__(self, *arguments: object, **_: object) -> None:
            opened.append(
                tuple(str(argument) for argument in arguments if isinstance(argument, str | int | float | Path | tuple))
            )

        async def start(self, *_: object) -> None:
            """Start."""

        async def run(self) -> None:
            """Run."""

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    for name in (
        "HealthServer",
        "KafkaPublisher",
        "TritonEncoder",
        "LiveVersions",
        "SideInputReader",
        "SourceWatch",
        "Pipeline",
        "CanaryAnalysis",
    ):
        monkeypatch.setattr(app, name, Part)
    monkeypatch.setattr(app, "open_feature_store", Part)
    monkeypatch.setattr(app.watchdog, "Watchdog", Part)

    def observe(settings: Settings) -> object:
        opened.clear()

        async def run() -> None:
            runtime = app.Runtime(msgspec.structs.replace(settings, data_dir=str(tmp_path)))
            runtime.open()
            await runtime.start()
            for task in runtime.tasks:
                task.cancel()
            await asyncio.gather(*runtime.tasks, return_exceptions=True)

        asyncio.run(run())
        return list(opened)

    return observe


@pytest.fixture
def feast(tmp_path: Path) -> Callable[[Settings], object]:
    """Which Feast store comes of it, and where."""
    from freshet.adapters.feast import apply  # noqa: PLC0415

    def observe(settings: Settings) -> object:
        settings = msgspec.structs.replace(settings, feature_repo=str(Path(settings.feature_repo).absolute()))
        with chdir(tmp_path):
            try:
                file = apply(settings)
            except SettingsError as error:
                return str(error)
        return str(file), yaml.safe_load(file.read_text())["online_store"]

    return observe


class Topic:
    """A member of a group that has one partition, and its reader: one large record a fetch, of ten seconds."""

    def __init__(self, _settings: object) -> None:
        self.fetches = 0
        self.commits: list[int] = []

    def subscribe(self, topics: list[str], on_assign: Callable[..., None], **_: object) -> None:
        """Assign the first partition at once."""
        on_assign(self, [TopicPartition(topics[0], 0)])

    def read(self, *_: object) -> list[Any]:
        """One record more."""
        self.fetches += 1
        offset = self.fetches - 1
        return [(("events", 0), Record(offset, offset, b"k", random.Random(offset).randbytes(300_000)))]

    def get_watermark_offsets(self, *_: object, **__: object) -> tuple[int, int]:
        """It began empty."""
        return 0, self.fetches

    def commit(self, offsets: list[TopicPartition], **_: object) -> None:
        """Keep where a file ended."""
        self.commits.append(offsets[0].offset)

    def end(self, *_: object) -> int:
        """All is read."""
        return self.fetches

    def nothing(self, *_: object) -> None:
        """Nothing to do."""

    incremental_assign = pause = poll = seek = close = nothing


@pytest.fixture
def archived(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Settings], object]:
    """Where an archiver's files end, and where they lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(archiver, "Consumer", Topic)
    monkeypatch.setattr(archiver, "PartitionReader", Topic)
    monkeypatch.setattr("freshet.archive.appender.ROW_GROUP_BYTES", 1)

    def observe(settings: Settings) -> object:
        running = archiver.Archiver(settings, Health())
        monkeypatch.setattr(archiver.time, "monotonic", lambda: running._reader.fetches * 10.0)
        stopping = Mock()
        stopping.is_set = lambda: running._reader.fetches == 20
        running.run(stopping)
        folders = [str(folder) for folder in tmp_path.iterdir()]
        for folder in folders:
            shutil.rmtree(folder)
        return running._member.commits, folders

    return observe


@pytest.fixture
def granted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], object]:
    """What the token endpoint is asked."""

    def observe(settings: Settings) -> object:
        asked = Mock(side_effect=OSError)
        monkeypatch.setattr("urllib.request.urlopen", asked)
        oauth = {"kafka_security": "SASL_SSL", "kafka_mechanism": "OAUTHBEARER"}
        oauth |= {"kafka_oauth_url": settings.kafka_oauth_url or "http://10.0.0.1/other"}
        with pytest.raises(AccessError, match="kafka_oauth_url"):
            token_source(msgspec.structs.replace(settings, **oauth))
        request = asked.call_args.args[0]
        return request.full_url, request.data

    return observe


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], object]:
    """The region that a token of AWS is signed for."""

    def observe(settings: Settings) -> object:
        signer = Mock()
        signer.MSKAuthTokenProvider.generate_auth_token.return_value = ("token", 2**42)
        monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", signer)
        iam = {"kafka_security": "SASL_SSL", "kafka_mechanism": "AWS_MSK_IAM"}
        source = token_source(msgspec.structs.replace(settings, **iam))
        assert source is not None
        assert source.token().value == "token"
        return signer.MSKAuthTokenProvider.generate_auth_token.call_args.args

    return observe


CHANGES: dict[str, tuple[str, Any]] = {
    "kafka": ("client", "10.0.0.1:9092"),
    "kafka_security": ("security", "SSL"),
    "kafka_mechanism": ("client", "PLAIN"),
    "kafka_ca": ("security", "ca.pem"),
    "kafka_certificate": ("security", "ann.pem"),
    "kafka_key": ("security", "ann.key"),
    "kafka_key_password": ("security", "hunter2"),
    "kafka_username": ("client", "ann"),
    "kafka_password": ("client", "hunter2"),
    "kafka_oauth_url": ("granted", "http://10.0.0.1/token"),
    "kafka_oauth_scope": ("granted", "freshet"),
    "kafka_region": ("signed", "eu-central-1"),
    "kafka_rack": ("security", "rack-a"),
    "librdkafka": ("security", {"socket.keepalive.enable": True}),
    "group": ("consumer", "other"),
    "changelog_replication_factor": ("changelog", 3),
    "changelog_min_insync_replicas": ("changelog", 2),
    "events_topic": ("published", "other"),
    "items_topic": ("wiring", "other"),
    "recommendations_topic": ("published", "other"),
    "dlq_topic": ("published", "other"),
    "models_topic": ("wiring", "other"),
    "popularity_topic": ("published", "other"),
    "triton": ("wiring", "10.0.0.1:8001"),
    "triton_security": ("wiring", "SSL"),
    "triton_ca": ("wiring", "ca.pem"),
    "triton_control_key": ("wiring", "hunter2"),
    "triton_deadline": ("wiring", 9.0),
    "model_repository": ("wiring", "elsewhere"),
    "versions_kept": ("retired", 2),
    "trusted_keys": ("wiring", "elsewhere"),
    "feature_repo": ("feast", "elsewhere"),
    "online_store": ("feast", "redis://127.0.0.1:6379"),
    "redis_ca": ("redis", "ca.pem"),
    "redis_username": ("redis", "ann"),
    "redis_password": ("redis", "hunter2"),
    "feast_dir": ("feast", "elsewhere"),
    "data_dir": ("consumer", "elsewhere"),
    "archive_dir": ("archived", "elsewhere"),
    "archive_roll": ("archived", 20.0),
    "archive_file_mb": ("archived", 1),
    "health_host": ("wiring", "0.0.0.0"),  # noqa: S104 - only observed
    "health_port": ("wiring", 8080),
    "http_host": ("read service", "127.0.0.2"),
    "http_port": ("read service", 8081),
    "http_api_keys": ("read service", "one two"),
    "http_certificate": ("read service", "cert.pem"),
    "http_key": ("read service", "key.pem"),
    "http_client_ca": ("read service", "ca.pem"),
    "http_rate": ("read service", 5000.0),
    "http_streams": ("read service", 5),
    "behaviours": ("published", {"view": 1.0, "listen": 1.0}),
    "history": ("published", 1),
    "text_fields": ("wiring", ("title",)),
    "list_size": ("published", 3),
    "max_batch_events": ("consumer", 7),
    "encode_batch": ("published", 1),
    "diversity": ("published", 1.0),
    "prior_weight": ("published", 40.0),
    "value_weight": ("published", 40.0),
    "novelty_weight": ("published", 40.0),
    "exploration": ("published", 1.0),
    "experiment": ("assigned", "second"),
    "variants": ("published", {"plain": Variant(share=1.0)}),
    "canary_lists": ("judged", 5000),
    "canary_error_rate": ("judged", 0.5),
    "canary_latency_ratio": ("judged", 4.0),
    "canary_overlap": ("judged", 0.01),
    "living_budget": ("living", 0.0),
    "living_horizon": ("living", 1.0),
    "event_ahead": ("published", 60.0),
    "popularity_half_life": ("published", 60.0),
}
"""For each setting: where it is observed, and another value than the default."""

AT_HAND: dict[str, Callable[[Settings], object]] = {
    "changelog": changelog,
    "client": client,
    "security": security,
    "redis": redis,
    "published": published,
    "judged": judged,
    "living": living,
    "assigned": assigned,
    "read service": read_service,
}


def test_the_table_of_changes_is_complete() -> None:
    """The table of changes has a line for every setting."""
    assert set(CHANGES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_changes_something(name: str, request: pytest.FixtureRequest) -> None:
    """Another value of a setting changes what the worker does, and the same value does not."""
    where, value = CHANGES[name]
    observe = AT_HAND.get(where) or request.getfixturevalue(where)
    default = Settings()
    assert observe(default) == observe(Settings())
    assert observe(msgspec.structs.replace(default, **{name: value})) != observe(default)


@pytest.mark.parametrize("name", ["kafka", "events_topic"])
def test_what_two_parts_read_reaches_both(name: str, consumer: Callable[[Settings], object]) -> None:
    """The broker and the events topic reach Faust as well."""
    _, value = CHANGES[name]
    assert consumer(msgspec.structs.replace(Settings(), **{name: value})) != consumer(Settings())


@pytest.mark.parametrize("knob", KNOBS)
def test_a_variant_differs_by_its_own_knobs(knob: str) -> None:
    """A variant's knobs hold for its users, and every other setting stays."""
    for name in KNOBS:
        assert name in Settings.__struct_fields__
        assert name in Variant.__struct_fields__
    arm = msgspec.convert({"share": 0.5, knob: 0.75}, Variant)
    settings = Settings(diversity=0.25, prior_weight=3.0, variants={"plain": Variant(share=0.5), "changed": arm})
    assert settings.of_variant("plain") == settings.of_variant("none such") == settings
    assert settings.of_variant("changed") == msgspec.structs.replace(settings, **{knob: 0.75})


@pytest.mark.parametrize("knob", KNOBS[:-1])
def test_a_policy_is_judged_with_its_own_knobs(knob: str) -> None:
    """`freshet ope` makes a list with the knobs of its variant and of the target, without exploring."""
    arm = Variant(share=1.0, diversity=0.5, exploration=0.3)
    live = Settings(prior_weight=3.0, variants={"all": arm})
    base = Settings(prior_weight=3.0, diversity=0.5)
    assert Target().settings(live, "all") == base
    assert Target(**{knob: 0.75}).settings(live, "all") == msgspec.structs.replace(base, **{knob: 0.75})  # type: ignore[arg-type]
    assert Target(**{knob: 0.75}).name == f"{knob.replace('_', ' ')} 0.75"  # type: ignore[arg-type]
