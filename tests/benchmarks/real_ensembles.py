"""How do real ensembles score? One table of every real ensemble at hand, with n, M and intervals.

    python -m tests.benchmarks real_ensembles

Station ensembles against observations, as they are (no post-processing); gridded ones have no verifying analysis here, so their
members are scored against a run that is not the truth: a consistency exercise, said in the table. Data: ../shared/data, or
PLUMECAST_SHARED.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from data_pipeline import open_forecast
from verification import area_weights, crps, spread_skill
from verification.cases import score_cases

SHARED = Path(os.environ.get("PLUMECAST_SHARED") or Path(__file__).resolve().parents[3] / "shared") / "data"
STATIONS = {
    "ECMWF ENS, 2 m temperature (K), Magdeburg, 24 h": "ecmwf_ens_t2m_magdeburg_24h.nc",
    "ECMWF ENS, 2 m temperature (K), Magdeburg, 48 h": "ecmwf_ens_t2m_magdeburg_48h.nc",
    "GEFS reforecast, minimum temperature (K), Innsbruck, 30 h": "gefs_reforecast_tmin_innsbruck.nc",
    "GEFS reforecast, precipitation in 12 h (mm), Innsbruck, 30 h": "gefs_reforecast_precip_innsbruck.nc",
}
UWME = "uwme_t2m_48h_pacific_northwest.nc"
NAMES = {
    "geopotential": "z (m² s⁻²)",
    "temperature": "t (K)",
    "10m_wind_gust_since_previous_post_processing_3hr": "gust in 3 h (m/s)",
}
COLUMNS = (
    "ensemble",
    "truth",
    "M",
    "n",
    "fair CRPS",
    "ecdf CRPS",
    "MAE of median",
    "RMSE",
    "spread",
    "spread/skill",
    "below / above all",
)
NOTES = (
    "M members, n cases used. Fair CRPS: unbiased for the distribution the members are drawn from, in brackets its 95 % interval "
    "from blocks of initialisations as long as the lead. Ecdf CRPS: of the M members as they are. Spread-skill ratio with "
    "(M + 1) / M. Below / above all: share of truths outside the ensemble.",
    "Observation error is not modelled. UWME members are eight different models, not exchangeable: its fair CRPS is formal.",
    "Grids: means weighted by area; points depend on each other and initialisations are few, so no interval. Members against the "
    "control or the high-resolution run of the same system is a consistency exercise, not verification: the control lies nearer "
    "to the middle than a member, so a ratio above 1 is expected.",
)


def main() -> None:
    rows = [*station_rows(), *grid_rows()]
    print("| " + " | ".join(COLUMNS) + " |")
    print("| --- | --- |" + " ---: |" * (len(COLUMNS) - 2))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print("\n" + "\n".join(NOTES))


def station_rows() -> Iterator[tuple[str, ...]]:
    """Ensembles that come at stations, raw, against observations."""
    for label, name in STATIONS.items():
        data = xr.open_dataset(SHARED / "ens-stations" / name)
        lead = np.timedelta64(int(str(data.attrs["lead_time_hours"]).split("-")[-1]), "h")
        yield from rows_of(label, data["fc"], data["obs"], "member", lead)
    data = unstacked(xr.open_dataset(SHARED / "ens-stations" / UWME))
    label = "UWME, 2 m temperature (K), Pacific Northwest, 48 h"
    for part, day in ((label, slice(None)), (f"{label}, 2004-01-29", ["2004-01-29"]), (f"{label}, 2004-01-31", ["2004-01-31"])):
        some = data.sel(time=day)
        yield from rows_of(part, some["fc"], some["obs"], "model", np.timedelta64(48, "h"))


def unstacked(cases: xr.Dataset) -> xr.Dataset:
    """The list of cases of the UWME file as (time, station), NaN where there is none."""
    index = {"time": cases["time"], "station": cases["station"].astype(str)}
    return cases[["fc", "obs"]].assign_coords(index).set_index(case=["time", "station"]).unstack("case")


def rows_of(
    label: str, forecast: xr.DataArray, truth: xr.DataArray, member_dim: str, lead: np.timedelta64
) -> Iterator[tuple[str, ...]]:
    scores = score_cases(forecast, truth, member_dim=member_dim, lead=lead).isel(place=0)
    values = {name: float(scores[name]) for name in ("crps", "crps_ecdf", "mae", "rmse", "spread", "ssr", "below", "above")}
    interval = (float(scores["crps_lower"]), float(scores["crps_upper"]))
    yield row(label, "observations", forecast.sizes[member_dim], int(scores["n"]), values, interval)


def grid_rows() -> Iterator[tuple[str, ...]]:
    """Members against the control or the high-resolution run of the same system."""
    for name, label in (
        ("era5-levels-members", "ERA5 ensemble of analyses"),
        ("z500_ens", "ECMWF ENS"),
        ("ens_storm", "ECMWF ENS, storm"),
    ):
        data = open_forecast(SHARED / "ecmwf-ens-samples" / f"{name}.grib").load()
        control = data.sel(number=0, drop=True)
        yield from grid_rows_of(label, data.drop_sel(number=0), control, "its control, not the truth")
        if name == "ens_storm":
            fine = open_forecast(SHARED / "ecmwf-ens-samples" / "fc_storm.grib").load().isel(number=0, drop=True)
            yield from grid_rows_of(label, data.drop_sel(number=0), fine, "high-resolution run, not the truth")


def grid_rows_of(label: str, members: xr.Dataset, truth: xr.Dataset, against: str) -> Iterator[tuple[str, ...]]:
    for name, array in members.data_vars.items():
        levels = [int(level) for level in array["level"].values] if "level" in array.dims else [None]
        for lead in array["prediction_timedelta"].values:
            for level in levels:
                at = {"prediction_timedelta": lead} | ({} if level is None else {"level": level})
                forecast, observed = array.sel(at, drop=True), truth[name].sel(at, drop=True)
                if observed.isnull().all():
                    continue
                hours = int(lead / np.timedelta64(1, "h"))
                place = f"{NAMES[str(name)]}" + (f" at {level} hPa" if level else "") + (f", {hours} h" if hours else "")
                yield row(f"{label}, {place}", against, forecast.sizes["number"], observed.size, grid_scores(forecast, observed))


def grid_scores(forecast: xr.DataArray, truth: xr.DataArray) -> dict[str, float]:
    """Scores weighted by area."""
    weights = area_weights(forecast["latitude"])
    dims = list(truth.dims)

    def mean(values: xr.DataArray) -> float:
        return float(values.astype(np.float64).weighted(weights).mean(dims))

    pair = spread_skill(forecast, truth, dim=dims, weights=weights)
    return {
        "crps": mean(crps(forecast, truth)),
        "crps_ecdf": mean(crps(forecast, truth, estimator="ecdf")),
        "mae": mean(abs(forecast.astype(np.float64).median("number") - truth)),
        **{name: float(pair[name]) for name in ("rmse", "spread", "ssr")},
        "below": mean(truth < forecast.min("number")),
        "above": mean(truth > forecast.max("number")),
    }


def row(
    label: str, truth: str, members: int, n: int, values: dict[str, float], interval: tuple[float, float] = (np.nan, np.nan)
) -> tuple[str, ...]:
    digits = 1 if values["crps"] > 20 else 3
    fair = f"{values['crps']:.{digits}f}" + (
        f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if np.isfinite(interval[0]) else ""
    )
    plain = [f"{values[name]:.{digits}f}" for name in ("crps_ecdf", "mae", "rmse", "spread")]
    shares = f"{values['below']:.3f} / {values['above']:.3f}"
    return (label, truth, str(members), f"{n}", fair, *plain, f"{values['ssr']:.2f}", shares)


if __name__ == "__main__":
    main()
