"""Fields with a known shape, ensembles of them, and the pixels of figures, which the tests of maps share."""

from __future__ import annotations

import io

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from data_pipeline.grid import Grid

PLANET = Grid.named("64x32")
POLES = Grid.named("72x37")
EUROPE = Grid(np.arange(30.0, 61.6, 1.5), np.arange(-20.0, 15.0, 1.5))
PACIFIC = Grid(np.arange(-20.0, 21.0, 2.0), np.arange(160.0, 221.0, 2.0))
START = np.datetime64("2007-01-16T00", "ns")
HOURS = np.arange(12, 84, 12)


def blob(grid: Grid, longitude: float, latitude: float, width: float = 12.0) -> xr.DataArray:
    """A bump of 1 on 0 by great-circle distance, named as wind so that display units are SI."""
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)[None, :]
    lat0, lon0 = np.deg2rad(latitude), np.deg2rad(longitude)
    cosine = np.sin(lat) * np.sin(lat0) + np.cos(lat) * np.cos(lat0) * np.cos(lon - lon0)
    distance = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    return xr.DataArray(
        np.exp(-((distance / width) ** 2)), coords=grid.coords(), dims=("latitude", "longitude"), name="wind_speed",
        attrs={"units": "m s-1"},
    )  # fmt: skip


def ensemble(grid: Grid, members: int = 6) -> xr.DataArray:
    """Bumps that drift eastward member by member, five days after the start."""
    drift = [blob(grid, 5 + 2 * k, 45) * (1 + 0.05 * k) for k in range(members)]
    dated = xr.concat(drift, dim="number", coords="minimal", compat="override").assign_coords(number=np.arange(members))
    return dated.rename("wind_speed").assign_coords(time=START, prediction_timedelta=np.timedelta64(5, "D"))


def point_ensemble(members: int = 9, seed: int = 0) -> xr.Dataset:
    """2 m temperature (K) and precipitation (m in 12 h) of members at Bergen, by lead."""
    rng = np.random.default_rng(seed)
    shape = (HOURS.size, members)
    coords = {
        "prediction_timedelta": HOURS * np.timedelta64(1, "h").astype("timedelta64[ns]"), "number": np.arange(members),
        "time": START, "point": "Bergen", "latitude": 60.39, "longitude": 5.32,
    }  # fmt: skip
    fields = {
        "2m_temperature": (275 + rng.normal(0, 3, shape), "K"),
        "total_precipitation_12hr": (np.maximum(rng.normal(0.001, 0.002, shape), 0), "m"),
    }
    dims = ("prediction_timedelta", "number")
    return xr.Dataset({name: (dims, values, {"units": units}) for name, (values, units) in fields.items()}, coords)


def pixels(figure: Figure, dpi: float | None = None) -> np.ndarray:
    """Red, green and blue (row, column, 3), 0 to 1, of the figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi or figure.dpi)
    stream.seek(0)
    return np.asarray(imread(stream)[..., :3], dtype=np.float64)


def texts(figure: Figure) -> str:
    """All that is written on a figure, line by line."""
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text())
