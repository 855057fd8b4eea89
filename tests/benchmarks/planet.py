"""How long does a simulated year take, and is its climate sane? Needs the extra simulate.

    python -m tests.benchmarks planet            # times, table and docs/planet_climate.png; about 8 minutes

A year with every output (23 fields, 6-hourly) on one core, from rest with its spin-up; then thirty days of two seeds, one after
the other on one core and side by side on two. The climate is that of the year just made.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import xarray as xr

mpl.use("Agg")
import matplotlib.pyplot as plt

from data_pipeline.grid import Grid
from data_pipeline.opening import open_analysis

FIGURE = Path("docs/planet_climate.png")
SEASONS = {"DJF": (12, 1, 2), "JJA": (6, 7, 8)}
COLOURS = {"DJF": "#0072b2", "JJA": "#d55e00"}
PAIR_DAYS = 30


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        year = folder / "year"
        seconds = run([(year, 0, ["nature.years=1"])], [0])
        print(f"a year with its spin-up of 153 days, on one core, from the first import: {seconds:.0f} s", flush=True)
        spin_up = run([(folder / "spin_up", 0, ["nature.days=1"])], [0])
        print(f"  of which the spin-up, imports and compilation take {spin_up:.0f} s: the year itself {seconds - spin_up:.0f} s")
        pair_times(folder)
        data = open_analysis(year / "analysis.zarr")
        table(data)
        figure(data, FIGURE)
        print(f"{FIGURE}: the climate of that year")


def pair_times(folder: Path) -> None:
    """Two runs one after the other on one core, and side by side on two."""
    short = [f"nature.days={PAIR_DAYS}", "nature.spin_up_days=1"]
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("two members side by side: not measured, there is one core")
        return
    runs = [(folder / f"one_{seed}", seed, short) for seed in (1, 2)]
    apart = sum(run([one], [0]) for one in runs)
    beside = run([(folder / f"two_{seed}", seed, short) for seed in (1, 2)], [0, 1])
    print(
        f"two runs of {PAIR_DAYS} days: {apart:.0f} s one after the other on one core, {beside:.0f} s side by side on two "
        f"({apart / beside:.2f} times as fast)"
    )


def run(runs: list[tuple[Path, int, list[str]]], cores: list[int]) -> float:
    """Seconds until nature runs (folder, seed, settings), each in a process bound to one core, have all ended."""
    available = sorted(os.sched_getaffinity(0))
    start = time.perf_counter()
    children = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "plumecast", "data", "simulate", "--nature", "1", "--out", str(folder)),
                *(part for setting in [f"nature.seed={seed}", *settings] for part in ("--set", setting)),
            ],
            preexec_fn=lambda core=core: os.sched_setaffinity(0, {available[core]}),
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        for (folder, seed, settings), core in zip(runs, cores, strict=True)
    ]
    codes = [child.wait() for child in children]
    if any(codes):
        raise SystemExit("a nature run failed")
    return time.perf_counter() - start


def table(data: xr.Dataset) -> None:
    """Where the jets blow and how warm and wet it is."""
    for season in SEASONS:
        for level in (250, 850):
            wind = zonal(data["u_component_of_wind"].sel(level=level), season)
            south, north = wind.sel(latitude=slice(None, 0)), wind.sel(latitude=slice(0, None))
            found = [f"{float(half.max()):.0f} m/s at {float(half['latitude'][half.argmax()]):.0f}" for half in (south, north)]
            print(f"zonal-mean wind, {level} hPa, {season}: {' and '.join(found)} degrees north")
    warmth = area_mean(data["2m_temperature"]).resample(time="1MS").mean()
    coldest, warmest = int(warmth["time.month"][warmth.values.argmin()]), int(warmth["time.month"][warmth.values.argmax()])
    print(
        f"2 m temperature, global: {float(warmth.mean()):.2f} K; coldest month {coldest} ({float(warmth.min()):.2f} K), "
        f"warmest {warmest} ({float(warmth.max()):.2f} K)"
    )
    rain = daily_rain(data)
    belt = rain.mean(["time", "longitude"])
    place = float(belt["latitude"][belt.values.argmax()])
    print(f"precipitation: {float(area_mean(rain).mean()):.2f} mm/day; the belt {float(belt.max()):.1f} mm/day at {place:.0f}")
    for season in SEASONS:
        eddies = storminess(data, season)
        north = eddies.sel(latitude=slice(30, 70))
        print(
            f"2 to 6 day std of 500 hPa height, 30-70N, {season}: up to {float(north.max()):.0f} m at "
            f"{float(north['latitude'][north.max('longitude').argmax()]):.0f}N"
        )


def figure(data: xr.Dataset, path: Path) -> None:
    """Jets, storm tracks, the seasonal cycle and the rain belt on one page."""
    panels, axes = plt.subplots(2, 3, figsize=(14, 7.6), constrained_layout=True)
    for season, colour in COLOURS.items():
        for level, style in ((250, "-"), (850, "--")):
            wind = zonal(data["u_component_of_wind"].sel(level=level), season)
            axes[0, 0].plot(wind["latitude"], wind, style, color=colour, label=f"{level} hPa, {season}")
        rain = daily_rain(data)
        rain = rain.sel(time=rain["time.month"].isin(SEASONS[season])).mean(["time", "longitude"])
        axes[1, 0].plot(rain["latitude"], rain, color=colour, label=season)
    axes[0, 0].set(title="Zonal-mean eastward wind", xlabel="latitude (degrees north)", ylabel="m s$^{-1}$")
    axes[1, 0].set(title="Zonal-mean precipitation", xlabel="latitude (degrees north)", ylabel="mm day$^{-1}$", ylim=(0, None))
    land = data["land_sea_mask"]
    for panel, season in zip(axes[0, 1:], SEASONS, strict=True):
        eddies = storminess(data, season)
        mesh = panel.pcolormesh(eddies["longitude"], eddies["latitude"], eddies, cmap="YlGnBu", vmin=0, vmax=80)
        panel.contour(land["longitude"], land["latitude"], land, levels=[0.5], colors="0.3", linewidths=0.7)
        panel.set(
            title=f"Storm tracks: 2-6 day std of 500 hPa height, {season}", xlabel="longitude (degrees east)", ylabel="latitude"
        )
    panels.colorbar(mesh, ax=axes[0, 1:], label="m", shrink=0.8)
    for name, band, colour in (("45-55N", (45, 55), "#0072b2"), ("5S-5N", (-5, 5), "#009e73"), ("45-55S", (-55, -45), "#d55e00")):
        warmth = data["2m_temperature"].sel(latitude=slice(*band)).mean(["latitude", "longitude"]).resample(time="5D").mean()
        axes[1, 1].plot(warmth["time"], warmth - 273.15, color=colour, label=name)
    axes[1, 1].set(title="2 m temperature through the year", ylabel="degrees Celsius")
    axes[1, 1].xaxis.set_major_formatter(mpl.dates.DateFormatter("%b"))
    rain = daily_rain(data).mean("time")
    mesh = axes[1, 2].pcolormesh(rain["longitude"], rain["latitude"], rain, cmap="YlGnBu", vmin=0, vmax=12)
    axes[1, 2].contour(land["longitude"], land["latitude"], land, levels=[0.5], colors="0.3", linewidths=0.7)
    axes[1, 2].set(title="Annual precipitation", xlabel="longitude (degrees east)", ylabel="latitude")
    panels.colorbar(mesh, ax=axes[1, 2], label="mm day$^{-1}$", shrink=0.8)
    for panel in (axes[0, 0], axes[1, 0], axes[1, 1]):
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in (axes[0, 0], axes[1, 0]):
        panel.set_xlim(-90, 90)
        panel.set_xticks(range(-90, 91, 30))
    panels.suptitle("Climate of the simulated planet: one year of SPEEDY at T31, not real weather")
    panels.savefig(path, dpi=110)


def zonal(field: xr.DataArray, season: str) -> xr.DataArray:
    return field.sel(time=field["time.month"].isin(SEASONS[season])).mean(["time", "longitude"]).compute()


def area_mean(field: xr.DataArray) -> xr.DataArray:
    weights = xr.DataArray(Grid.of(field).area_weights, dims=("latitude", "longitude"))
    return (field.astype("f8") * weights.values).mean(["latitude", "longitude"]).compute()


def daily_rain(data: xr.Dataset) -> xr.DataArray:
    name = next(str(name) for name in data.data_vars if str(name).startswith("total_precipitation"))
    hours = int(name.rsplit("_", 1)[1].removesuffix("hr"))
    return (data[name] * (1000 * 24 / hours)).compute()


def storminess(data: xr.Dataset, season: str) -> xr.DataArray:
    """Standard deviation of 500 hPa height (m) in the band of 2 to 6 days, in one season."""
    height = data["geopotential"].sel(level=500).astype("f8").compute() / 9.80665
    step = float((height["time"].values[1] - height["time"].values[0]) / np.timedelta64(1, "D"))
    frequency = np.fft.rfftfreq(height.sizes["time"], step)
    spectrum = np.fft.rfft(height.values, axis=0) * ((frequency >= 1 / 6) & (frequency <= 1 / 2))[:, None, None]
    band = height.copy(data=np.fft.irfft(spectrum, n=height.sizes["time"], axis=0))
    return band.sel(time=band["time.month"].isin(SEASONS[season])).std("time")


if __name__ == "__main__":
    main()
