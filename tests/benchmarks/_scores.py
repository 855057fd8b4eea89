"""Numbers read from the states of the whole grid: scores with intervals, tails, shapes of spectra."""

from __future__ import annotations

import numpy as np
import xarray as xr

from verification.readout import ratios, region_sums, skill
from verification.significance import block_length, intervals, resample_counts
from verification.spectra import spectral_divergence

SAMPLES = 500


def numbers(state: xr.Dataset, reference: xr.Dataset) -> xr.Dataset:
    """crps (one member: MAE), ssr, rmse, ratio (CRPS over the reference's on the same dates), each but crps with *_lower and
    *_upper, and n, by channel and lead."""
    rows, members = region_sums(state), int(state.attrs["members"])
    table, own, limits = ratios(rows.sum("time"), members), intervals(state), intervals(state, reference)
    found = {"crps": table["crps" if members > 1 else "crps_ecdf"], "rmse": table["rmse"], "ssr": table["ssr"]}
    found |= {"ratio": 1 - skill(state, reference)["crpss"], "n": (rows["weight"] > 0).sum("time")}
    found |= {f"{name}_{side}": own[f"{name}_{side}"] for name in ("rmse", "ssr") for side in ("lower", "upper")}
    found |= {"ratio_lower": 1 - limits["crpss_upper"], "ratio_upper": 1 - limits["crpss_lower"]}
    return xr.Dataset({name: array.drop_attrs() for name, array in found.items()}).assign_attrs(state.attrs)


def of_tail(state: xr.Dataset, event: str) -> xr.Dataset:
    """The state whose CRPS is the threshold-weighted one of an event: its sums in the place of those of the CRPS."""
    tails = {name: state[f"tail_{name}"].sel(event=event, drop=True) for name in ("weight", "abs_error", "gini")}
    moved = {name: array.rename(zone="cell").assign_coords(cell=state["cell"]) for name, array in tails.items()}
    return state.assign(moved)


def shape_of_spectra(state: xr.Dataset) -> xr.Dataset:
    """Means over initialisations: forecast_power, truth_power (channel, drawn_lead, wavenumber), limits of their ratio, and the
    divergence of the finest scales (0.9 of the largest wavenumber and above) with its limits; n initialisations."""
    power = state[["forecast_power", "truth_power"]]
    mean = power.mean("time")
    drawn = _resampled(power)
    ratio = drawn["forecast_power"] / drawn["truth_power"]
    limits = ratio.quantile([0.025, 0.975], "sample", skipna=True)
    divergence = spectral_divergence(mean["forecast_power"], mean["truth_power"])
    spread = spectral_divergence(drawn["forecast_power"], drawn["truth_power"])
    bounds = spread.quantile([0.025, 0.975], "sample", skipna=True)
    sides = ((0, "lower"), (1, "upper"))
    found = {"forecast_power": mean["forecast_power"], "truth_power": mean["truth_power"], "divergence": divergence}
    found |= {f"ratio_{side}": limits.isel(quantile=i, drop=True) for i, side in sides}
    found |= {f"divergence_{side}": bounds.isel(quantile=i, drop=True) for i, side in sides}
    named = {name: array.drop_vars("kept", errors="ignore").drop_attrs() for name, array in found.items()}
    return xr.Dataset(named).assign(n=power["truth_power"].isel(wavenumber=0).notnull().sum("time"))


def _resampled(power: xr.Dataset) -> xr.Dataset:
    """Means over resampled initialisations, (channel, drawn_lead, wavenumber, sample), blocks as long as the lead."""
    times = power["time"].values
    found = []
    for index, lead in enumerate(power["drawn_lead"].values):
        rng = np.random.default_rng([0, index])
        counts = xr.DataArray(
            resample_counts(times.size, block_length(times, lead), SAMPLES, rng).astype("f8"), dims=("sample", "time")
        )
        rows = power.isel(drawn_lead=[index])
        sums = rows.fillna(0).map(xr.dot, args=(counts,), dim="time")
        found.append(sums / xr.dot(rows["truth_power"].notnull().astype("f8"), counts, dim="time"))
    return xr.concat(found, "drawn_lead")
