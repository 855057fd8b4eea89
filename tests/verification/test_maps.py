"""Maps draw anywhere, offline, and put things where they are."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import time

import cartopy.crs as ccrs
import cartopy.io
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.image import imread

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification import canvas, maps, naturalearth
from verification import pixels as on_pixels
from verification.styles import readable_units, style_of

PLANET = Grid.named("64x32")
POLES = Grid.named("72x37")
EUROPE = Grid(np.arange(30.0, 61.6, 1.5), np.arange(-20.0, 15.0, 1.5))
PACIFIC = Grid(np.arange(-20.0, 21.0, 2.0), np.arange(160.0, 221.0, 2.0))


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a map asked for a download")

    monkeypatch.setattr(cartopy.io.Downloader, "path", refuse)
    monkeypatch.setattr(cartopy.io.Downloader, "acquire_resource", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def blob(grid: Grid, longitude: float, latitude: float, width: float = 12.0) -> xr.DataArray:
    """A bump of 1 on 0 by great-circle distance, named as wind so that display units are SI."""
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)[None, :]
    lat0, lon0 = np.deg2rad(latitude), np.deg2rad(longitude)
    cosine = np.sin(lat) * np.sin(lat0) + np.cos(lat) * np.cos(lat0) * np.cos(lon - lon0)
    distance = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    return xr.DataArray(
        np.exp(-((distance / width) ** 2)), coords=grid.coords(), dims=("latitude", "longitude"), name="wind_speed"
    )


def ensemble(grid: Grid, members: int = 6) -> xr.DataArray:
    drift = [blob(grid, 5 + 2 * k, 45) * (1 + 0.05 * k) for k in range(members)]
    return xr.concat(drift, dim="number").assign_coords(number=np.arange(members)).rename("wind_speed")


def pixels(figure: Figure) -> np.ndarray:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    stream.seek(0)
    return imread(stream)[..., :3]


def test_packaged_outlines_are_the_ones_with_the_recorded_checksums() -> None:
    recorded = [line.split() for line in (naturalearth.FOLDER / "SHA256SUMS").read_text().splitlines()]
    assert sorted(name for _, name in recorded) == ["ne_110m.npz", "ne_50m.npz"]
    for checksum, name in recorded:
        assert hashlib.sha256((naturalearth.FOLDER / name).read_bytes()).hexdigest() == checksum
    assert sum((naturalearth.FOLDER / name).stat().st_size for _, name in recorded) < 1_000_000


@pytest.mark.parametrize("resolution", ["110m", "50m"])
def test_outlines_stay_on_the_sphere_and_never_jump(resolution: naturalearth.Resolution) -> None:
    for feature in ("coast", "borders"):
        points = naturalearth.lines(resolution, feature)
        assert np.nanmin(points[:, 0]) >= -180
        assert np.nanmax(points[:, 0]) <= 180
        assert np.nanmin(points[:, 1]) > -89.9
        assert np.nanmax(points[:, 1]) < 90
        assert np.nanmax(np.abs(np.diff(points, axis=0))) < 10


@pytest.mark.parametrize(("longitude", "latitude"), [(-9.5, 38.7), (18.5, -34.3), (-5.6, 36.0), (-67.3, -55.9)])
def test_known_capes_lie_on_the_50m_coast(longitude: float, latitude: float) -> None:
    distance = np.hypot(*(naturalearth.lines("50m") - [longitude, latitude]).T)
    assert np.nanmin(distance) < 0.15


def test_an_unpackaged_resolution_is_refused() -> None:
    with pytest.raises(InputError, match=r"10m.*110m"):
        naturalearth.lines("10m")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "projection",
    [
        None,
        ccrs.PlateCarree(180),
        ccrs.Robinson(),
        ccrs.Robinson(150),
        ccrs.Mollweide(),
        ccrs.Orthographic(10, 60),
        ccrs.NorthPolarStereo(),
    ],
    ids=["default", "pacific", "robinson", "robinson150", "mollweide", "orthographic", "polar"],
)
def test_a_global_field_fills_every_projection(projection: ccrs.Projection | None) -> None:
    field = blob(PLANET, 0, 0) * 0 + 7.5
    shading = maps.Shading((7.0, 8.0), "Greens", "constant")
    image = pixels(maps.plot_field(field, projection=projection, shading=shading, width=4))
    grey = np.isclose(image, int(canvas.MISSING[1:3], 16) / 255, atol=2 / 255).all(axis=-1)
    assert grey.mean() < 1e-3  # no seam, no hole at a pole: missing data would be grey


@pytest.mark.parametrize("grid", [EUROPE, PACIFIC], ids=["europe", "dateline"])
def test_a_regional_field_fills_its_map(grid: Grid) -> None:
    field = xr.DataArray(np.full(grid.shape, 7.5), coords=grid.coords(), dims=("latitude", "longitude"), name="wind_speed")
    image = pixels(maps.plot_field(field, shading=maps.Shading((7.0, 8.0), "Greens", "constant"), width=4))
    grey = np.isclose(image, int(canvas.MISSING[1:3], 16) / 255, atol=2 / 255).all(axis=-1)
    assert grey.mean() < 1e-3


@pytest.mark.parametrize("grid", [PLANET, POLES], ids=["cells", "pole rows"])
@pytest.mark.parametrize("place", [(0, 0), (180, 0), (359, 30), (90, 89), (45, -89)])
@pytest.mark.parametrize("projection", [ccrs.PlateCarree(), ccrs.Robinson(120)], ids=["platecarree", "robinson"])
def test_a_bump_lands_where_it_is(grid: Grid, place: tuple[float, float], projection: ccrs.Projection) -> None:
    page = canvas.canvas(grid, projection=projection)
    x, y, values = page.pixels.x, page.pixels.y, page.pixels.values(blob(grid, *place))
    inside = np.isfinite(ccrs.PlateCarree().transform_points(projection, *np.meshgrid(x, y))[..., 0])
    row, column = np.unravel_index(np.nanargmax(np.where(inside, values, -1)), values.shape)
    longitude, latitude = ccrs.PlateCarree().transform_point(x[column], y[row], projection)
    assert abs(latitude - place[1]) <= 6
    if abs(place[1]) < 80:
        assert abs((longitude - place[0] + 180) % 360 - 180) <= 6


def test_interpolation_is_exact_at_the_points_and_over_the_seam() -> None:
    field = blob(PLANET, 0, 10)
    longitude, latitude = np.meshgrid(PLANET.longitude, PLANET.latitude)
    np.testing.assert_allclose(on_pixels.sample(field, longitude, latitude), field.values, atol=1e-12)
    between = on_pixels.sample(field, np.array([357.1875, -2.8125]), np.array([PLANET.latitude[16]] * 2))
    expected = (field.values[16, 0] + field.values[16, -1]) / 2
    np.testing.assert_allclose(between, expected, atol=1e-12)


def test_missing_values_and_places_outside_the_grid_stay_missing() -> None:
    field = blob(EUROPE, 0, 45)
    field[5, 5] = np.nan
    at_hole = on_pixels.sample(field, np.array([EUROPE.longitude[5]]), np.array([EUROPE.latitude[5]]))
    outside = on_pixels.sample(field, np.array([60.0, 0.0]), np.array([45.0, 70.0]))
    assert np.isnan(at_hole).all()
    assert np.isnan(outside).all()


def test_lines_are_broken_where_a_projection_tears_them() -> None:
    projection = ccrs.PlateCarree(180)
    points = canvas.project(projection, np.array([[-10.0, 0.0], [10.0, 0.0], [np.nan, np.nan], [20.0, 0.0], [30.0, 0.0]]))
    drawn = points[~np.isnan(points[:, 0])]
    assert len(drawn) == 4
    assert np.nanmax(np.abs(np.diff(points[:, 0]))) < 100


def test_ensemble_stamps_and_probability_maps_are_figures() -> None:
    forecast, truth = ensemble(PLANET), blob(PLANET, 8, 45)
    for figure in (
        maps.plot_ensemble(forecast, projection=ccrs.Robinson(), width=4),
        maps.plot_stamps(forecast, truth, title="day 5"),
        maps.plot_probability(forecast, threshold=0.5, truth=truth, width=4),
        maps.plot_stamps(ensemble(EUROPE, 3), members=(0, 1)),
    ):
        assert isinstance(figure, Figure)
        assert pixels(figure).std() > 0.05


def test_probability_counts_members_and_keeps_missing_ones_missing() -> None:
    forecast = ensemble(PLANET, 4)
    forecast[1, 0, 0] = np.nan
    share = maps.probability(forecast, 0.5)
    np.testing.assert_allclose(share.values[20], (forecast.values[:, 20] > 0.5).mean(axis=0))
    assert np.isnan(share.values[0, 0])
    assert np.isfinite(share.values).sum() == share.size - 1
    np.testing.assert_allclose((share + maps.probability(forecast, 0.5, below=True)).values[1:], 1.0)


def test_faults_are_said_plainly() -> None:
    with pytest.raises(InputError, match=r"dims.*number"):
        maps.plot_field(ensemble(PLANET))
    with pytest.raises(InputError, match="one member"):
        maps.plot_ensemble(ensemble(PLANET, 1))
    with pytest.raises(InputError, match="variable="):
        maps.plot_field(blob(PLANET, 0, 0).rename(None))
    with pytest.raises(InputError, match="extent"):
        maps.plot_field(blob(PLANET, 0, 0), extent=(10, -10, 0, 5))


def test_display_units_and_labels_are_a_forecasters() -> None:
    assert style_of("geopotential_500").label == "z500"
    assert style_of("2m_temperature").units == "°C"
    assert style_of("2m_temperature").difference_units == "K"
    assert style_of("total_precipitation_12hr").label == "tp 12 h"
    assert style_of("my_index", "m2 s-2") == type(style_of("my_index"))("my index", "my index", "m² s⁻²")
    assert readable_units("1e-5 s-1") == "10⁻⁵ s⁻¹"


def test_a_platecarree_map_at_one_and_a_half_degrees_takes_under_half_a_second() -> None:
    field = blob(Grid.named("240x121"), 20, 40)
    took = []
    for _ in range(3):
        start = time.process_time()
        pixels(maps.plot_field(field))
        took.append(time.process_time() - start)
    assert min(took) < 0.5


@pytest.mark.campaign
def test_maps_survive_the_other_proj_that_eccodes_brings() -> None:
    lines = [
        "import xarray; from data_pipeline.grid import Grid; from verification import maps",
        "xarray.backends.list_engines(); import eccodes",
        "grid = Grid.named('16x8')",
        "field = xarray.DataArray(grid.areas, coords=grid.coords(), dims=('latitude', 'longitude'), name='wind_speed')",
        "maps.plot_field(field).savefig('/dev/null', format='png')",
    ]
    command = [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
