"""Fields read past xarray: those of the store to the bit, and never those of a store that the dataset only resembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import open_analysis, store
from data_pipeline.direct import reader, stored_arrays
from data_pipeline.errors import InputError
from data_pipeline.memory import Buffers
from data_pipeline.reading import Fields
from data_pipeline.schema import Channel, channels_of, stack
from data_pipeline.statistics import to_model_space
from tests.toys import period, weather

NAMES = ["geopotential", "2m_temperature", "total_precipitation_12hr"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 40 stamps in chunks of 7, of variables with different levels."""
    data = weather(steps=40)
    wind = weather(steps=40, seed=1)["geopotential"].isel(level=0, drop=True) / 1e3
    pair = xr.concat([wind, wind * np.nan], xr.Variable("level", [300, 500])).transpose("time", "level", ...).astype("float32")
    wide = data.reindex(level=[300, 500])
    wide["geopotential"].attrs["levels_available"] = [500]
    wide["u_component_of_wind"] = pair.assign_attrs(units="m s-1", levels_available=[300])
    return store.write_dataset(tmp_path_factory.mktemp("reading") / "analysis.zarr", wide, chunks={"time": 7})


def moments(channels: list[Channel]) -> xr.Dataset:
    rng = np.random.default_rng(4)
    numbers = {"mean": rng.normal(0, 100, len(channels)), "std": rng.uniform(0.5, 900, len(channels))}
    return xr.Dataset({name: ("channel", values) for name, values in numbers.items()})


def everything(fields: Fields) -> np.ndarray:
    out = np.empty(fields.shape, np.float32)
    for block in range(fields.edges.size - 1):
        fields.read(block, out[fields.edges[block] : fields.edges[block + 1]])
    return out


def in_float64(data: xr.Dataset, channels: list[Channel]) -> np.ndarray:
    given = moments(channels)
    raw = stack(data, channels).transpose("time", "channel", ...).values.astype("float64")
    columns = [(to_model_space(raw[:, i], channel) - float(given["mean"][i])) / float(given["std"][i])
               for i, channel in enumerate(channels)]  # fmt: skip
    return np.stack(columns, 1).astype("float32")


@pytest.mark.parametrize(("first", "last"), [(0, 39), (3, 30), (14, 14)])
def test_a_store_is_read_from_its_files_as_xarray_reads_it(path: Path, first: int, last: int) -> None:
    data = open_analysis(path)
    channels = channels_of(data)
    assert [str(channel) for channel in channels][-1] == "u_component_of_wind_300"
    direct = Fields(data, channels[::-1], moments(channels[::-1]), period(data, first, last))
    plain = Fields(data.load().copy(), channels[::-1], moments(channels[::-1]), period(data, first, last))
    assert direct.direct
    assert not plain.direct
    np.testing.assert_array_equal(everything(direct), everything(plain))
    np.testing.assert_array_equal(everything(direct), in_float64(data, channels[::-1])[first : last + 1])


def test_a_run_of_stamps_of_a_store_is_still_that_store(path: Path) -> None:
    data = open_analysis(path).isel(time=slice(5, 33))
    found = stored_arrays(data, NAMES)
    assert found is not None
    assert found[1] == 5
    channels = channels_of(data)
    fields = Fields(data, channels, moments(channels), period(data))
    assert fields.direct
    assert fields.edges.tolist() == [0, 2, 9, 16, 23, 28]
    np.testing.assert_array_equal(everything(fields), in_float64(data, channels))


CHANGES = {
    "values changed": lambda data: data.assign({"2m_temperature": data["2m_temperature"] + 1}),
    "one value changed": lambda data: data.assign(
        {"2m_temperature": data["2m_temperature"].where(data["time"] != data["time"][9], 3)}
    ),
    "values put into the variable": lambda data: put(data),
    "later stamps": lambda data: data.isel(time=slice(1, None)).assign_coords(time=data["time"].values[:-1]),
    "unknown stamps": lambda data: data.assign_coords(time=data["time"] + np.timedelta64(1, "h")),
    "every other stamp": lambda data: data.isel(time=slice(None, None, 2)),
    "a hole": lambda data: data.isel(time=[0, 1, 2, 4, 5]),
    "part of the grid": lambda data: data.isel(latitude=slice(2, 6)),
    "a grid that is shifted": lambda data: data.assign_coords(longitude=data["longitude"] + 1),
    "in memory": lambda data: data.load(),
}


def put(data: xr.Dataset) -> xr.Dataset:
    changed = data.copy()
    changed["2m_temperature"].data = changed["2m_temperature"].data[::-1]
    return changed


