"""Signatures on bundles: ed25519 over the bytes of `manifest.json`, which holds the sha256 of every other file.

A key pair is two PEM files, `NAME.key` (PKCS 8, readable by its owner alone) and
`NAME.pub`; `openssl genpkey -algorithm ed25519` makes the same. Whoever serves
trusts every `*.pub` of one folder, which must not be writable by those who
publish.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from freshet.bundle.bundle import MANIFEST, SIGNATURE, Bundle, BundleError, write_manifest
from freshet.bundle.verify import load_sound
from freshet.core.decoding import Undecodable, decode
from freshet.files import write_whole


class SignatureError(BundleError):
    """The bundle is not to be trusted, or a key cannot be used; the message says why."""


class _Signature(msgspec.Struct, frozen=True):
    """The content of a signature's file: the signing key's fingerprint, and the signature in base64."""

    key: str
    signature: bytes


_decoder = msgspec.json.Decoder(_Signature)


def load_trusted(folder: Path, trusted: Path) -> Bundle:
    """Read a bundle that is to be served: signed by a key of the folder `trusted`, whole, sound in every weight.

    Raises `BundleError`.
    """
    verify(folder, trusted)
    return load_sound(folder)


def verify(folder: Path, trusted: Path) -> None:
    """See that the bundle's manifest is signed by a key of `trusted`. Raises `SignatureError`."""
    if not (folder / MANIFEST).is_file():
        raise SignatureError(f"{folder} has no {MANIFEST}: it is no complete bundle")
    verify_file(folder / MANIFEST, folder / SIGNATURE, trusted, f"{folder} is not signed: `freshet sign {folder}`")


def verify_file(file: Path, signature: Path, trusted: Path, unsigned: str) -> None:
    """See that a file is signed by a key of `trusted`. `unsigned` is what to say where there is no signature.

    Raises `SignatureError`, and `OSError` for a file that cannot be read.
    """
    keys = _public_keys(trusted)
    try:
        stored = decode(_decoder, signature.read_bytes())
    except FileNotFoundError:
        raise SignatureError(unsigned) from None
    if isinstance(stored, Undecodable):
        raise SignatureError(f"{signature} cannot be read: {stored.why}")
    key = keys.get(stored.key)
    if key is None:
        raise SignatureError(f"{file.parent} is signed by {stored.key[:16]}, no key of {trusted}")
    try:
        key.verify(stored.signature, file.read_bytes())
    except InvalidSignature:
        raise SignatureError(f"{file.parent}: the signature does not fit {file.name}") from None


def sign_file(file: Path, signature: Path, key: Path) -> str:
    """Sign a file's bytes with a private key; returns the key's fingerprint. Raises `SignatureError`, `OSError`."""
    private = _private_key(key)
    mark = fingerprint(private.public_key())
    write_whole(signature, msgspec.json.encode(_Signature(mark, private.sign(file.read_bytes()))) + b"\n")
    return mark


def sign(folder: Path, key: Path, ungated: str = "") -> str:
    """Sign the bundle at `folder`, which must be sound, with a private key; returns its fingerprint.

    What the gate refused is signed only where `ungated` says why, which is put into the
    manifest. Raises `BundleError`.
    """
    bundle = load_sound(folder)
    _private_key(key)  # a key that cannot be used changes nothing
    if ungated:
        bundle = msgspec.structs.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, ungated=ungated))
        write_manifest(folder, bundle.manifest)
    bundle.check_gate()
    return sign_file(folder / MANIFEST, folder / SIGNATURE, key)


def make_keys(key: Path) -> None:
    """Make the pair `key` and its `.pub` beside it. Raises `SignatureError` where there is one."""
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        key.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        key.with_suffix(".pub").write_bytes(public)
    except FileExistsError:
        raise SignatureError(f"{key} exists") from None
    except OSError as error:
        raise SignatureError(f"{key}: {error.strerror}") from None


def fingerprint(key: Ed25519PublicKey) -> str:
    """The sha256 of a public key's 32 bytes, in hex."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def _public_keys(folder: Path) -> dict[str, Ed25519PublicKey]:
    keys = {}
    for file in sorted(folder.glob("*.pub")):
        try:
            key = load_pem_public_key(file.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise SignatureError(f"{file} cannot be read: {error}") from None
        if not isinstance(key, Ed25519PublicKey):
            raise SignatureError(f"{file} is no ed25519 key")
        keys[fingerprint(key)] = key
    if not keys:
        raise SignatureError(f"{folder} holds no public key (*.pub): set `trusted_keys`, or run `freshet up`")
    return keys


def _private_key(file: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except FileNotFoundError:
        raise SignatureError(f"{file} does not exist") from None
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{file} is no private key without a password: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{file} is no ed25519 key")
    return key
