"""Maps draw anywhere, offline, and put things where they are."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cartopy.crs as ccrs
import cartopy.io
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from data_pipeline import open_forecast
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.sources.files import open_static
from tests.verification.pictures import EUROPE, PACIFIC, PLANET, POLES, START, blob, ensemble, pixels, texts
from verification import canvas, maps, naturalearth
from verification import pixels as on_pixels

GREEN = maps.Shading((7.0, 8.0), "Greens", "constant")
PROJECTIONS = {
    "platecarree": ccrs.PlateCarree(),
    "pacific": ccrs.PlateCarree(180),
    "robinson": ccrs.Robinson(),
    "robinson150": ccrs.Robinson(150),
    "mollweide": ccrs.Mollweide(),
    "orthographic": ccrs.Orthographic(10, 60),
    "north": ccrs.NorthPolarStereo(),
    "south": ccrs.SouthPolarStereo(30),
}


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a map asked for a download")

    monkeypatch.setattr(cartopy.io.Downloader, "path", refuse)
    monkeypatch.setattr(cartopy.io.Downloader, "acquire_resource", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def constant(grid: Grid) -> xr.DataArray:
    return xr.DataArray(np.full(grid.shape, 7.5), coords=grid.coords(), dims=("latitude", "longitude"), name="wind_speed")


def grey_share(image: np.ndarray) -> float:
    return float(np.isclose(image, int(canvas.MISSING[1:3], 16) / 255, atol=2 / 255).all(axis=-1).mean())


def map_pixels(figure: Figure) -> tuple[np.ndarray, Any]:
    """The pixels of the first map alone, top row first, and the map."""
    image, ax = pixels(figure), figure.axes[0]
    box = ax.get_window_extent()
    height = image.shape[0]
    inside = image[round(height - box.y1) : round(height - box.y0), round(box.x0) : round(box.x1)]
    return inside, ax


def place_of(ax: Any, row: float, column: float, shape: tuple[int, ...]) -> tuple[float, float]:
    """Longitude and latitude of a pixel of a map."""
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    x, y = x0 + (column + 0.5) / shape[1] * (x1 - x0), y1 - (row + 0.5) / shape[0] * (y1 - y0)
    longitude, latitude = ccrs.PlateCarree().transform_point(x, y, ax.projection)
    return longitude, latitude


def apart(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Degrees of a great circle between two places (longitude, latitude)."""
    (lon, lat), (lon0, lat0) = np.deg2rad(a), np.deg2rad(b)
    cosine = np.sin(lat) * np.sin(lat0) + np.cos(lat) * np.cos(lat0) * np.cos(lon - lon0)
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


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


