"""Post-hoc calibration: wrong ensembles are mended on unseen dates, a right one is left alone, nothing breaks at the edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import approx_fprime
from scipy.stats import norm

from data_pipeline.errors import InputError
from data_pipeline.schema import Channel
from models import post_processing
from models.post_processing import COEFFICIENTS, Correction, Fitting, Method, Pairs, band_of, fit, read_table, write_table
from tests.toys import GLOBE

T2M, RAIN = Channel("2m_temperature"), Channel("total_precipitation_12hr")
LEADS = np.timedelta64(12, "h") * np.arange(1, 4)
BANDS = band_of(GLOBE.latitude)
MEANS = np.array([GLOBE.latitude[band == BANDS].mean() for band in range(5)])
DATES, POINTS, MEMBERS = 30, 12, 10


def fields_of(
    rng: np.random.Generator, bias: float, slope: float, spread: float, members: int = MEMBERS
) -> tuple[np.ndarray, ...]:
    """Members (L, D, M, H, W) and truth (L, D, H, W): a signal both know, and errors of std 1 K for the truth."""
    shape = (LEADS.size, DATES, *GLOBE.shape)
    signal = 3 * rng.normal(size=shape)
    climate = 280 - 20 * np.abs(np.sin(np.deg2rad(GLOBE.latitude)))[:, None]
    truth = climate + signal + rng.normal(size=shape)
    shocks = rng.normal(size=(LEADS.size, DATES, members, *GLOBE.shape))
    return (climate + bias + slope * signal)[:, :, None] + spread * shocks, truth


def table_of(members: np.ndarray, truth: np.ndarray, method: Method, channel: Channel = T2M) -> xr.Dataset:
    """A calibration fitted at points of each band."""
    rng = np.random.default_rng(5)
    points = np.stack(
        [
            np.stack([rng.choice(np.flatnonzero(np.repeat(band == BANDS, GLOBE.shape[1])), POINTS, False) for _ in range(DATES)])
            for band in range(5)
        ]
    )
    flat, own = members.reshape(*members.shape[:3], -1), truth.reshape(*truth.shape[:2], -1)
    dates = np.arange(DATES)[None, :, None]
    pairs = Pairs(flat.transpose(0, 1, 3, 2)[:, dates, points].astype("f4"), own[:, dates, points].astype("f4"))
    wanted = Fitting([channel], LEADS, MEANS, GLOBE)
    return fit([pairs], points, truth.mean((0, 1))[None], wanted, method)


def applied(table: xr.Dataset, members: np.ndarray, channel: Channel = T2M) -> np.ndarray:
    correction = Correction(table)
    made = [
        [correction(lead, [channel], each[:, None].astype("f4"))[:, 0] for each in own]
        for lead, own in zip(LEADS, members, strict=True)
    ]
    return np.array(made)


def crps(members: np.ndarray, truth: np.ndarray) -> float:
    """Standard CRPS: the empirical distribution of the members, mean over all points."""
    m = members.shape[2]
    ordered = np.sort(members, 2)
    gini = (ordered * (2 * np.arange(1, m + 1) - m - 1).reshape(-1, 1, 1)).sum(2) / m**2
    return float(np.abs(members - truth[:, :, None]).mean() - gini.mean())


def ssr(members: np.ndarray, truth: np.ndarray) -> float:
    m = members.shape[2]
    return float(np.sqrt((m + 1) / m * members.var(2, ddof=1).mean() / ((members.mean(2) - truth) ** 2).mean()))


WRONG = {
    "too cold, too narrow": (-1.5, 1.0, 0.4),
    "too wide": (0.0, 1.0, 2.5),
    "damped, warm, narrow": (2.0, 0.7, 0.6),
}


@pytest.mark.parametrize(
    ("method", "wrong"), [("mbm", "damped, warm, narrow"), ("mbm", "too wide"), ("emos", "too cold, too narrow")]
)
def test_a_wrong_ensemble_is_mended_on_unseen_dates(method: Method, wrong: str) -> None:
    """Its score comes near that of the ensemble that knows the true distribution; bias, spread and ranks are right."""
    table = table_of(*fields_of(np.random.default_rng(1), *WRONG[wrong]), method)
    members, truth = fields_of(np.random.default_rng(2), *WRONG[wrong])
    ideal, same_truth = fields_of(np.random.default_rng(2), 0.0, 1.0, 1.0)
    np.testing.assert_array_equal(truth, same_truth)
    made = applied(table, members)
    error = crps(ideal, truth)
    noise_of_mean = 1.25 if wrong == "too wide" else 1.02  # 10 members of std 2.5 K cannot tell the signal better
    assert crps(made, truth) < noise_of_mean * error < crps(members, truth)
    assert abs(float((made.mean(2) - truth).mean())) < 0.1
    low, high = (0.95, 1.05) if method == "mbm" else (0.85, 1.02)  # quantiles k / 11 are a little narrow
    assert low < ssr(made, truth) < high
    ranks = (made < truth[:, :, None]).sum(2)
    share = np.bincount(ranks.ravel(), minlength=MEMBERS + 1) * (MEMBERS + 1) / ranks.size
    assert (np.abs(share - 1) < 0.15).all()
    order = made.argsort(2, kind="stable") == members.argsort(2, kind="stable")
    assert order.mean() > 0.999, "ranks of the members, and so their fields, stay"


@pytest.mark.parametrize("method", ["mbm", "emos"])
def test_a_right_ensemble_is_left_within_noise(method: Method) -> None:
    table = table_of(*fields_of(np.random.default_rng(1), 0.0, 1.0, 1.0), method)
    members, truth = fields_of(np.random.default_rng(2), 0.0, 1.0, 1.0)
    made = applied(table, members)
    if method == "mbm":
        assert np.sqrt(((made - members) ** 2).mean()) < 0.1, "in units of its own spread"
    assert crps(made, truth) < 1.01 * crps(members, truth)


def rain(rng: np.random.Generator, dry: float, factor: float, members: int = MEMBERS) -> tuple[np.ndarray, np.ndarray]:
    """Members and truth in metres: dry in 40 % of the truth, in `dry` of the members; wet ones exponential, `factor` x 4 mm."""

    def drawn(shape: tuple[int, ...], dry: float, scale: float) -> np.ndarray:
        return np.where(rng.random(shape) < dry, 0.0, rng.exponential(scale, shape))

    shape = (LEADS.size, DATES, *GLOBE.shape)
    return drawn((LEADS.size, DATES, members, *GLOBE.shape), dry, 4e-3 * factor), drawn(shape, 0.4, 4e-3)


def test_precipitation_gets_the_distribution_of_the_analyses_drizzle_included() -> None:
    table = table_of(*rain(np.random.default_rng(1), 0.0, 2.0), "mbm", RAIN)
    members, truth = rain(np.random.default_rng(2), 0.0, 2.0)
    made = applied(table, members, RAIN)
    assert made.min() == 0
    assert abs((made == 0).mean() - 0.4) < 0.08, "drizzle that the analyses lack becomes dry"
    for level in (0.5, 0.8, 0.95, 0.99):
        np.testing.assert_allclose(np.quantile(made, level), np.quantile(truth, level), rtol=0.1, err_msg=f"quantile {level}")
    assert (np.diff(np.take_along_axis(made, members.argsort(2), 2), axis=2) >= 0).all(), "the map is monotone"


def test_rain_that_is_right_already_is_left_alone_and_dry_stays_dry() -> None:
    table = table_of(*rain(np.random.default_rng(1), 0.4, 1.0), "mbm", RAIN)
    members, _ = rain(np.random.default_rng(2), 0.4, 1.0)
    made = applied(table, members, RAIN)
    assert (made[members == 0] == 0).all()
    np.testing.assert_allclose(made.mean(), members.mean(), rtol=0.03)
    desert = table_of(np.zeros_like(members), np.zeros(members[:, :, 0].shape), "mbm", RAIN)
    np.testing.assert_allclose(applied(desert, members, RAIN), members, atol=1e-7, err_msg="never wet: nothing is known")


@pytest.mark.parametrize("method", ["mbm", "emos"])
def test_members_that_are_all_alike_lose_their_bias_and_nothing_breaks(method: Method) -> None:
    members, truth = fields_of(np.random.default_rng(1), 2.0, 1.0, 0.0)
    table = table_of(members, truth, method)
    made = applied(table, members)
    assert np.isfinite(made).all()
    assert abs(float((made.mean(2) - truth).mean())) < 0.1
    np.testing.assert_allclose(made.std(2).mean(), 0.0 if method == "mbm" else 0.85, atol=0.1)


def test_a_perfect_forecast_stays_as_it_is() -> None:
    truth = fields_of(np.random.default_rng(1), 0.0, 1.0, 1.0)[1]
    members = np.repeat(truth[:, :, None], 3, 2)
    np.testing.assert_allclose(applied(table_of(members, truth, "mbm"), members), members, atol=1e-3)


@pytest.mark.parametrize(("method", "at"), [("mbm", [0.2, 0.8, 1.3]), ("emos", [0.2, 0.8, 0.3, 1.2])])
def test_gradients_are_those_of_the_scores(method: str, at: list[float]) -> None:
    rng = np.random.default_rng(0)
    objective = post_processing.OBJECTIVES[method](rng.normal(size=(20, 5, 6)), rng.normal(size=(20, 5)))
    np.testing.assert_allclose(objective(np.array(at))[1], approx_fprime(at, lambda x: objective(x)[0], 1e-6), atol=1e-4)


def test_the_score_of_the_normal_distribution_is_that_of_its_quantiles() -> None:
    members, truth = np.array([[[-1.0, 1.0]]]), np.array([[0.7]])
    levels = (np.arange(2000) + 0.5) / 2000
    spread = norm.ppf(levels) * np.sqrt(0.5 + 2.0)
    brute = np.abs(spread - 0.7).mean() - 0.5 * np.abs(spread[:, None] - spread).mean()
    np.testing.assert_allclose(
        post_processing.OBJECTIVES["emos"](members, truth)(np.array([0, 1, 0.5, 1.0]))[0], brute, atol=1e-3
    )


def test_smoothing_over_leads_keeps_what_is_constant_and_halves_what_jumps() -> None:
    np.testing.assert_allclose(post_processing.smooth(np.ones((7, 2))), 1.0)
    jump = post_processing.smooth(np.eye(9)[4])
    np.testing.assert_allclose(jump, np.array([0, 0, 1, 4, 6, 4, 1, 0, 0]) / 16)
    np.testing.assert_allclose(post_processing.smooth(np.array([3.0])), 3.0)


def test_a_table_is_kept_in_one_small_file_and_others_are_refused(tmp_path: Path) -> None:
    table = table_of(*rain(np.random.default_rng(1), 0.2, 2.0), "mbm", RAIN)
    path = write_table(tmp_path / "x.calibration.nc", table)
    xr.testing.assert_identical(read_table(path), table)
    assert path.stat().st_size < 1e5
    assert list(tmp_path.iterdir()) == [path]
    assert set(table.attrs) >= {"method", "members", "n", "score_with"}
    assert table.attrs["n"] == DATES * POINTS
    xr.Dataset({"a": 1.0}).to_netcdf(tmp_path / "other.nc")
    (tmp_path / "torn.nc").write_bytes(b"torn")
    for name, message in (("other.nc", "is not a calibration"), ("torn.nc", "cannot be opened"), ("none.nc", "not found")):
        with pytest.raises(InputError, match=message):
            read_table(tmp_path / name)


def test_a_calibration_is_continuous_across_its_bands() -> None:
    weights = post_processing._row_weights(np.array([-70.0, -35.0, 0.0, 35.0, 70.0]), np.linspace(-90, 90, 181))
    np.testing.assert_allclose(weights.sum(0), 1.0)
    assert np.abs(np.diff(weights, axis=1)).max() < 0.03
    assert COEFFICIENTS["mbm"] == ("offset", "slope", "spread")
