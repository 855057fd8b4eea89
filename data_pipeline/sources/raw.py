"""One path as it is: NetCDF (classic and 4), GRIB, zarr (2 and 3), and zip archives of these, opened lazily, one at a time."""

from __future__ import annotations

import atexit
import lzma
import shutil
import tempfile
import threading
import warnings
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath

import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.sources.grib import open_grib

SUFFIXES = (".nc", ".nc4", ".cdf", ".netcdf", ".grib", ".grib1", ".grib2", ".grb", ".grb2", ".zarr", ".zip")
UNPACKED_BYTES = 100 * 2**30  # of one archive: two years of hourly global fields at 0.25 degrees
UNPACKED_RATIO = 200  # more is no weather: packed fields hardly shrink
UNPACKED_FILES = 1000
_NETCDF = (b"CDF", b"\x89HDF")
# netCDF4 and HDF5 are not thread-safe: opening in two threads at once crashed 5 of 6 processes.
_OPENING = threading.RLock()


def open_raw(path: Path) -> list[tuple[str, xr.Dataset]]:
    """(name, dataset) of everything in a file or store, as xarray reads it, lazily; leads stay numbers with units.

    A zip archive is unpacked to a folder that lives as long as the process. Raises InputError for what cannot be opened.
    """
    with _OPENING, warnings.catch_warnings():
        # dates before 1582: refused later, by name
        warnings.filterwarnings("ignore", category=xr.SerializationWarning, message="Unable to decode time axis")
        try:
            return _opened(path)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            if "decode time" in str(error):
                raise InputError(
                    f"{path}: {error}; expected hours, days or seconds since a date, on the standard calendar"
                ) from None
            raise InputError(f"{path} cannot be opened: {error}. The file may be cut; get it again") from None


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata"))


def _opened(path: Path) -> list[tuple[str, xr.Dataset]]:
    if is_zarr(path):
        return [(path.name, xr.open_zarr(path, chunks={}, decode_timedelta=False, consolidated=_is_consolidated(path)))]
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a zarr store; give its files, or the folder with a pattern")
    magic = _first_bytes(path)
    if magic.startswith(_NETCDF):
        data = xr.open_dataset(path, engine="netcdf4", chunks=None, cache=False, decode_timedelta=False)
        return [(path.name, data)]
    if magic.startswith(b"PK"):
        return [opened for member in _unpacked(path, path.stat().st_mtime_ns) for opened in _opened(member)]
    return [(path.name, data) for data in open_grib(path)]


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _is_consolidated(path: Path) -> bool:
    group = path / "zarr.json"
    return '"consolidated_metadata"' in group.read_text() if group.exists() else (path / ".zmetadata").exists()


@lru_cache(maxsize=32)
def _unpacked(path: Path, stamp: int) -> list[Path]:  # noqa: ARG001  another stamp is another archive
    """The files of an archive (the Climate Data Store packs one a step type), under names of our own."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_archive(path, members)
            folder = Path(tempfile.mkdtemp(prefix="plumecast-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            files = [_copied(archive, member, folder / str(i)) for i, member in enumerate(members)]
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise InputError(f"{path} is a damaged zip archive: {error}; get it again") from None
    found = [file for file in files if _first_bytes(file).startswith((*_NETCDF, b"GRIB"))]
    if not found:
        raise InputError(
            f"{path} is a zip archive without NetCDF or GRIB; it holds {', '.join(file.name for file in files) or 'nothing'}"
        )
    return found


def _check_archive(path: Path, members: list[zipfile.ZipInfo]) -> None:
    size, packed = sum(member.file_size for member in members), sum(member.compress_size for member in members)
    limit = min(UNPACKED_BYTES, shutil.disk_usage(tempfile.gettempdir()).free)
    if size > limit or len(members) > UNPACKED_FILES or size > UNPACKED_RATIO * max(packed, 2**20):
        raise InputError(
            f"{path} would unpack {packed / 2**20:.0f} MB to {size / 2**20:.0f} MB in {len(members)} files, more than the "
            f"{limit / 2**20:.0f} MB there is room for here or than weather is packed by; unpack it yourself and give the files"
        )
    if any(member.flag_bits & 1 for member in members):
        raise InputError(f"{path} is an encrypted zip archive; unpack it yourself and give the files")


def _copied(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> Path:
    """The member in a folder of its own, by the last part of its name only: the archive cannot choose where it lands."""
    name = PurePosixPath(member.filename.replace("\\", "/")).name
    folder.mkdir()
    target = folder / (name if name not in ("", ".", "..") else "file")
    with archive.open(member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, 2**20)
    return target