@pytest.mark.parametrize("change", CHANGES)
def test_what_only_resembles_the_store_is_read_as_it_is(path: Path, change: str) -> None:
    data = CHANGES[change](open_analysis(path))
    assert stored_arrays(data, NAMES) is None
    channels = channels_of(data)
    fields = Fields(data, channels, moments(channels), period(data))
    np.testing.assert_array_equal(everything(fields), in_float64(data, channels))


@given(st.data())
def test_any_run_of_chunks_decodes_as_zarr_decodes_it(path: Path, data: st.DataObject) -> None:
    array = zarr.open_group(path, mode="r")[data.draw(st.sampled_from(NAMES))]
    assert isinstance(array, zarr.Array)
    first = data.draw(st.integers(0, 39))
    stop = data.draw(st.integers(first + 1, 40))
    np.testing.assert_array_equal(reader(array, Buffers(1))(first, stop), array[first:stop])


@pytest.mark.parametrize("other", [{"chunks": (7, 4, 16)}, {"dtype": "float64"}, {"compressors": None}, {"shards": (14, 8, 16)}])
def test_arrays_laid_out_in_another_way_are_left_to_zarr(tmp_path: Path, other: dict[str, Any]) -> None:
    values = np.random.default_rng(0).normal(size=(40, 8, 16))
    options: dict[str, Any] = {"shape": values.shape, "chunks": (7, 8, 16), "dtype": "float32"} | other
    array = zarr.create_array(tmp_path / "a.zarr", **options)
    array[:] = values
    np.testing.assert_array_equal(reader(array, Buffers(1))(5, 23), values[5:23].astype("float32"))


def test_a_damaged_chunk_is_refused_and_a_lost_one_reads_as_missing(tmp_path: Path) -> None:
    data = weather(steps=40)
    path = store.write_dataset(tmp_path / "a.zarr", data, chunks={"time": 7})
    channels = channels_of(data)
    fields = Fields(open_analysis(path), channels, moments(channels), period(data))
    out = np.empty((7, *fields.shape[1:]), np.float32)
    file = path / "2m_temperature" / "c" / "3" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[40] ^= 4
    file.write_bytes(content)
    fields.read(2, out)
    with pytest.raises(InputError, match=r"2m_temperature/c/3/0/0 is damaged: its checksum differs from the one written"):
        fields.read(3, out)
    file.write_bytes(content[:2])
    with pytest.raises(InputError, match="is damaged"):
        fields.read(3, out)
    file.unlink()
    with pytest.raises(InputError, match="2m_temperature at 2001-01-11T12: 128 of 128 values are missing"):
        fields.read(3, out)


def test_a_damaged_chunk_is_refused_also_where_others_read_it(tmp_path: Path) -> None:
    data = weather(steps=40)
    path = store.write_dataset(tmp_path / "a.zarr", data, chunks={"time": 7})
    channels, found = channels_of(data), open_analysis(path)
    moved = Fields(found.assign_coords(time=found["time"] + np.timedelta64(1, "h")), channels, moments(channels), period(data))
    assert not moved.direct
    file = path / "2m_temperature" / "c" / "0" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"2m_temperature, stamps 0 to \d+ of the period cannot be read"):
        moved.read(0, np.empty((int(moved.edges[1]), *moved.shape[1:]), np.float32))
    with pytest.raises(InputError, match=r"a\.zarr, 2m_temperature at 2001-01-01T00 cannot be read"):
        Fields(open_analysis(path), channels, moments(channels), period(data))


def test_channels_that_are_not_there_are_named(path: Path) -> None:
    data = open_analysis(path)
    channels = [Channel("u_component_of_wind", 500)]
    with pytest.raises(InputError, match=r"u_component_of_wind has levels \[300\] hPa; 500 is not there"):
        Fields(data, channels, moments(channels), period(data))
    with pytest.raises(InputError, match="the statistics are of 1 channels; the samples have 4"):
        Fields(data, channels_of(data)[:4], moments(channels), period(data))


def test_lent_memory_comes_back_when_the_last_view_is_gone() -> None:
    buffers = Buffers(2)
    first = buffers.lend((4, 3))
    view, place = first[1:][:, 2], first.ctypes.data
    del first
    view[:] = 7
    other = buffers.lend((3, 4))
    assert other.ctypes.data != place
    other[:] = 0
    assert (view == 7).all()
    del view
    assert buffers.lend((12,)).ctypes.data == place
    assert buffers.lend((2, 0)).shape == (2, 0)
