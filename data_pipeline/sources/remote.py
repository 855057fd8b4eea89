"""Zarr stores wherever they lie (gs, s3, http, a folder): read anonymously, patiently, and never NaN for what is not there.

A read that fails for a reason that may pass (a busy or failing server, a timeout, a broken connection, a body cut short) is tried
again after a wait that doubles. A chunk that the store lacks is an error: zarr itself would give its fill value without a word.
An empty chunk inside a shard is what the writer of the shard said, and stays the fill value.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import xarray as xr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from data_pipeline.errors import InputError, NotReadyError, PlumecastError

ROOTS = ("zarr.json", ".zmetadata", ".zgroup")
METADATA = (*ROOTS, ".zarray", ".zattrs")
SCHEMES = ("gs", "gcs", "s3", "http", "https", "file", "")
_EXPECTED = "expected gs://, s3://, http(s):// or a path"
REFUSED = (401, 403)  # S3 says so of what is not there, where listing is not allowed
_CHUNK = re.compile(r"(?P<array>.+?)/(?:c[/.])?\d+(?:[/.]\d+)+")  # of two dims or more: coordinates may hold fill values
_CLIENTS = ("aiohttp", "aiobotocore", "botocore", "fsspec", "gcsfs", "google", "requests", "urllib3")
_LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError)
_PASSING = (408, 425, 429)  # and every 5xx
_STAMP_NAMES = ("time", "dates", "date", "valid_time", "init_time")
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Patience:
    """How long a failing read is tried.

    attempts: in all. first: seconds of the first wait; each doubles, up to `longest`, and loses up to a half, drawn from `seed`.
    timeout: seconds that one read may take. requests: reads at once. wait: what waits.
    """

    attempts: int = 6
    first: float = 1.0
    longest: float = 60.0
    timeout: float = 600.0
    requests: int = 8
    seed: int = 0
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep


PATIENCE = Patience()


class PatientStore(WrapperStore[Store]):
    """A zarr store to read from, with retries, a limit of reads at once, and an error for a chunk that is not there.

    url: what messages call it. zarr_format, documents: of its metadata, {key: parsed JSON} of every array and group.
    """

    def __init__(self, store: Store, *, url: str, patience: Patience) -> None:
        super().__init__(store)
        self.url, self.patience = url, patience
        self.zarr_format, self.consolidated = 0, False
        self.documents: dict[str, Any] = {}
        self.packed: frozenset[str] = frozenset()
        self._prepare()

    def _prepare(self) -> None:
        self._free = asyncio.Semaphore(self.patience.requests)
        self._draws = np.random.default_rng(self.patience.seed)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_free", "_draws")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def _with_store(self, store: Store) -> PatientStore:
        copy = PatientStore(store, url=self.url, patience=self.patience)
        copy.__dict__.update({key: value for key, value in self.__getstate__().items() if key != "_store"})
        return copy

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        async def read() -> Buffer | None:
            try:
                value = await self._store.get(key, prototype, byte_range)
            except Exception as error:
                if key.rpartition("/")[2] in METADATA and _status(error) in REFUSED:
                    return None
                raise
            if value is not None and byte_range is None:
                self._check_length(key, value)
            return value

        value = await self._patiently(key, read)
        if value is None and _CHUNK.fullmatch(key):
            raise InputError(f"{self.url} has no {key}: a hole in the archive; choose another period, or get the store again")
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return await self._patiently(key, lambda: self._store.exists(key))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        async def listed() -> list[str]:
            return [name async for name in self._store.list_dir(prefix)]

        for name in await self._patiently(prefix or "/", listed):
            yield name

    _get_many = Store._get_many  # by `get` above, one by one

    async def _patiently(self, key: str, read: Callable[[], Awaitable[_Read]]) -> _Read:
        patience = self.patience
        for attempt in range(1, patience.attempts + 1):
            try:
                async with self._free:
                    return await asyncio.wait_for(read(), patience.timeout)
            except Exception as error:
                said = _said(error)
                if not _may_pass(error):
                    raise InputError(f"{self.url}: {key} cannot be read: {said}; check the address and its options") from None
            if attempt < patience.attempts:
                pause = min(patience.first * 2 ** (attempt - 1), patience.longest)
                await patience.wait(pause * float(self._draws.uniform(0.5, 1.0)))
        raise NotReadyError(
            f"{self.url}: {key} could not be read in {patience.attempts} attempts, at last: {said}. "
            "Run the same command again: it continues"
        )

    def _check_length(self, key: str, value: Buffer) -> None:
        """A blosc chunk cut short may decode without error to wrong numbers; its header tells the length."""
        found = _CHUNK.fullmatch(key)
        if found is None or found["array"] not in self.packed:
            return
        stated = int.from_bytes(value[12:16].to_bytes(), "little") if len(value) >= 16 else 16
        if stated != len(value):
            raise EOFError(f"{len(value)} bytes came of {stated}")


def connect(url: str, storage: Mapping[str, Any] | None = None) -> PatientStore:
    """The zarr store at `url`, to read from.

    url: gs://, s3://, http://, https://, file:// or a path. storage: `attempts`, `timeout` and `requests` of `Patience`, the rest
    for the fsspec file system; anonymous unless it says otherwise. Raises InputError if there is no zarr store, NotReadyError if
    the server does not answer.
    """
    options = dict(storage or {})
    own = {key: options.pop(key) for key in ("attempts", "timeout", "requests") if key in options}
    if any(not isinstance(value, int) or value < 1 for value in own.values()):
        raise InputError(f"storage options {own}: expected whole numbers above 0")
    patience, scheme = replace(PATIENCE, **own), _scheme(url)
    try:
        if scheme in ("", "file"):
            folder = Path(urlsplit(url).path if scheme else url).expanduser()
            if not folder.is_dir():
                raise InputError(f"{folder} holds no zarr store that may be read: there is no such folder")
            inner: Store = LocalStore(folder, read_only=True)
        else:
            inner = _remote_store(scheme, url.rstrip("/"), patience.timeout, options)
    except ImportError as error:
        raise InputError(f"{public(url)} needs the extra cloud: pip install plumecast[cloud] ({error})") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{public(url)}: {error}; {_EXPECTED}, and the options of its kind") from None
    store = PatientStore(inner, url=public(url), patience=patience)
    _read_metadata(store)
    return store


def _scheme(url: str) -> str:
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:  # the address is not shown: it may hold a password
        raise InputError(f"the address of the archive is malformed: {error}; {_EXPECTED}") from None
    if scheme not in SCHEMES:
        raise InputError(f"{public(url)}: {scheme}:// is not known; {_EXPECTED}")
    return scheme


def _remote_store(scheme: str, url: str, timeout: float, options: Mapping[str, Any]) -> FsspecStore:
    """Anonymous unless the options say otherwise; as patient with one large chunk as we are; one request a chunk."""
    if scheme == "s3":
        return FsspecStore.from_url(url, {"anon": True, "max_concurrency": 1, **options}, read_only=True)
    import aiohttp  # of the extra cloud

    session = {"timeout": aiohttp.ClientTimeout(total=timeout)}
    if scheme not in ("gs", "gcs"):
        return FsspecStore.from_url(url, {"client_kwargs": session, **options}, read_only=True)
    # The class that gcsfs registers asks for the kind of the bucket before every read; a public one refuses, after a while.
    from gcsfs.core import GCSFileSystem

    files = GCSFileSystem(**{"asynchronous": True, "token": "anon", "session_kwargs": session, **options})
    return FsspecStore(files, read_only=True, path=GCSFileSystem._strip_protocol(url))


def open_raw(store: PatientStore) -> xr.Dataset:
    """The store's arrays as they are: lazy, not yet dask, dates decoded, lead times not. Raises InputError if xarray cannot."""
    try:
        return xr.open_dataset(
            store,  # type: ignore[arg-type]  # xarray takes any zarr store
            engine="zarr", chunks=None, cache=False, decode_timedelta=False,
            consolidated=store.consolidated, zarr_format=store.zarr_format,
        )  # fmt: skip
    except PlumecastError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{store.url} cannot be opened as zarr: {error}") from None


