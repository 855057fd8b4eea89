"""`plumecast map` draws every kind from forecasts and products, and says what is there when something is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cartopy.crs as ccrs
import numpy as np
import pytest
import typer
import xarray as xr
from matplotlib.image import imread
from typer.testing import CliRunner

from data_pipeline.errors import InputError
from data_pipeline.store import write_dataset
from tests.verification.pictures import PLANET, START
from verification import commands, explore
from verification.map_sources import parse_point, parse_projection, parse_region, parse_threshold
from verification.plumes import BOX

LEADS = np.arange(12, 60, 12) * np.timedelta64(1, "h").astype("timedelta64[ns]")
TIMES = START + np.arange(2) * np.timedelta64(1, "D")
NUMBERS = np.arange(1, 6)
STORES = ("forecast.zarr", "analysis.zarr", "climate.zarr", "coarse.zarr", "products.nc")


def wavy(offset: float, size: float, *lead: int) -> np.ndarray:
    """Fields (..., latitude, longitude) with waves, noise on the leading dims."""
    rng = np.random.default_rng(0)
    lat, lon = np.deg2rad(PLANET.latitude)[:, None], np.deg2rad(PLANET.longitude)[None]
    base = offset + size * (np.cos(lat) ** 2 + 0.2 * np.cos(3 * lon) * np.cos(lat))
    return (base + 0.1 * size * rng.normal(size=(*lead, 1, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("maps")
    coords = {"time": TIMES, "prediction_timedelta": LEADS, "number": NUMBERS, "level": [500], **PLANET.coords()}
    dims = ("time", "prediction_timedelta", "number", "latitude", "longitude")
    units = {"2m_temperature": ("K", 270.0, 30.0), "mean_sea_level_pressure": ("Pa", 99000.0, 3000.0)}
    fields: dict[str, Any] = {
        name: (dims, wavy(offset, size, 2, 4, 5), {"units": unit}) for name, (unit, offset, size) in units.items()
    }
    with_level = (*dims[:3], "level", *dims[3:])
    fields["geopotential"] = (with_level, wavy(50000, 8000, 2, 4, 5)[:, :, :, None], {"units": "m2 s-2"})
    forecast = xr.Dataset(fields, coords, {"model": "toy"})
    truth = forecast.isel(number=0, prediction_timedelta=0, drop=True).drop_vars("number", errors="ignore")
    hours = START + np.arange(0, 96, 12) * np.timedelta64(1, "h")
    analysis = truth.isel(time=[0] * hours.size).assign_coords(time=hours.astype("datetime64[ns]"))
    quantiles = np.array([0.01, *np.arange(1, 10) / 10, 0.95, 0.99])
    box = forecast["2m_temperature"].isel(latitude=[20, 25], longitude=[3, 9]).rename(None)
    points = xr.concat([box[..., 0, 0], box[..., 1, 1]], dim="point", coords="minimal", compat="override")
    points = points.drop_vars(["latitude", "longitude"], errors="ignore").transpose(
        "time", "prediction_timedelta", "number", "point"
    )
    where = {"point": ["Bergen", "Nairobi"], "point_latitude": ("point", [60.4, -1.3]), "point_longitude": ("point", [5.3, 36.8])}
    event = {"event": "2m_temperature > 30 degC", "comparison": [">"], "threshold": [303.15], "units": "1",
             "long_name": "probability of 2m_temperature > 30 degC", "ensemble_size": 5}  # fmt: skip
    t2m = forecast["2m_temperature"]
    tracks = ("time", "number", "track", "prediction_timedelta")
    path = np.broadcast_to(np.arange(4.0), (2, 5, 1, 4))
    products = xr.Dataset(
        {
            "2m_temperature_mean": t2m.mean("number").assign_attrs(units="K", long_name="2 m temperature, mean"),
            "2m_temperature_spread": t2m.std("number").assign_attrs(units="K"),
            "2m_temperature_maximum": t2m.max("number").assign_attrs(units="K", long_name="2 m temperature, highest member"),
            "probability_2m_temperature_gt_30_degC": (t2m > 303.15).mean("number").assign_attrs(event),
            "2m_temperature_efi": (t2m.mean("number") / 300 - 0.5).assign_attrs(units="1"),
            "2m_temperature_plume": points.assign_attrs(units="K"),
            "2m_temperature_plume_box": points.quantile(list(BOX), dim="number").rename(quantile="box").transpose(
                "time", "prediction_timedelta", "box", "point").assign_attrs(units="K"),
            "track_latitude": (tracks, 50 + path), "track_longitude": (tracks, 10 + path),
            "track_pressure": (tracks, 97000 + path),
            "strike_probability": t2m.mean("number").clip(0, 1).assign_attrs(units="1", long_name="probability of a low"),
        },
        attrs={"model": "toy", "products_recipe": "{}", "ensemble_size": 5},
    ).assign_coords(where)  # fmt: skip
    write_dataset(folder / "forecast.zarr", forecast, attrs=forecast.attrs)
    write_dataset(folder / "analysis.zarr", analysis, attrs={})
    climate = xr.Dataset(
        {"2m_temperature_quantile": (("quantile", "hour", "dayofyear", "latitude", "longitude"), np.broadcast_to(
            wavy(270, 30)[None, None, None] + np.linspace(-5, 5, 12)[:, None, None, None, None], (12, 2, 366, *PLANET.shape)
        ).astype(np.float32), {"units": "K"})},
        {"quantile": quantiles, "hour": [0, 12], "dayofyear": np.arange(1, 367), **PLANET.coords()},
    )  # fmt: skip
    write_dataset(folder / "climate.zarr", climate, attrs={})
    write_dataset(folder / "coarse.zarr", climate.isel(quantile=[0, 5, 11]), attrs={})
    products.drop_encoding().to_netcdf(folder / "products.nc")
    return {name.split(".")[0]: folder / name for name in STORES}


def run(stores: dict[str, Path], *arguments: str) -> Any:
    app = typer.Typer()
    app.callback()(lambda: None)
    commands.register(app)
    return CliRunner().invoke(app, ["map", *(str(stores.get(word, word)) for word in arguments)])


T2M = ("--variable", "2m_temperature")
LEAD = ("--lead", "2d")
DRAWN = {
    "field": ("forecast", *T2M, *LEAD, "--kind", "field", "--member", "3"),
    "mean": ("forecast", *T2M, *LEAD, "--kind", "field", "--init", "2007-01-17"),
    "ensemble": ("forecast", "--variable", "geopotential", "--level", "500", "--projection", "Robinson"),
    "stamps": ("forecast", "--channel", "geopotential_500", *LEAD, "--truth", "analysis", "--region", "Europe"),
    "spaghetti": ("forecast", "--variable", "geopotential_500", "--kind", "spaghetti", "--threshold", "5400 gpm"),
    "probability": ("forecast", *T2M, *LEAD, "--kind", "probability", "--threshold", "290"),
    "quantile": ("forecast", *T2M, "--kind", "probability", "--threshold", "q95", "--climatology", "climate"),
    "efi": ("forecast", *T2M, "--kind", "efi", "--climatology", "climate", "--projection", "NorthPolarStereo"),
    "plume": ("forecast", *T2M, "--point", "Bergen,60.4,5.3", "--truth", "analysis"),
    "meteogram": ("forecast", "--point", "10,200", "--kind", "meteogram"),
    "product field": ("products", "--variable", "2m_temperature_maximum", "--kind", "field"),
    "product mean": ("products", *T2M, "--kind", "field"),
    "product ensemble": ("products", *T2M, *LEAD, "--kind", "ensemble", "--region=-20,30,30,70"),
    "product probability": ("products", *T2M, "--kind", "probability", "--threshold", "30 degC"),
    "the only probability": ("products", *T2M, "--kind", "probability"),
    "product efi": ("products", *T2M, "--kind", "efi"),
    "product plume": ("products", *T2M, "--kind", "plume", "--point", "Nairobi", "--truth", "analysis"),
    "product meteogram": ("products", *T2M, "--kind", "meteogram", "--point", "Bergen"),
    "tracks": ("products", "--kind", "tracks", "--threshold", "980 hPa"),
}


def test_the_explorer_shows_what_products_hold(stores: dict[str, Path]) -> None:
    panel = explore(stores["forecast"], products=stores["products"], variable="2m_temperature")
    assert {"tracks", "event", "efi"} <= {kind for _, kind in panel.product.options}
    for kind in ("tracks", "event", "efi"):
        before = panel.map.png
        panel.product.value = kind
        assert panel.message == ""
        assert panel.map.png != before
    assert panel.event.options == ("2m_temperature > 30 degC",)
    panel.product.value = "event"
    panel.variable.value = "geopotential"
    assert "the products hold no probability of geopotential_500" in panel.message


@pytest.mark.parametrize("name", DRAWN)
def test_every_kind_is_drawn_from_forecasts_and_products(stores: dict[str, Path], tmp_path: Path, name: str) -> None:
    out = tmp_path / "map.png"
    result = run(stores, *DRAWN[name], "--dpi", "50", "--out", str(out))
    assert result.exit_code == 0, result.output or result.exception
    assert f"map: {out}" in result.output
    image = imread(out)
    assert image.shape[1] >= 240
    assert image[..., :3].std() > 0.05
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_suffix_decides_the_format(stores: dict[str, Path], tmp_path: Path, suffix: str, magic: bytes) -> None:
    out = tmp_path / "new" / f"map.{suffix}"
    result = run(stores, "forecast", *T2M, "--out", str(out))
    assert result.exit_code == 0, result.exception
    assert out.read_bytes().startswith(magic)


def test_dpi_and_title(stores: dict[str, Path], tmp_path: Path) -> None:
    assert run(stores, "forecast", *T2M, "--out", str(tmp_path / "a.png")).exit_code == 0
    assert imread(tmp_path / "a.png").shape[1] == 1280
    result = run(stores, "forecast", *T2M, "--title", "Cold & warm", "--out", str(tmp_path / "a.svg"))
    assert result.exit_code == 0
    assert "Cold &amp; warm" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("forecast", *T2M, "--lead", "9d"), r"has no lead 9 d; it has 12 h, 1 d, 36 h, 2 d"),
        (("forecast", *T2M, "--init", "2099-01-01"), r"no initialisation 2099-01-01; it has 2007-01-16T00, 2007-01-17T00"),
        (("forecast", *T2M, "--init", "noon"), "'noon' is no stamp"),
        (("forecast",), "--variable is needed.*2m_temperature, mean_sea_level_pressure, geopotential_500"),
        (("forecast", "--variable", "humidity"), "has no humidity; it has 2m_temperature"),
        (("forecast", "--variable", "geopotential_700"), r"levels \[500\] hPa; 700 is not there"),
        (("forecast", "--variable", "geopotential_500", "--level", "850"), "name two levels"),
        (("forecast", *T2M, *T2M), "a meteogram takes several"),
        (("forecast", *T2M, "--kind", "contour"), "'contour' is not known; one of field, ensemble, stamps"),
        (("forecast", *T2M, "--kind", "field", "--member", "9"), "has no member 9; it has 1 to 5"),
        (("forecast", *T2M, "--kind", "probability"), "needs --threshold"),
        (("forecast", *T2M, "--kind", "probability", "--threshold", "30"), "30 K is outside what 2m_temperature can be"),
        (("forecast", *T2M, "--kind", "probability", "--threshold", "warm"), "'warm': expected a number"),
        (("forecast", *T2M, "--kind", "probability", "--threshold", "q95"), "needs --climatology"),
        (
            ("forecast", *T2M, "--kind", "probability", "--threshold", "q42", "--climatology", "climate"),
            "no quantile 0.42; it has 0.01, 0.1",
        ),
        (("forecast", *T2M, "--kind", "spaghetti", "--threshold", "q95"), "a percentile is no contour"),
        (("forecast", *T2M, "--kind", "efi"), "--kind efi needs --climatology"),
        (
            ("forecast", "--variable", "geopotential_500", "--kind", "efi", "--climatology", "climate"),
            "no quantiles of geopotential; it has them of 2m_temperature",
        ),
        (("forecast", "--kind", "tracks"), "plumecast products"),
        (("forecast", *T2M, "--kind", "plume"), "--point is needed"),
        (("forecast", *T2M, "--point", "Bergen"), "expected LATITUDE,LONGITUDE"),
        (("forecast", *T2M, "--truth", "analysis", "--lead", "2d", "--init", "2007-01-17", "--kind", "efi"), "--climatology"),
        (("forecast", *T2M, "--out", "map.jpg"), "ends in .png, .svg, .pdf"),
        (("forecast", *T2M, "--projection", "Flat"), "'Flat' is not known; one of .*Orthographic.*Robinson"),
        (("forecast", *T2M, "--region", "Atlantis"), "WEST,EAST,SOUTH,NORTH.*Europe"),
        (("analysis", *T2M), "neither a forecast nor a products store"),
        (("products", "--variable", "humidity", "--kind", "ensemble"), "no mean of humidity; it has them of 2m_temperature"),
        (("products", *T2M, "--kind", "stamps"), r"no fields of members \(\[products.stamps\] of the recipe\) of 2m_temperature"),
        (
            ("products", *T2M, "--kind", "probability", "--threshold", "31 degC"),
            "no probability of 2m_temperature > 31 degC; it has: 2m_temperature > 30 degC",
        ),
        (("products", *T2M, "--kind", "probability", "--threshold", "30 degC", "--below"), "2m_temperature < 30 degC; it has"),
        (("products", *T2M, "--kind", "plume", "--point", "Oslo"), "plumes at Bergen, Nairobi"),
        (("products", *T2M, "--kind", "field", "--member", "1"), "holds products"),
        (("forecast", *T2M, "--kind", "efi", "--climatology", "coarse"), "too few: EFI wants them at most 0.1 apart"),
        (("forecast", *T2M, "--region", "Europe", "--projection", "Robinson:190"), "Robinson tears it at its edges"),
        (("forecast", *T2M, "--region", "Antarctic", "--projection", "Orthographic:0,50"), "Orthographic shows nothing of it"),
    ],
)
def test_faults_list_what_is_there(stores: dict[str, Path], tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(stores, *arguments, *(() if "--out" in arguments else ("--out", str(tmp_path / "map.png"))))
    with pytest.raises(InputError, match=message):
        raise result.exception
    assert list(tmp_path.iterdir()) == []


def test_projections_take_their_centre_from_the_text_or_the_region() -> None:
    assert parse_projection("orthographic:10,60") == ccrs.Orthographic(10, 60)
    assert parse_projection("PlateCarree:180") == ccrs.PlateCarree(180)
    assert parse_projection("LambertConformal", (-10.0, 30.0, 40.0, 60.0)) == ccrs.LambertConformal(10, 50)
    for text in ("Robinson:a", "Robinson:1,2", "Orthographic:1,2,3"):
        with pytest.raises(InputError, match="NAME:LONGITUDE"):
            parse_projection(text)


def test_regions_are_named_or_given_and_may_cross_the_date_line() -> None:
    assert parse_region("europe") == (-15, 45, 35, 60)
    assert parse_region("global") is None
    assert parse_region("160,-150,-20,20") == (160, 210, -20, 20)
    with pytest.raises(InputError, match="tropics"):
        parse_region("1,2,3")


def test_thresholds_and_points_are_read_as_people_write_them() -> None:
    from data_pipeline.schema import Channel

    t2m, rain, z500 = Channel("2m_temperature"), Channel("total_precipitation_12hr"), Channel("geopotential", 500)
    assert parse_threshold("303.15", t2m) == (303.15, False)
    assert parse_threshold("30 degC", t2m)[0] == pytest.approx(303.15)
    assert parse_threshold("-5degC", t2m)[0] == pytest.approx(268.15)
    assert parse_threshold("10 mm", rain)[0] == pytest.approx(0.01)
    assert parse_threshold("5400 gpm", z500)[0] == pytest.approx(52955.91)
    assert parse_threshold("q95", t2m) == parse_threshold("q0.95", t2m) == (0.95, True)
    assert parse_point("Bergen,60.39,5.32") == parse_point("Bergen=60.39,5.32") == ("Bergen", 60.39, 5.32)
    assert parse_point(" -33.9, 18.4") == ("", -33.9, 18.4)
    for text in ("Bergen", "1", "100,0", "a,b,c"):
        with pytest.raises(InputError, match="LATITUDE,LONGITUDE"):
            parse_point(text)