def test_coastlines_run_where_the_land_sea_mask_says() -> None:
    from data_pipeline import sample

    mask = open_static(sample.__path__[0] + "/planet_static.nc")["land_sea_mask"]
    land = mask.values
    coast = naturalearth.lines("110m")
    coast = coast[np.isfinite(coast[:, 0])]
    row = np.rint((coast[:, 1] - mask["latitude"].values[0]) / np.diff(mask["latitude"].values).mean()).astype(int)
    column = np.rint(coast[:, 0] % 360 / 5.625).astype(int) % 64
    around = np.stack([land[np.clip(row + i, 0, 31), (column + j) % 64] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    mixed = (around.min(axis=0) < 0.5) & (around.max(axis=0) > 0.05)
    displaced = np.stack([land[np.clip(row + i, 0, 31), (column + 16 + j) % 64] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    assert ((displaced.min(axis=0) < 0.5) & (displaced.max(axis=0) > 0.05)).mean() < mixed.mean() - 0.2


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_global_field_fills_every_projection(name: str) -> None:
    image = pixels(maps.plot_field(constant(PLANET), projection=PROJECTIONS[name], shading=GREEN, width=3))
    assert grey_share(image) < 1e-3  # no seam, no hole at a pole: missing data would be grey


@pytest.mark.parametrize("grid", [EUROPE, PACIFIC], ids=["europe", "dateline"])
def test_a_regional_field_fills_its_map(grid: Grid) -> None:
    assert grey_share(pixels(maps.plot_field(constant(grid), shading=GREEN, width=3))) < 1e-3


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("platecarree", (0, 0)),
        ("platecarree", (180, 0)),
        ("platecarree", (0, 90)),
        ("pacific", (0, 20)),
        ("pacific", (180, 20)),
        ("robinson", (0, 45)),
        ("robinson", (180, -30)),
        ("robinson150", (0, 0)),
        ("orthographic", (0, 45)),
        ("orthographic", (0, 90)),
        ("north", (0, 60)),
        ("north", (180, 50)),
        ("north", (90, 90)),
        ("south", (180, -60)),
        ("south", (0, -90)),
    ],
)
@pytest.mark.parametrize("grid", [PLANET, POLES], ids=["cells", "pole rows"])
def test_a_bump_is_drawn_where_it_is(grid: Grid, name: str, place: tuple[float, float]) -> None:
    shading = maps.Shading((0.0, 0.9, 1.1), "Reds", "bump", "both")
    figure = maps.plot_field(blob(grid, *place, width=20), projection=PROJECTIONS[name], shading=shading, width=3, title="")
    image, ax = map_pixels(figure)
    red = (image[..., 0] - image[..., 2] > 0.5) & (image[..., 0] > 0.3)
    assert red.any()
    places = [place_of(ax, row, column, red.shape) for row, column in np.argwhere(red)]
    off = [apart(found, place) for found in places if np.isfinite(found).all()]
    assert np.median(off) < 8
    assert max(off) < 14  # the level 0.9 lies 6.5 degrees from the top of the bump, the grids have up to 5.6


def test_the_seam_cannot_be_seen() -> None:
    field = blob(PLANET, 0, 10, width=40) + blob(PLANET, 180, -20, width=50)
    for centre in (0, 180, 90):
        figure = maps.plot_field(
            field.rename("wind_speed"), projection=ccrs.PlateCarree(centre), width=6, title="", degrees=False,
            shading=maps.Shading(tuple(np.linspace(0, 1.2, 60)), "viridis", "bumps"),
        )  # fmt: skip
        image, ax = map_pixels(figure)
        (x0, x1) = ax.get_xlim()
        seam = round((((0 - centre + 180) % 360 - 180) - x0) / (x1 - x0) * image.shape[1])
        if 5 < seam < image.shape[1] - 5:
            steps = np.abs(np.diff(image.mean(axis=2), axis=1)).mean(axis=0)
            assert steps[seam - 3 : seam + 3].max() < 3 * np.median(steps) + 0.02
        edges = np.abs(image[:, 3] - image[:, -4]).mean()  # the two sides of the map are the same meridian
        assert edges < 0.03


def test_the_pole_has_one_value() -> None:
    field = blob(PLANET, 30, 70, width=40)
    at_pole = on_pixels.sample(field, np.linspace(-180, 180, 37), np.full(37, 90.0))
    assert np.ptp(at_pole) < 1e-12
    assert at_pole[0] == pytest.approx(float(field.values[-1].mean()))


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


def efi_of(grid: Grid) -> Figure:
    field = blob(grid, 0, 45).rename("2m_temperature_efi")
    return maps.plot_efi(field, field * 3 - 1, width=4)


def mean_and_spread(grid: Grid) -> Figure:
    members = ensemble(grid)
    return maps.plot_ensemble(members.mean("number", keep_attrs=True), members.std("number"), width=4)


FIGURES: dict[str, tuple[Callable[[Grid], Figure], list[str]]] = {
    "field": (lambda grid: maps.plot_field(ensemble(grid)[0], lines=[0.5], width=4), ["Wind speed", "(m s⁻¹)", "0.5"]),
    "ensemble": (lambda grid: maps.plot_ensemble(ensemble(grid), width=4), ["mean and spread, 6 members", "lines: spread"]),
    "mean and spread": (mean_and_spread, ["ensemble mean and spread", "(m s⁻¹)"]),
    "stamps": (lambda grid: maps.plot_stamps(ensemble(grid), blob(grid, 8, 45)), ["truth", "spread (m s⁻¹)", "member 5"]),
    "spaghetti": (
        lambda grid: maps.plot_spaghetti(ensemble(grid), [0.3, 0.7], blob(grid, 8, 45), width=4),
        ["contours of 6 members", "0.3 m s⁻¹", "0.7 m s⁻¹", "truth"],
    ),
    "probability": (
        lambda grid: maps.plot_probability(ensemble(grid), threshold=0.5, truth=blob(grid, 8, 45), width=4),
        ["Probability of wind speed > 0.5 m s⁻¹", "probability (%)", "95", "red line: truth"],
    ),
    "efi": (efi_of, ["Extreme forecast index of 2 m temperature", "lines: shift of tails", "−1"]),
}  # fmt: skip


@pytest.mark.parametrize("grid", [PLANET, EUROPE], ids=["global", "over 0 E"])
@pytest.mark.parametrize("kind", FIGURES)
def test_every_figure_says_what_it_shows_and_when(kind: str, grid: Grid) -> None:
    draw, words = FIGURES[kind]
    figure = draw(grid)
    assert isinstance(figure, Figure)
    image = pixels(figure, dpi=60)
    assert image.std() > 0.05
    written = texts(figure)
    assert [word for word in words if word not in written.replace("\n", " ") and word not in written] == []
    if kind != "efi":
        assert "from 2007-01-16 00 UTC, + 5 d, valid Sun 2007-01-21 00" in written.replace("\n", " ")


def test_no_text_overlaps_another_or_leaves_the_figure() -> None:
    long = "A title that is far too long for the width of a small figure and therefore has to be wrapped"
    for figure in (
        maps.plot_field(ensemble(PLANET)[0], title=long, width=3.6),
        maps.plot_stamps(ensemble(EUROPE), blob(EUROPE, 8, 45), title=long, width=3.6),
        maps.plot_spaghetti(ensemble(PLANET), [0.2, 0.4], width=7),
    ):
        pixels(figure)
        renderer = FigureCanvasAgg(figure).get_renderer()
        shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        boxes = [text.get_window_extent(renderer) for text in shown]
        height = figure.bbox.height
        assert all(box.y0 >= -1 and box.y1 <= height + 1 and box.x0 >= -1 and box.x1 <= figure.bbox.width + 1 for box in boxes)
        overlaps = [
            (a.get_text(), b.get_text())
            for i, (a, one) in enumerate(zip(shown, boxes, strict=True))
            for b, other in zip(shown[i + 1 :], boxes[i + 1 :], strict=True)
            if one.overlaps(other) and a.get_text() != b.get_text()
        ]
        assert overlaps == []


def test_an_empty_title_leaves_all_words_out_and_another_keeps_the_dates() -> None:
    assert "UTC" not in texts(maps.plot_field(ensemble(PLANET)[0], title="", width=3))
    own = texts(maps.plot_field(ensemble(PLANET)[0], title="Storm", width=6))
    assert "Storm" in own
    assert "valid Sun 2007-01-21 00 UTC" in own


def test_levels_are_of_what_the_map_shows() -> None:
    field = (blob(PLANET, 180, 0) * 100 + 1).rename("wind_speed")
    whole = maps.plot_field(field, width=3).axes[-1].get_xlim()
    europe = maps.plot_field(field, extent=(-20, 40, 30, 70), width=3).axes[-1].get_xlim()
    assert whole[1] > 40
    assert europe[1] < 2


def test_a_constant_field_has_levels_in_spite_of_rounding() -> None:
    for value in (0.0, 1.0, 101325.0):
        field = constant(PLANET) * 0 + value + value * 1e-15 * np.arange(64)
        assert pixels(maps.plot_field(field.rename("mean_sea_level_pressure"), width=3), dpi=60).std() > 0.05


def test_probability_counts_members_and_keeps_missing_ones_missing() -> None:
    forecast = ensemble(PLANET, 4)
    forecast[1, 0, 0] = np.nan
    share = maps.probability(forecast, 0.5)
    np.testing.assert_allclose(share.values[20], (forecast.values[:, 20] > 0.5).mean(axis=0))
    assert np.isnan(share.values[0, 0])
    assert np.isfinite(share.values).sum() == share.size - 1
    np.testing.assert_allclose((share + maps.probability(forecast, 0.5, below=True)).values[1:], 1.0)
    limit = xr.full_like(forecast[0], 0.5)
    limit[5, 5] = np.nan
    by_field = maps.probability(forecast, limit)
    assert np.isnan(by_field.values[5, 5])
    np.testing.assert_array_equal(by_field.values[20], share.values[20])


def test_a_stored_probability_is_titled_by_its_event() -> None:
    chance = blob(PLANET, 0, 45).rename("probability_x").assign_attrs(
        long_name="probability of 2m_temperature > 30 degC", ensemble_size=24
    )  # fmt: skip
    assert "Probability of 2 m temperature > 30 °C, 24 members" in texts(maps.plot_probability(chance, width=7))


def test_tracks_break_where_the_map_ends_and_shallow_lows_can_be_left_out() -> None:
    leads = np.arange(0, 60, 12) * np.timedelta64(1, "h").astype("timedelta64[ns]")
    longitude = np.full((2, 2, 5), np.nan)
    latitude, pressure = longitude.copy(), longitude.copy()
    longitude[0, 0], latitude[0, 0], pressure[0, 0] = [170, 175, 180, 185, 190], 50, 97000
    longitude[1, 0, :3], latitude[1, 0, :3], pressure[1, 0, :3] = [10, 12, 14], 60, 100500
    dims = ("number", "track", "prediction_timedelta")
    fields = {"track_latitude": latitude, "track_longitude": longitude, "track_pressure": pressure}
    tracks = xr.Dataset({name: (dims, values) for name, values in fields.items()}, {"prediction_timedelta": leads, "time": START})
    figure = maps.plot_tracks(tracks, width=5)
    lines = figure.axes[0].collections[0]
    pieces = np.array([path.vertices for path in lines.get_paths()])
    assert len(pieces) > 30
    assert np.abs(np.diff(pieces[..., 0], axis=1)).max() < 10
    assert "Tracks of lows, 2 members" in texts(figure)
    deep = maps.plot_tracks(tracks, deeper_than=98000.0, strike=blob(PLANET, 180, 50), width=5)
    assert "lows deeper than 980 hPa" in texts(deep)
    assert len(deep.axes[0].collections[-2].get_paths()) < len(pieces)
    assert pixels(maps.plot_tracks(tracks, deeper_than=90000.0, width=4), dpi=60).std() > 0.05  # none is left, and that is drawn
    observed = maps.plot_tracks(tracks, truth=tracks.isel(number=[0]), width=5)
    drawn = [line for line in observed.axes[0].lines if line.get_color() == maps.TRUTH]
    assert len(drawn) == 1
    assert np.isnan(drawn[0].get_xdata()).any()  # torn at the date line
    assert "red: truth" in texts(observed)
    with pytest.raises(InputError, match=r"track_pressure by number, track.*found track_latitude"):
        maps.plot_tracks(tracks[["track_latitude"]])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: maps.plot_field(ensemble(PLANET)), r"dims.*number"),
        (lambda: maps.plot_ensemble(ensemble(PLANET, 1)), "one member"),
        (lambda: maps.plot_field(blob(PLANET, 0, 0).rename(None)), "variable="),
        (lambda: maps.plot_field(blob(PLANET, 0, 0), extent=(10, -10, 0, 5)), "extent"),
        (lambda: maps.plot_field(blob(PLANET, 0, 0), extent=(0, 10, 0, 95)), "latitudes from -90"),
        (lambda: maps.plot_spaghetti(ensemble(PLANET), list(range(9))), "9 levels"),
        (lambda: maps.plot_probability(ensemble(PLANET)), "threshold="),
    ],
)
def test_faults_are_said_plainly(draw: Callable[[], Figure], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw()


def test_no_state_of_pyplot_or_matplotlib_is_touched() -> None:
    code = (
        "import sys, matplotlib as mpl\n"
        "before = dict(mpl.rcParams)\n"
        "from tests.verification.pictures import PLANET, ensemble, pixels, point_ensemble\n"
        "from verification import maps\n"
        "for draw in (maps.plot_ensemble, maps.plot_spaghetti): pixels(draw(ensemble(PLANET), width=3))\n"
        "pixels(maps.plot_meteogram(point_ensemble()))\n"
        "assert dict(mpl.rcParams) == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules or not sys.modules['matplotlib.pyplot'].get_fignums()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_platecarree_map_at_one_and_a_half_degrees_takes_under_half_a_second() -> None:
    field = blob(Grid.named("240x121"), 20, 40)
    took = []
    for _ in range(3):
        start = time.process_time()
        pixels(maps.plot_field(field))
        took.append(time.process_time() - start)
    assert min(took) < 0.5


def test_a_real_storm_is_over_the_sea_where_it_was(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("ecmwf-ens-samples") / "ens_storm.grib"
    data = open_forecast(path)
    gust = data["10m_wind_gust_since_previous_post_processing_3hr"].isel(time=0).sel(prediction_timedelta=np.timedelta64(78, "h"))
    figure = maps.plot_probability(gust.load(), threshold=28.0, width=4)
    image, ax = map_pixels(figure)
    likely = (image[..., 2] - image[..., 0] > 0.4) & (image[..., 2] > 0.6)
    found = np.array([place_of(ax, row, column, likely.shape) for row, column in np.argwhere(likely)])
    middle = np.median(found, axis=0)
    assert -14 < (middle[0] + 180) % 360 - 180 < 2  # the Channel and the Celtic Sea, 28 October 2013
    assert 45 < middle[1] < 53
    assert "from 2013-10-25 00 UTC, + 78 h, valid Mon 2013-10-28 06 UTC" in texts(figure).replace("\n", " ")


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
