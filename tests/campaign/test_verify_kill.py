"""A verification killed at any moment: there is no state or the whole one; run again, it has the same bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from data_pipeline import climatology, store
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from data_pipeline.store import write_dataset
from tests.children import contents, start
from tests.toys import weather
from verification.state import is_state, open_state

pytestmark = pytest.mark.campaign

KILLS = 60 if os.environ.get("PLUMECAST_FULL") else 10
GRID = Grid.named("64x32")
CHANNELS = ("geopotential_500", "2m_temperature", "total_precipitation_12hr")

# Compiled kernels are loaded before the process says that it begins, so that the kill falls into the work.
CHILD = """
import sys
from pathlib import Path
import numpy
from verification import evaluate, onepass
onepass._first_call(numpy.dtype("float32"))
evaluate.PART_BYTES = 1  # an initialisation is a part
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
climatology = folder / "climatology.zarr"
evaluate.score_store(folder / "model.zarr", folder / "analysis.zarr", out, climatology_path=climatology, radii=[900.0])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forecast of 12 initialisations, its truth and a climatology with quantiles."""
    path = tmp_path_factory.mktemp("verify")
    truth = weather(GRID, 740)
    channels = [Channel.parse(label) for label in CHANNELS]
    climate = climatology.compute(truth, channels, ("2001-01-01", "2002-01-05"), quantiles=(0.05, 0.95))
    rng = np.random.default_rng(0)
    leads = np.timedelta64(12, "h").astype("timedelta64[ns]") * np.arange(1, 11)
    times = truth["time"].values[10:34:2]
    valid = xr.DataArray(times[:, None] + leads, dims=("time", "prediction_timedelta"))
    names = [channel.name for channel in channels]
    data = truth[names].sel(time=valid).drop_vars("time").assign_coords(time=times, prediction_timedelta=leads)
    data = data.expand_dims(number=np.arange(16)).transpose("time", "prediction_timedelta", "number", "level", ...)
    noisy = data.map(
        lambda field: field + (0.3 * float(field.std()) * rng.normal(size=field.shape)).astype("float32"), keep_attrs=True
    )
    write_dataset(path / "model.zarr", noisy.assign_attrs(model="noisy"), chunks={"time": 1})
    write_dataset(path / "analysis.zarr", truth)
    write_dataset(path / "climatology.zarr", climate)
    return path


def test_killed_at_random_moments_and_resumed_it_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    with start(CHILD, str(folder), str(tmp_path / "whole.scores.zarr")) as child:
        began = time.monotonic()
        assert child.wait() == 0
        seconds = time.monotonic() - began
    reference = contents(tmp_path / "whole.scores.zarr")
    assert {"event_table", "fss_numerator", "anomaly_product"} <= set(open_state(tmp_path / "whole.scores.zarr").data_vars)
    draws = np.random.default_rng(int(os.environ.get("PLUMECAST_SEED", "1")))
    kept = []
    for number in range(KILLS):
        out = tmp_path / f"killed_{number}.scores.zarr"
        with start(CHILD, str(folder), str(out)) as child:
            time.sleep(draws.uniform(0, seconds))
            child.kill()
        assert not out.exists() or is_state(out)
        kept.append(len(list(out.with_name(out.name + ".parts").glob("*/*.npz"))))
        with start(CHILD, str(folder), str(out)) as child:
            assert child.wait() == 0
        assert contents(out) == reference
        assert not out.with_name(out.name + ".parts").exists()
        assert not store.partial_path(out).exists()
    print(f"{KILLS} kills within {seconds:.1f} s left {kept} of 12 parts")
    assert any(0 < parts < 12 for parts in kept)
