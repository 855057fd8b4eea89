"""The panel of interactive maps: what is clicked is the place, what is chosen is what is drawn, what cannot be drawn is said."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import cartopy.crs as ccrs
import numpy as np
import pytest
import xarray as xr
from cartopy.mpl.geoaxes import GeoAxes
from matplotlib.figure import Figure
from matplotlib.image import imread

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from tests.verification.pictures import EUROPE, PACIFIC, PLANET, START, blob
from verification import explore, map_kinds, maps
from verification.canvas import _centred, _frame_map, extent_of
from verification.explorer.view import PROJECTIONS, Material, Picture, Series, View, _frame, _rendered, draw_series, draw_view
from verification.regions import REGIONS

GLOBE = Grid.named("16x8")
LEADS = (np.arange(12, 60, 12) * np.timedelta64(1, "h")).astype("timedelta64[ns]")
TIMES = START + np.arange(2) * np.timedelta64(1, "D")
PARTS = {"10m_u_component_of_wind": ("m s-1", 5.0), "10m_v_component_of_wind": ("m s-1", 2.0), "2m_temperature": ("K", 280.0)}


def ensemble(grid: Grid = GLOBE, members: int = 3) -> xr.Dataset:
    """Two initialisations, four leads: winds, temperature, geopotential at two levels."""
    rng = np.random.default_rng(0)
    coords = {
        "time": TIMES,
        "prediction_timedelta": LEADS,
        "number": 1 + np.arange(members),
        "level": [500, 850],
        **grid.coords(),
    }
    dims = ("time", "prediction_timedelta", "number", "latitude", "longitude")
    shape = (TIMES.size, LEADS.size, members, *grid.shape)
    fields: dict[str, Any] = {
        name: (dims, (mean + rng.normal(size=shape)).astype(np.float32), {"units": units})
        for name, (units, mean) in PARTS.items()
    }
    heights = 5e4 + 500 * rng.normal(size=(*shape[:3], 2, *shape[3:]))
    fields["geopotential"] = ((*dims[:3], "level", *dims[3:]), heights.astype(np.float32), {"units": "m2 s-2"})
    return xr.Dataset(fields, coords, {"model": "toy"})


def analysis(data: xr.Dataset, steps: int = 4) -> xr.Dataset:
    """An analysis every 12 hours from the first initialisation on: the first member there, whatever the lead."""
    member = data.isel(time=0, number=0, prediction_timedelta=0, drop=True)
    times = (START + np.arange(steps) * np.timedelta64(12, "h")).astype("datetime64[ns]")
    return member.expand_dims(time=times).transpose("time", "level", "latitude", "longitude")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, map_kinds.Asked]]:
    """Every figure that is asked for, as (kind, source, asked); what is drawn is an empty sheet."""
    calls: list[tuple[str, Any, map_kinds.Asked]] = []

    def recorder(kind: str) -> Callable[..., Figure]:
        def draw(source: Any, what: map_kinds.Asked, _: str | None) -> Figure:
            calls.append((kind, source, what))
            return Figure(figsize=(1, 1))

        return draw

    for kind in map_kinds.KINDS:
        monkeypatch.setitem(map_kinds.KINDS, kind, recorder(kind))
    return calls


def darkest(picture: Picture) -> tuple[float, float]:
    """Share of width and height of the middle of what is darkest: the top of a bump in shades of grey."""
    grey = imread(io.BytesIO(picture.png), format="png")[..., :3].sum(axis=-1)
    rows, columns = np.nonzero(grey < grey.min() + 0.02)
    return (columns.mean() + 0.5) / grey.shape[1], (rows.mean() + 0.5) / grey.shape[0]


def drawn(field: xr.DataArray, projection: ccrs.Projection, **frame: Any) -> Picture:
    """The field in shades of grey, black where it is largest, without any other ink."""
    shading = maps.Shading(tuple(np.linspace(0, 1, 60)), "Greys", "", "neither")
    figure = maps.plot_field(field, shading=shading, title="", projection=projection, degrees=False, **frame)
    for ax in figure.axes:
        for artist in [*ax.lines, *(ax.texts if ax is figure.axes[0] else [])]:
            artist.remove()
    figure.axes[1].remove()
    return _rendered(figure)


@pytest.mark.parametrize(
    ("projection", "latitude", "longitude"),
    [
        (ccrs.PlateCarree(), 40, 0),
        (ccrs.PlateCarree(), -35, -120),
        (ccrs.PlateCarree(180), 40, 178),
        (ccrs.Robinson(), 50, -100),
        (ccrs.Mollweide(90), -30, 60),
        (ccrs.Orthographic(0, 50), 60, 20),
        (ccrs.NorthPolarStereo(), 85, 130),
        (ccrs.SouthPolarStereo(), -60, -45),
    ],
)
def test_the_place_of_a_pixel_is_where_the_field_is(projection: ccrs.Projection, latitude: float, longitude: float) -> None:
    picture = drawn(blob(Grid.named("72x37"), longitude, latitude), projection, width=3.0)
    found = picture.place(*darkest(picture))
    assert found is not None
    apart = (found[1] - longitude + 180) % 360 - 180
    assert abs(found[0] - latitude) < 1.6
    assert abs(apart) * np.cos(np.deg2rad(latitude)) < 1.6
    ((across, down),) = picture.spots(latitude, longitude)
    assert (across, down) == pytest.approx(darkest(picture), abs=0.012)
    assert picture.place(across, down) == pytest.approx((latitude, longitude), abs=1e-4)


def test_a_regional_map_knows_its_places() -> None:
    picture = drawn(blob(EUROPE, 5, 50, 4.0), ccrs.LambertConformal(central_longitude=0, central_latitude=45), width=3.0)
    found = picture.place(*darkest(picture))
    assert found == pytest.approx((50, 5), abs=0.5)
    assert picture.spots(-30, 100) == []


@pytest.mark.parametrize("projection", [ccrs.Robinson(), ccrs.Orthographic(0, 50), ccrs.NorthPolarStereo()])
def test_outside_the_globe_is_no_place(projection: ccrs.Projection) -> None:
    picture = drawn(blob(GLOBE, 0, 60), projection, width=3.0)
    (frame,) = picture.frames
    (west, north), (east, south) = frame.outline.get_extents().min, frame.outline.get_extents().max
    assert picture.place((west + east) / 2, (north + south) / 2) is not None
    for across in (west + 0.002, east - 0.002):
        for down in (north + 0.002, south - 0.002):
            assert picture.place(across, down) is None
    assert picture.place(0.5, 0.999) is None


def test_the_far_side_of_the_globe_has_no_mark() -> None:
    picture = drawn(blob(GLOBE, 0, 60), ccrs.Orthographic(0, 50), width=3.0)
    assert len(picture.spots(50, 0)) == 1
    assert picture.spots(-50, 180) == []


def test_every_small_map_of_a_sheet_tells_the_same_place() -> None:
    view = View("stamps", "2m_temperature", TIMES[0], LEADS[1])
    picture = draw_view(Material.of(ensemble()), view)
    spots = picture.spots(30, 60)
    assert len(spots) == len(set(spots)) == 5  # mean, spread, three members
    for spot in spots:
        assert picture.place(*spot) == pytest.approx((30, 60), abs=1e-4)


def test_a_point_has_its_plume_and_a_meteogram_that_begins_with_what_the_map_shows() -> None:
    data = ensemble()
    material = Material.of(data, truth=analysis(data))
    pictures = [
        draw_series(material, Series(kind, "10m_wind_speed", TIMES[0], "Bergen, 60.39, 5.32")) for kind in ("plume", "meteogram")
    ]
    assert [picture.png[:8] for picture in pictures] == [b"\x89PNG\r\n\x1a\n"] * 2
    assert "10 m wind speed at Bergen" in pictures[0].said
    assert "Meteogram at Bergen" in pictures[1].said


def test_each_control_changes_what_is_asked_for(asked: list[tuple[str, Any, map_kinds.Asked]]) -> None:
    data = ensemble()
    panel = explore(data, truth=analysis(data))
    kind, source, what = asked[-1]
    assert (kind, what.channel.label, what.lead, what.member) == ("ensemble", "10m_u_component_of_wind", LEADS[0], None)
    assert source.data["time"].values == TIMES[0]
    panel.variable.value = "geopotential"
    panel.level.value = 850
    panel.lead.index = 2
    panel.init.value = TIMES[1]
    kind, source, what = asked[-1]
    assert (what.channel.label, what.lead, source.data["time"].values) == ("geopotential_850", LEADS[2], TIMES[1])
    panel.product.value = "member"
    panel.member.value = 3
    kind, _, what = asked[-1]
    assert (kind, what.member, what.thresholds) == ("field", 3, [])
    panel.product.value = "probability"
    panel.threshold.value, panel.below.value = "1400 gpm", True
    kind, _, what = asked[-1]
    assert (kind, what.member, what.thresholds, what.below) == ("probability", None, ["1400 gpm"], True)
    panel.projection.value, panel.region.value = "Robinson", "Europe"
    frame = asked[-1][2].frame
    assert isinstance(frame["projection"], ccrs.Robinson)
    assert frame["extent"] == (-15, 45, 35, 60)
    assert panel.message == ""


def test_the_event_of_a_variable_is_suggested_in_its_own_units(asked: list[tuple[str, Any, map_kinds.Asked]]) -> None:
    panel = explore(ensemble(), variable="2m_temperature", product="probability")
    assert (panel.threshold.value, panel.below.value) == ("0 °C", True)
    panel.variable.value = "10m_wind_speed"
    assert (panel.threshold.value, panel.below.value) == ("13.9 m s⁻¹", False)
    assert asked[-1][2].thresholds == ["13.9 m s⁻¹"]
    panel.variable.value = "geopotential"  # no event is listed at this level
    assert panel.threshold.value.endswith(" dam")


def test_levels_follow_the_variable_and_wind_speed_is_offered(asked: list[tuple[str, Any, map_kinds.Asked]]) -> None:
    panel = explore(ensemble(), variable="geopotential_500")
    assert [value for _, value in panel.level.options] == [500, 850]
    assert panel.channel == "geopotential_500"
    panel.variable.value = "10m_wind_speed"
    assert panel.level.disabled
    assert panel.channel == "10m_wind_speed"
    assert asked[-1][2].channel.label == "10m_wind_speed"


def test_only_what_the_product_asks_for_is_shown(asked: list[tuple[str, Any, map_kinds.Asked]]) -> None:
    panel = explore(ensemble())
    fields = {name: getattr(panel, name) for name in ("member", "below", "threshold", "event")}
    for product, used in {"ensemble": set(), "member": {"member"}, "probability": {"below", "threshold"}}.items():
        panel.product.value = product
        assert {name for name, control in fields.items() if control.layout.display != "none"} == used


def test_pictures_are_drawn_once(asked: list[tuple[str, Any, map_kinds.Asked]]) -> None:
    panel = explore(ensemble(), point="10, 20")
    before = len(asked)
    for index in (1, 2, 1, 0, 2):
        panel.lead.index = index
    assert len(asked) == before + 2
    panel.product.value = "probability"
    panel.threshold.value = "3 m s-1"
    panel.product.value = "ensemble"  # a threshold is nothing to a mean
    assert len(asked) == before + 4
    panel.variable.value = "2m_temperature"
    assert [kind for kind, _, _ in asked[before + 4 :]] == ["ensemble", "plume"]


def test_truth_is_drawn_where_there_is_one(asked: list[tuple[str, Any, map_kinds.Asked]]) -> None:
    data = ensemble()
    panel = explore(data, truth=analysis(data, steps=3), product="stamps")
    assert asked[-1][2].truth is not None
    panel.lead.index = 3
    assert asked[-1][2].truth is None
    assert panel.message == ""
    panel.product.value = "truth"
    assert "the analysis has no 2007-01-18T00, the valid time" in panel.message


def test_truth_of_another_level_is_left_out(asked: list[tuple[str, Any, map_kinds.Asked]]) -> None:
    data = ensemble()
    panel = explore(data, truth=analysis(data).sel(level=[500]), variable="geopotential_500", product="stamps")
    assert asked[-1][2].truth is not None
    panel.level.value = 850
    assert asked[-1][2].truth is None
    assert panel.message == ""


def test_a_start_is_known_by_the_words_of_its_menu(asked: list[tuple[str, Any, map_kinds.Asked]]) -> None:
    assert explore(ensemble(), init="Wed 2007-01-17 00 UTC").init.value == TIMES[1]


def test_products_are_offered_by_what_there_is() -> None:
    data = ensemble()
    assert set(Material.of(data).offered()) == {"ensemble", "field", "member", "stamps", "spaghetti", "probability"}
    assert "truth" in Material.of(data, truth=analysis(data)).offered()
    assert set(Material.of(ensemble(members=1)).offered()) == {"field", "member", "probability"}
    for levels, there in (([0.01, *np.arange(1, 10) / 10, 0.99], True), ([0.05, 0.5, 0.95], False)):  # too coarse for the index
        days: dict[str, Any] = {"hour": [0], "dayofyear": [1], "quantile": levels}
        climate = xr.Dataset({"2m_temperature_quantile": (tuple(days), np.zeros((1, 1, len(levels))))}, days)
        assert ("efi" in Material.of(data, climatology=climate).offered()) is there


def test_a_click_is_a_point_and_a_click_beside_the_map_is_said() -> None:
    panel = explore(ensemble(), variable="2m_temperature")
    assert bytes(panel.plume.value) == b""
    before = panel.map.png
    ((across, down),) = panel._shown.spots(-33.92, 18.42)
    panel.map._handle_custom_msg({"across": across, "down": down}, [])
    assert panel.point.value == "-33.92, 18.42"
    assert panel.map.marks == [[pytest.approx(across), pytest.approx(down)]]
    assert bytes(panel.plume.value).startswith(b"\x89PNG")
    assert panel.map.png == before
    plume = bytes(panel.plume.value)
    panel.map._handle_custom_msg({"across": 0.5, "down": 0.001}, [])
    assert panel.message == "That is not on the map; click inside its frame."
    assert panel.point.value == "-33.92, 18.42"
    panel.series.value = "meteogram"
    assert bytes(panel.plume.value) not in (b"", plume)
    panel.projection.value = "PlateCarree:180"
    assert panel.map.marks != [[pytest.approx(across), pytest.approx(down)]]


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("somewhere", "expected LATITUDE,LONGITUDE in degrees"),
        ("95, 0", "expected LATITUDE"),
        ("0, 100", "0° 100°E does not lie on the grid"),
    ],
)
def test_a_point_that_is_none_is_said(point: str, said: str) -> None:
    panel = explore(ensemble(EUROPE), variable="2m_temperature")
    panel.point.value = point
    assert said in panel.message
    assert "--" not in panel.message
    assert bytes(panel.plume.value) == b""
    panel.point.value = "45, 0"
    assert panel.message == ""
    assert bytes(panel.plume.value).startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_said_and_the_old_picture_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    panel = explore(ensemble(), variable="2m_temperature", product="probability")
    assert not panel.map.stale
    for threshold, said in {
        "warm": "threshold 'warm': expected a number in SI units (303.15), with a unit (30 degC)",
        "q95": "needs a climatology with quantiles",
        "30 hPa": "units 'hPa' cannot be converted to 'K'",
        "30": "is outside what 2m_temperature can be",
        "": "probability needs threshold",
    }.items():
        panel.threshold.value = threshold
        assert said in panel.message
        assert panel.map.stale
    panel.threshold.value = "5 °C"
    assert (panel.message, panel.map.stale) == ("", False)

    def broken(*_: Any) -> Figure:
        raise ZeroDivisionError("<b>far</b> away")

    monkeypatch.setitem(map_kinds.KINDS, "ensemble", broken)
    panel.product.value = "ensemble"
    assert panel.message == "ZeroDivisionError: <b>far</b> away"
    assert "<b>" not in panel._said.value


def test_a_message_about_the_point_outlasts_a_new_map(asked: list[tuple[str, Any, map_kinds.Asked]]) -> None:
    panel = explore(ensemble(), point="nowhere")
    panel.plume.value = b""
    panel._told.value = "unknown"
    panel.lead.index = 1
    assert panel.message == "unknown"


def test_a_start_that_is_not_there_names_what_is() -> None:
    data = ensemble()
    with pytest.raises(InputError, match=r"no such control; there are variable, level, init"):
        explore(data, colour="red")
    with pytest.raises(InputError, match=r"lead='9 d'\): not there; there are \+12 h, \+1 d"):
        explore(data, lead="9 d")
    with pytest.raises(InputError, match=r"init='2007-02-01'\): not there; there are 2007-01-16"):
        explore(data, init="2007-02-01")
    with pytest.raises(InputError, match=r"init='Tuesday'\): not there; there are 2007-01-16"):
        explore(data, init="Tuesday")
    with pytest.raises(InputError, match=r"level=850\): that names two levels"):
        explore(data, variable="geopotential_500", level=850)
    with pytest.raises(InputError, match="not a valid analysis dataset"):
        explore(data, truth=data)
    with pytest.raises(InputError, match="projection 'Flat' is not known"):
        explore(data, projections=["Flat"])
    with pytest.raises(InputError, match="not a valid forecast dataset"):
        explore(data.rename(number="member"))
    with pytest.raises(InputError, match="a store of plumecast products is expected"):
        explore(data, products=data)


def test_a_start_is_shown_first(asked: list[tuple[str, Any, map_kinds.Asked]]) -> None:
    panel = explore(
        ensemble(), variable="geopotential_850", lead="1 d", init="2007-01-17", product="probability", threshold="1500 gpm",
        projection="Robinson", region="tropics", point="Bergen, 60.39, 5.32", series="meteogram",
    )  # fmt: skip
    (kind, source, what), (below, _, series) = asked
    assert (kind, what.channel.label, what.lead, what.thresholds) == ("probability", "geopotential_850", LEADS[1], ["1500 gpm"])
    assert source.data["time"].values == TIMES[1]
    assert (below, series.point) == ("meteogram", "Bergen, 60.39, 5.32")
    assert panel.view.region == "tropics"


def test_all_offered_projections_are_known() -> None:
    panel = explore(ensemble(), variable="2m_temperature")
    assert [value for _, value in panel.projection.options] == list(PROJECTIONS)
    assert len({text for text, _ in panel.projection.options}) == len(PROJECTIONS)


def other_hemisphere(projection: str, region: str) -> bool:
    """Whether a polar map would have to show a region around the other pole."""
    around = {"NorthPolarStereo": "north", "SouthPolarStereo": "south"}.get(projection)
    box = REGIONS[region]
    return (around == "north" and box.south < -30) or (around == "south" and box.north > 30)


def frame_of(data: xr.Dataset, projection: str, region: str) -> GeoAxes:
    """The first map that the panel would draw, without fields and coastlines."""
    grid = Grid.of(data)
    made = _frame(Material.of(data), View("field", "2m_temperature", TIMES[0], LEADS[0], projection=projection, region=region))
    extent = None if "extent" not in made and grid.circles else extent_of(grid, made.get("extent"))
    ax: GeoAxes = Figure().add_subplot(projection=_centred(made["projection"], extent))
    _frame_map(ax, extent)
    return ax


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_every_region_fills_a_map_of_every_projection_or_is_refused(projection: str) -> None:
    data = ensemble()
    for region in Material.of(data).regions():
        if region != "global" and other_hemisphere(projection, region):
            with pytest.raises(InputError, match="shows the other hemisphere"):
                frame_of(data, projection, region)
            continue
        ax = frame_of(data, projection, region)
        box, view = REGIONS[region], ax.viewLim
        assert np.isfinite(view.extents).all()
        tall = view.height / view.width * (1.0 if isinstance(ax.get_aspect(), str) else float(ax.get_aspect()))
        assert 0.08 < tall < 1.6, (region, tall)
        # nothing of the region is cut off: its middle, its edges wherever the projection shows them
        for longitude in np.linspace(box.west + 1, box.east - 1, 9):
            for latitude in np.linspace(box.south + 1, box.north - 1, 5):
                x, y = ax.projection.transform_point(longitude, latitude, ccrs.PlateCarree())
                polar = region == "global" and "Polar" in projection  # ends in the tropics
                assert polar or not np.isfinite(x) or view.contains(x, y), (region, longitude, latitude)
        if projection.startswith("PlateCarree"):  # and there is nothing else
            assert (view.width, view.height) == (box.east - box.west, box.north - box.south)
        middle = (box.west + box.east) / 2, (box.south + box.north) / 2
        if box.east - box.west < 360:
            assert view.contains(*ax.projection.transform_point(*middle, ccrs.PlateCarree()))
            assert view.width < 1e7


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_regional_grid_fills_a_map_of_every_projection_or_is_refused(projection: str) -> None:
    for grid in (EUROPE, PACIFIC):
        if projection == "SouthPolarStereo" and grid is EUROPE:
            with pytest.raises(InputError, match="shows the other hemisphere"):
                frame_of(ensemble(grid), projection, "domain")
            continue
        ax = frame_of(ensemble(grid), projection, "domain")
        (west, east), (south, north) = grid.longitude_bounds[[0, -1]], grid.latitude_bounds[[0, -1]]
        for longitude in np.linspace(west, east, 5):
            for latitude in np.linspace(south, north, 5):
                x, y = ax.projection.transform_point(longitude, latitude, ccrs.PlateCarree())
                assert ax.viewLim.padded(1e-3 * ax.viewLim.width).contains(x, y), (longitude, latitude)
        assert ax.viewLim.width < 3.1e7


def test_without_widgets_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ipywidgets", "anywidget"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith("verification.explorer")]:
        monkeypatch.delitem(sys.modules, name)
    from verification.explorer import explore as fresh

    with pytest.raises(
        InputError, match=r"(ipywidgets|anywidget) is not installed; install them: pip install 'plumecast\[notebooks\]'"
    ):
        fresh(ensemble(PLANET))
