"""How the settings let each of the three Kafka clients in: by encryption, certificate, password or token."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from aiokafka.abc import AbstractTokenProvider as AioKafkaTokenProvider
from kafka.net.sasl.oauth import AbstractTokenProvider as KafkaPythonTokenProvider

from freshet.errors import FreshetError
from freshet.settings import Settings

TOKEN_SECONDS = 5.0
"""Longest wait for an answer of the token endpoint."""
TOKEN_SHARE = 0.8
"""A token is used for this share of its lifetime."""


class AccessError(FreshetError):
    """The Kafka security settings cannot be used; the message says which and why."""


class Token(NamedTuple):
    """A bearer token and the time at which it ends (seconds since the epoch)."""

    value: str
    ends: float


class TokenSource:
    """Gives a bearer token, and fetches the next one when most of its lifetime is over. Thread-safe."""

    def __init__(self, fetch: Callable[[], Token]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._token = Token("", 0.0)
        self._renew = 0.0

    def token(self) -> Token:
        """A token that is valid now. Raises `AccessError`."""
        with self._lock:
            now = time.time()
            if now >= self._renew:
                self._token = self._fetch()
                self._renew = now + (self._token.ends - now) * TOKEN_SHARE
            return self._token


def librdkafka_access(settings: Settings) -> dict[str, Any]:
    """Settings of librdkafka. Raises `AccessError`."""
    config: dict[str, Any] = {"security.protocol": settings.kafka_security}
    files = {
        "ssl.ca.location": settings.kafka_ca,
        "ssl.certificate.location": settings.kafka_certificate,
        "ssl.key.location": settings.kafka_key,
        "ssl.key.password": settings.kafka_key_password,
    }
    config |= {name: value for name, value in files.items() if value}
    if (source := token_source(settings)) is not None:
        return config | {"sasl.mechanism": "OAUTHBEARER", "oauth_cb": lambda _config: source.token()}
    if has_sasl(settings):
        config |= {
            "sasl.mechanism": settings.kafka_mechanism,
            "sasl.username": settings.kafka_username or "",
            "sasl.password": settings.kafka_password or "",
        }
    return config


def kafka_python_access(settings: Settings) -> dict[str, Any]:
    """Settings of kafka-python. Raises `AccessError`."""
    config: dict[str, Any] = {"security_protocol": settings.kafka_security}
    if has_tls(settings):
        config["ssl_context"] = tls_context(settings)
    if (source := token_source(settings)) is not None:
        return config | {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": KafkaPythonTokens(source)}
    if has_sasl(settings):
        config |= {
            "sasl_mechanism": settings.kafka_mechanism,
            "sasl_plain_username": settings.kafka_username or "",
            "sasl_plain_password": settings.kafka_password or "",
        }
    return config


def has_tls(settings: Settings) -> bool:
    """Whether connections are encrypted."""
    return settings.kafka_security in ("SSL", "SASL_SSL")


def has_sasl(settings: Settings) -> bool:
    """Whether a client shows a password or a token."""
    return settings.kafka_security in ("SASL_PLAINTEXT", "SASL_SSL")


def tls_context(settings: Settings) -> ssl.SSLContext:
    """The context of an encrypted connection, with the client's certificate where the settings name it.

    Raises `AccessError` where a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca)
    except (OSError, ssl.SSLError) as error:
        raise AccessError(f"kafka_ca: {settings.kafka_ca} cannot be used ({error})") from None
    if settings.kafka_certificate:
        try:
            context.load_cert_chain(settings.kafka_certificate, settings.kafka_key, settings.kafka_key_password or "")
        except (OSError, ssl.SSLError) as error:
            raise AccessError(
                f"kafka_certificate, kafka_key: {settings.kafka_certificate} and {settings.kafka_key} cannot be used "
                f"({error})"
            ) from None
    return context


def token_source(settings: Settings) -> TokenSource | None:
    """Where the client's tokens come from; None where the client shows a password or nothing.

    Fetches the first token, for each client would tell of a refusal in words of its own. Raises `AccessError`.
    """
    fetch = _FETCHES.get(settings.kafka_mechanism) if has_sasl(settings) else None
    if fetch is None:
        return None
    source = TokenSource(partial(fetch, settings))
    source.token()
    return source


def _granted_token(settings: Settings) -> Token:
    """Ask the token endpoint by the client credentials grant (RFC 6749, section 4.4)."""
    url = settings.kafka_oauth_url or ""
    form = {"grant_type": "client_credentials"}
    if settings.kafka_oauth_scope:
        form["scope"] = settings.kafka_oauth_scope
    client = f"{urllib.parse.quote(settings.kafka_username or '')}:{urllib.parse.quote(settings.kafka_password or '')}"
    request = urllib.request.Request(  # noqa: S310 - `load_settings` takes http and https alone
        url,
        urllib.parse.urlencode(form).encode(),
        {"Authorization": f"Basic {base64.b64encode(client.encode()).decode()}", "Accept": "application/json"},
    )
    context = tls_context(settings) if url.startswith("https:") else None
    try:
        with urllib.request.urlopen(request, timeout=TOKEN_SECONDS, context=context) as answer:  # noqa: S310
            granted = json.load(answer)
        return Token(str(granted["access_token"]), time.time() + float(granted["expires_in"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AccessError(f"kafka_oauth_url: {url} gives no token ({type(error).__name__}: {error})") from None


def _aws_token(settings: Settings) -> Token:
    """Sign a token for MSK with the credentials that the AWS SDK finds."""
    try:
        from aws_msk_iam_sasl_signer import MSKAuthTokenProvider  # noqa: PLC0415 - an extra that few install
    except ImportError:
        raise AccessError("kafka_mechanism AWS_MSK_IAM needs `pip install 'freshet[msk]'`") from None
    try:
        value, ends_ms = MSKAuthTokenProvider.generate_auth_token(settings.kafka_region)
    except Exception as error:  # the SDK's own: no credentials, an unknown region
        raise AccessError(f"kafka_mechanism AWS_MSK_IAM: no token can be signed ({error})") from None
    return Token(value, ends_ms / 1000)


_FETCHES = {"OAUTHBEARER": _granted_token, "AWS_MSK_IAM": _aws_token}


class KafkaPythonTokens(KafkaPythonTokenProvider):  # type: ignore[misc]
    """kafka-python's form of a token source."""

    def __init__(self, source: TokenSource) -> None:
        super().__init__()
        self._source = source

    def token(self) -> str:
        """A token that is valid now. Raises `AccessError`."""
        return self._source.token().value


class AioKafkaTokens(AioKafkaTokenProvider):  # type: ignore[misc]
    """aiokafka's form of a token source."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    async def token(self) -> str:
        """A token that is valid now. Raises `AccessError`."""
        return (await asyncio.to_thread(self._source.token)).value
