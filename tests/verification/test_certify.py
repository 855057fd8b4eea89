"""The certificate passes as the scores are, and names the check that fails when any of them is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import GateError, InputError
from verification import accumulate, certify, decomposition, distribution, events, kernels, policy, readout, scores
from verification import known_answers as answers
from verification.certify import Certificate, Check

Patch = pytest.MonkeyPatch


def biased_pairs(patch: Patch) -> None:
    """M instead of M - 1 in the mean difference of the members."""
    terms = kernels.crps_terms

    def wrong(members: np.ndarray, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
        abs_error, gini = terms(members, *rest)
        return abs_error, gini * (members.shape[1] - 1) / members.shape[1]

    patch.setattr(kernels, "crps_terms", wrong)


def statistics(patch: Patch, change: Callable[[Any, int], Any]) -> None:
    found = kernels.point_statistics
    patch.setattr(kernels, "point_statistics", lambda members, *rest: change(found(members, *rest), members.shape[1]))


def biased_variance(patch: Patch) -> None:
    """M instead of M - 1 in the variance."""
    statistics(patch, lambda found, size: found._replace(variance=found.variance * (size - 1) / size))


def strict_ties(patch: Patch) -> None:
    """Only members strictly below the truth count."""
    statistics(patch, lambda found, size: found._replace(ties=found.ties * 0))


def wrong_error(patch: Patch) -> None:
    statistics(patch, lambda found, size: found._replace(error=1.05 * found.error))


def missing_scored(patch: Patch) -> None:
    """A missing truth taken for 0 wherever it comes as NaN."""
    blocks = [(distribution, "_crps_block"), (scores, "_moment_block"), (scores, "_rank_block"), (decomposition, "_bins_block")]
    for module, name in (*blocks, (events, "count_events")):
        function = getattr(module, name)

        def filled(members: Any, truth: Any, *rest: Any, function: Any = function, **options: Any) -> Any:
            known = truth.fillna(0) if isinstance(truth, xr.DataArray) else np.nan_to_num(truth)
            return function(members, known, *rest, **options)

        patch.setattr(module, name, filled)


def in_float32(patch: Patch) -> None:
    """Sums in the precision of the fields."""

    def block(members: np.ndarray, truth: np.ndarray, pair_weight: float, **_: Any) -> np.ndarray:
        size = members.shape[-1]
        ordered = np.sort(members, axis=-1).astype(np.float32)
        weights = (2 * np.arange(size) - size + 1).astype(np.float32)
        pairs = 2 * (weights * ordered).sum(-1) / np.float32(max(size * (size - 1), 1))
        return (np.abs(members - truth[..., None]).mean(-1) - np.float32(pair_weight) * pairs / 2).astype(np.float64)

    patch.setattr(distribution, "_crps_block", block)

    def moments(members: np.ndarray, truth: np.ndarray, **_: Any) -> np.ndarray:
        mean = members.mean(-1)
        variance = ((members**2).mean(-1) - mean**2) * members.shape[-1] / (members.shape[-1] - 1)
        return np.stack([mean - truth, variance, np.full(truth.shape, 1 + 1 / members.shape[-1])], axis=-1).astype(np.float64)

    patch.setattr(scores, "_moment_block", moments)


def not_clipped(patch: Patch) -> None:
    """The threshold-weighted CRPS without its threshold."""
    patch.setattr(distribution, "_clip_block", lambda values, lower, upper, **_: values)


def normal_doubled(patch: Patch) -> None:
    block = distribution._gaussian_block
    patch.setattr(distribution, "_gaussian_block", lambda *inputs: 2 * block(*inputs))


def parts_of_the_means(patch: Patch) -> None:
    """Hersbach's parts with M + 1 instead of M."""
    function = decomposition.hersbach

    def wrong(*sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reliability, potential, total = function(*sums)
        return 1.01 * reliability, 1.01 * potential, 1.01 * total

    patch.setattr(decomposition, "hersbach", wrong)
    sample = decomposition._sample_crps
    patch.setattr(decomposition, "_sample_crps", lambda *inputs, **options: 2 * sample(*inputs, **options))


def bins_by_their_centres(patch: Patch) -> None:
    """Forecast probabilities by bin centres."""
    patch.setattr(events, "_probability", lambda counts: xr.DataArray(
        (np.arange(counts.sizes["members_forecasting"]) + 0.5) / counts.sizes["members_forecasting"], dims="members_forecasting"
    ))  # fmt: skip


def one_member_more(patch: Patch) -> None:
    """The member counts of an event table shifted by one."""
    count = events._counts
    patch.setattr(events, "_counts", lambda table: count(table).roll(members_forecasting=1))


def wrong_way_round(patch: Patch) -> None:
    """Hit and false alarm rates exchanged."""
    rates = events._rates
    patch.setattr(events, "_rates", lambda counts: rates(counts).isel(observed=[1, 0]))


def no_event_at_all(patch: Patch) -> None:
    """The Brier score of single cases by the opposite event."""
    count = events.count_events

    def opposite(*fields: Any, **options: Any) -> xr.Dataset:
        found = count(*fields, **options)
        return found.assign(observed=1 - found["observed"])

    patch.setattr(events, "count_events", opposite)


def sums_of_the_state(patch: Patch) -> None:
    """Every sum of the one pass a little wrong, and no case left out."""
    function = accumulate.field_sums

    def wrong(*inputs: Any, **options: Any) -> Any:
        sums = function(*inputs, **options)
        sums.sums[:, 7] = 0.0
        sums.sums[:, 1:3] *= [[[1.001], [0.99]]]
        sums.sums[:, 3:6] *= [[[1.001], [1.002], [0.999]]]
        for table in (sums.ranks, sums.hersbach, sums.table, sums.tails):
            table[:] = table * (1 + 0.001 * np.arange(table.shape[-1]))
        return sums

    patch.setattr(accumulate, "field_sums", wrong)


def squares(patch: Patch) -> None:
    """The squared distance of members and truth."""
    terms = kernels.crps_terms
    patch.setattr(kernels, "crps_terms", lambda *inputs: (terms(*inputs)[0] ** 2, terms(*inputs)[1]))


def ranks_from_above(patch: Patch) -> None:
    statistics(patch, lambda found, size: found._replace(below=size - found.below - found.ties))


def half_the_events(patch: Patch) -> None:
    count = events._counts
    patch.setattr(events, "_counts", lambda table: count(table) * xr.DataArray([1.0, 0.5], dims="observed"))


def sound(patch: Patch) -> None:
    """Nothing is wrong."""


FAULTS: dict[Callable[[Patch], None], tuple[str, ...]] = {
    biased_pairs: (
        "fair CRPS of a perfect normal ensemble of 2",
        "fair CRPS = ecdf CRPS - mean pair difference / (2 M)",
        "ecdf CRPS agrees with properscoring",
        "CRPS of (2, 5, 3, 9), truth 4, estimator fair",
        "score state: CRPS",
    ),
    biased_variance: ("spread-skill ratio of a perfect ensemble of 2", "variance of float32 near 1e5", "score state: spread"),
    strict_ties: (
        "ranks of half-zero calibrated ensembles: largest departure in standard errors",
        "ranks of (0, 0, 1, 3), truth 0: largest error",
        "score state: ranks",
    ),
    wrong_error: ("bias of float32 near 1e5", "score state: bias", "spread-skill of four cases: rmse"),
    missing_scored: (
        "CRPS of a missing truth: cases with a score they should not have, or without",
        "Brier score of a missing truth: cases with a score they should not have, or without",
        "spread-skill ratio leaves out a missing truth",
        "ranks leaves out a missing truth",
        "event table leaves out a missing truth",
    ),
    in_float32: ("CRPS of float32 near 1e5", "variance of float32 near 1e5"),
    not_clipped: ("twCRPS above and below a threshold adds up to the CRPS", "score state: twCRPS"),
    normal_doubled: (
        "CRPS of normal distributions agrees with its closed form",
        "CRPS of normal distributions agrees with properscoring",
        "CRPS of N(0, 1), truth 0",
    ),
    parts_of_the_means: ("reliability + potential = ecdf CRPS", "decomposition of four cases: uncertainty"),
    bins_by_their_centres: ("reliability - resolution + uncertainty = Brier score",),
    one_member_more: ("Brier score of eight cases: brier", "area under the ROC curve"),
    wrong_way_round: ("economic value at cost ratio 0.1", "SEDI of hit rate 0.8, false alarm rate 0.2"),
    no_event_at_all: ("fair Brier score of 1 of 4 members, no event", "score state: event table"),
    sums_of_the_state: ("score state: potential CRPS", "score state: cases left out and counted"),
    squares: ("fair CRPS lost by biased ensembles", "fair CRPS lost by under-dispersed ensembles", "score state: ecdf CRPS"),
    ranks_from_above: ("ranks of (2, 5, 3, 9), truth 6: largest error",),
    half_the_events: ("Brier score of eight cases: resolution", "Brier score of eight cases: uncertainty"),
}


@pytest.fixture(scope="module")
def failures() -> dict[str, set[str]]:
    """{fault: names of the checks that fail with it}."""
    found = {}
    for fault in (sound, *FAULTS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(certify, "CASES", 400)  # quicker, and enough
            fault(patch)
            found[fault.__name__] = {check.name for check in certify.certify.__wrapped__().failed}
    return found


def test_the_scores_as_they_are_pass_and_are_proved_once() -> None:
    certificate = certify.certify()
    assert certificate.passed, certificate.failed
    total = len(certificate.checks)
    assert total > 80
    assert certificate.summary == f"{total} of {total} identities and known answers re-proved"
    assert set(certificate.versions) == {"plumecast", "numba", "numpy"}
    assert certify.certify() is certificate
    assert len({check.name for check in certificate.checks}) == total
    certify.require(certificate)


def test_the_certificate_is_quick_and_the_same_every_time() -> None:
    certificate = certify.certify()
    started = time.perf_counter()
    again = certify.certify.__wrapped__()
    assert time.perf_counter() - started < 2
    assert again == certificate


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_score_is_named(fault: Callable[[Patch], None], failures: dict[str, set[str]]) -> None:
    missed = set(FAULTS[fault]) - failures[fault.__name__]
    assert not missed, f"not noticed: {missed}; failed were {failures[fault.__name__]}"


def test_every_check_can_fail_and_none_does_without_a_fault(failures: dict[str, set[str]]) -> None:
    assert not failures["sound"]
    never = {check.name for check in certify.certify().checks} - set().union(*failures.values())
    assert not never


def test_a_wrong_ensemble_never_wins_within_the_error_of_its_check() -> None:
    lost = [check for check in certify.certify().checks if check.name.startswith("fair CRPS lost by")]
    assert len(lost) == 3
    assert all(check.expected > 2 * check.tolerance for check in lost)


def test_nothing_passes_by_being_missing() -> None:
    assert not Check("a", 0.0, np.nan, 1.0).passed
    assert not Check("a", 0.0, 1.0, np.nan).passed
    assert not Certificate((), {}).passed
    with pytest.raises(GateError, match="only 0 of 0"):
        certify.require(Certificate((), {}))


def test_a_failed_certificate_lists_what_failed() -> None:
    wrong = (Check("ecdf CRPS", 0.8125, 0.75, 1e-12), Check("ranks", 1.0, 1.0, 0.0))
    certificate = Certificate(wrong, {"plumecast": "1", "numba": "2", "numpy": "3"})
    assert [check.name for check in certificate.failed] == ["ecdf CRPS"]
    with pytest.raises(
        GateError, match="only 1 of 2 identities and known answers re-proved; with plumecast 1, numba 2"
    ) as raised:
        certify.require(certificate)
    assert "ecdf CRPS: expected 0.8125, found 0.75, tolerance 1e-12" in str(raised.value)
    assert "ranks" not in str(raised.value)
    assert raised.value.exit_code == 4


def test_the_packaged_answers_are_those_of_the_literature() -> None:
    found = {answer.name: answer for answer in answers.known_answers()}
    rounded = {
        "CRPS of (2, 5, 3, 9), truth 4, estimator almost_fair, alpha 0.95": 0.357291667,
        "CRPS of (2, 5, 3, 9), truth 4, estimator size, size 2": 1.291666667,
        "CRPS of (2, 5, 3, 9), truth 4, estimator size, size 50": 0.371666667,
        "Brier score of eight cases: reliability": 0.010417,
        "Brier score of eight cases: resolution": 0.104167,
        "Brier score of eight cases: fair": 0.104167,
        "economic value at cost ratio 0.1": 0.028571,
    }
    for name, expected in rounded.items():
        assert found[name].expected == pytest.approx(expected, abs=5e-7)
    assert all(abs(answer.found - answer.expected) <= answer.tolerance for answer in found.values())


def stated() -> xr.Dataset:
    state = certify._campaign()[0]
    return state.assign_attrs(policy.POLICY_TEXTS)


def test_a_state_that_says_its_policy_is_accepted() -> None:
    certify.check_policy(stated())
    assert certify.POLICY_KEYS == ("policy_missing", "policy_ties", "policy_operator", "policy_weights")
    assert set(certify.POLICY_TEXTS) == set(certify.POLICY_KEYS)
    assert readout.scores_table(stated()).attrs["policy_ties"] == policy.POLICY_TEXTS["policy_ties"]


@pytest.mark.parametrize("key", ["members", "units", *policy.POLICY_KEYS])
def test_a_state_that_does_not_is_refused_by_name(key: str) -> None:
    state = stated()
    del state.attrs[key]
    with pytest.raises(InputError, match=f"certificate does not say its {key}; scores without a stated policy"):
        certify.check_policy(state)
    empty = {} if key in ("members", "units") else {"policy_ties": "", "policy_missing": ""}
    if empty:
        with pytest.raises(InputError, match="policy_missing, policy_ties"):
            certify.check_policy(stated().assign_attrs(empty))


def test_a_channel_without_units_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="does not say its units of 2m_temperature"):
        certify.check_policy(stated().assign_attrs(units='{"2m_temperature": ""}'))