def fingerprint(store: PatientStore) -> str:
    """SHA-256 of what the metadata say of the arrays, without what moves with every day that is added: the attributes of the
    store itself, and the length of its time axis."""
    fixed = [key for key in store.documents if key.partition("/")[0] not in (".zattrs", ".zgroup", *_STAMP_NAMES)]
    documents = {key: _without_time(key, store.documents) for key in fixed}
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()


def public(url: str) -> str:
    """An address without user name, password and query; of a folder its name, so that a moved one stays the same source."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return Path(parts.path if parts.scheme else url).name
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _read_metadata(store: PatientStore) -> None:
    root, marker = next(((found, key) for key in ROOTS if (found := _json(store, key)) is not None), (None, ""))
    if root is None:
        raise InputError(f"{store.url} holds no zarr store that may be read (no {', '.join(ROOTS)}); check the address")
    store.zarr_format = 3 if marker == "zarr.json" else 2
    inside = root.get("consolidated_metadata") if store.zarr_format == 3 else root
    if inside and "metadata" in inside:
        store.consolidated, store.documents = True, inside["metadata"]
    elif urlsplit(store.url).scheme in ("http", "https"):
        raise InputError(f"{store.url} has no consolidated metadata, and its fields cannot be listed over http; consolidate it")
    else:
        store.documents = _listed(store)
    store.packed = frozenset(key.removesuffix("/.zarray") for key, content in store.documents.items() if _is_blosc(content))


def _json(store: PatientStore, key: str) -> Any:
    value = sync(store.get(key, default_buffer_prototype()))
    try:
        return None if value is None else json.loads(value.to_bytes())
    except ValueError as error:
        raise InputError(f"{store.url}: {key} is no JSON ({error}); is this a zarr store?") from None


def _listed(store: PatientStore) -> dict[str, Any]:
    async def names() -> list[str]:
        return sorted([name.rstrip("/") async for name in store.list_dir("")])

    endings = {"": "/zarr.json"} if store.zarr_format == 3 else {"/.zarray": "/.zarray", "/.zattrs": "/.zattrs"}
    keys = [(name + key, name + file) for name in sync(names()) if "." not in name for key, file in endings.items()]
    return {key: found for key, file in keys if (found := _json(store, file)) is not None}


def _is_blosc(document: Mapping[str, Any]) -> bool:
    last = (document.get("codecs") or [{}])[-1]
    return (document.get("compressor") or {}).get("id") == "blosc" or last.get("name") == "blosc"


def _without_time(key: str, documents: Mapping[str, Any]) -> Any:
    content = documents[key]
    if "shape" not in content:
        return content
    attributes = documents.get(key.removesuffix("/.zarray") + "/.zattrs", {})
    dims = content.get("dimension_names") or attributes.get("_ARRAY_DIMENSIONS") or []
    pairs = zip(dims, content["shape"], strict=False)
    return {**content, "shape": [None if dim in _STAMP_NAMES else length for dim, length in pairs]}


def _may_pass(error: Exception) -> bool:
    if isinstance(error, PlumecastError | FileNotFoundError):
        return False
    status = _status(error)
    if status:
        return status >= 500 or status in _PASSING
    if isinstance(error, _LASTING):
        return False
    return isinstance(error, OSError | TimeoutError | EOFError) or type(error).__module__.partition(".")[0] in _CLIENTS


def _status(error: Exception) -> int:
    """Of an HTTP answer, 0 if it is something else."""
    if isinstance(error, PermissionError):
        return 403
    status = str(getattr(error, "status", None) or getattr(error, "code", None) or "")
    return int(status) if status.isdigit() else 0


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")[:300]
