"""Plumes and meteograms draw the members' quantiles, at the right dates, and say where."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from tests.verification.pictures import HOURS, PLANET, START, blob, pixels, point_ensemble, texts
from verification import maps
from verification.plumes import BOX
from verification.points import at_point

LEADS = HOURS * np.timedelta64(1, "h").astype("timedelta64[ns]")


def boxed(data: xr.Dataset) -> xr.Dataset:
    """The same as quantiles, in the form of products."""
    found = data.quantile(list(BOX), dim="number", keep_attrs=True).rename(quantile="box")
    scalars = {name: data[name] for name in ("time", "point", "latitude", "longitude")}
    return found.transpose("prediction_timedelta", "box").assign_coords(scalars).assign_attrs(ensemble_size=data.sizes["number"])


def test_a_plume_draws_members_bands_median_and_truth_at_their_leads() -> None:
    members = point_ensemble()["2m_temperature"]
    truth = xr.DataArray(np.linspace(270, 280, 9), {"time": START + np.arange(0, 108, 12) * np.timedelta64(1, "h")}, ("time",))
    figure = maps.plot_plume(members, truth.assign_coords(time=truth["time"].astype("datetime64[ns]")))
    ax = figure.axes[0]
    curves = {len(line.get_xdata()): line for line in ax.lines}
    drawn = np.array([line.get_ydata() for line in ax.lines[:9]])
    np.testing.assert_allclose(drawn, members.values.T - 273.15)
    np.testing.assert_allclose(ax.lines[9].get_ydata(), np.median(members.values, axis=1) - 273.15)
    np.testing.assert_allclose(ax.lines[10].get_xdata(), HOURS)  # of the truth only what the forecast covers
    np.testing.assert_allclose(ax.lines[10].get_ydata(), truth.values[1:7] - 273.15)
    low = ax.collections[0].get_paths()[0].vertices[:, 1].min()
    assert low == pytest.approx(np.quantile(members.values, 0.1, axis=1).min() - 273.15)
    assert curves
    written = texts(figure)
    for words in (
        "at Bergen (60.39°N 5.32°E), 9 members",
        "from 2007-01-16 00 UTC",
        "(°C)",
        "middle 80 %",
        "truth",
        "dates: 00 UTC",
    ):
        assert words in written


def test_dates_stand_at_midnight_utc() -> None:
    data = point_ensemble().assign_coords(time=START + np.timedelta64(6, "h"))
    ax = maps.plot_plume(data["2m_temperature"]).axes[0]
    assert dict(zip(ax.get_xticks().tolist(), [text.get_text() for text in ax.get_xticklabels()], strict=True)) == {
        18.0: "Wed\n17 Jan",
        42.0: "Thu\n18 Jan",
        66.0: "Fri\n19 Jan",
    }
    without = maps.plot_plume(data["2m_temperature"].drop_vars("time")).axes[0]
    assert [text.get_text() for text in without.get_xticklabels()] == ["+1 d", "+2 d", "+3 d"]


def test_dates_of_a_long_forecast_do_not_overlap() -> None:
    hours = np.arange(24, 24 * 61, 24) * np.timedelta64(1, "h").astype("timedelta64[ns]")
    members = xr.DataArray(
        np.random.default_rng(0).normal(280, 1, (60, 4)), {"prediction_timedelta": hours, "time": START},
        ("prediction_timedelta", "number"), "2m_temperature", {"units": "K"},
    )  # fmt: skip
    figure = maps.plot_plume(members)
    pixels(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].get_xticklabels() if text.get_text()]
    assert len(boxes) >= 4
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_a_meteogram_of_members_and_of_their_stored_quantiles_is_the_same() -> None:
    data = point_ensemble()
    pictures = [pixels(maps.plot_meteogram(form, title="the same"), dpi=60) for form in (data, boxed(data))]
    np.testing.assert_array_equal(*pictures)


def test_a_box_spans_its_quantiles() -> None:
    data = point_ensemble()
    figure = maps.plot_meteogram(data)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Total precipitation in 12 h (mm)", "2 m temperature (°C)"]
    ax = figure.axes[1]
    wide = ax.patches[HOURS.size + 2]
    quarter, upper = np.quantile(data["2m_temperature"].values[2], [0.25, 0.75]) - 273.15
    assert (wide.get_y(), wide.get_height()) == pytest.approx((quarter, upper - quarter))  # type: ignore[attr-defined]
    assert wide.get_x() + wide.get_width() / 2 == pytest.approx(HOURS[2])  # type: ignore[attr-defined]
    assert figure.axes[0].get_ylim()[0] == 0
    assert "Meteogram at Bergen (60.39°N 5.32°E), 9 members" in texts(figure)


def test_a_missing_member_leaves_its_lead_out() -> None:
    members = point_ensemble()["2m_temperature"].copy()
    members[2, 3] = np.nan
    median = maps.plot_plume(members).axes[0].lines[-1].get_ydata()
    assert np.isnan(median[2])
    assert np.isfinite(np.delete(median, 2)).all()


def test_faults_name_what_is_expected() -> None:
    data = point_ensemble()
    with pytest.raises(InputError, match="at_point"):
        maps.plot_plume(data["2m_temperature"].expand_dims("latitude"))
    with pytest.raises(InputError, match=r"humidity.*2m_temperature"):
        maps.plot_meteogram(data, channels=["humidity"])
    with pytest.raises(InputError, match="no variable by prediction_timedelta"):
        maps.plot_meteogram(data.isel(number=0))
    with pytest.raises(InputError, match="box has the quantiles"):
        maps.plot_plume(boxed(data).isel(box=slice(5))["2m_temperature"])
    with pytest.raises(InputError, match="truth of a plume"):
        maps.plot_plume(data["2m_temperature"].drop_vars("time"), xr.DataArray([1.0], dims="time"))


def test_a_point_is_interpolated_and_named() -> None:
    field = blob(PLANET, 5.625, 8.4375, width=30).expand_dims(prediction_timedelta=LEADS[:1], number=[1, 2])
    data = field.to_dataset(name="wind_speed")
    here = at_point(data, float(PLANET.latitude[17]), 5.625, "Here")
    np.testing.assert_allclose(here["wind_speed"].values, field.values[..., 17, 1], rtol=1e-6)
    assert here["point"].item() == "Here"
    west = at_point(data, 8.4375, -2.8125)
    assert str(west["point"].values) == "8.44°N 2.81°W"
    np.testing.assert_allclose(west["wind_speed"].values, field.values[..., 17, [0, -1]].mean(axis=-1), rtol=1e-6)
