"""What families that step fields promise: conserved global means, and precipitation that is neither negative nor blurred."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data_pipeline.errors import InputError
from forecast.rollout import sample as forecast
from models.checkpoint import build
from models.contract import Spec, flat_noise_size
from models.increments import FieldOptions, Increments
from tests.toys import GLOBE, REGION, network, samples_of, spec_of, weather

RAIN = "total_precipitation_12hr"
FED_BACK = "geopotential_500", "2m_temperature", "10m_v_component_of_wind"


def rolled(spec: Spec, hours: int, steps: int = 4) -> np.ndarray:
    """Physical fields (steps + 1, member, C, H, W) of a roll-out at an interval, the analysis first."""
    generator, data = network(spec), weather()
    found = samples_of(data, spec).batch(np.array([10, 20]), steps, np.timedelta64(hours, "h"))
    frames, forcings = torch.from_numpy(found.frames), torch.from_numpy(found.forcings)
    torch.manual_seed(0)
    noise = torch.randn(steps + 1, 2, flat_noise_size(generator.noise_shapes()))
    with torch.no_grad():
        state = generator.initial(frames, forcings[:, 0], noise[0])
        state = state._replace(hours=torch.full((2,), hours)) if spec.intervals else state
        fields = [generator.fields(state)]
        for k in range(steps):
            state = generator.step(state, forcings[:, k], noise[k + 1])
            fields.append(generator.fields(state))
    return np.stack([spec.denormalise(each.numpy()) for each in fields]).astype(np.float64)


@pytest.mark.parametrize("hours", [12, 24])
@pytest.mark.parametrize("options", [{}, {"backbone": "transformer", "widths": (16,), "patch": 2}], ids=["unet", "transformer"])
def test_conserved_global_means_stay_while_the_fields_move(options: dict[str, object], hours: int) -> None:
    kept = ("geopotential_500", "2m_temperature")
    spec = spec_of(weather(), diagnostic=(RAIN,), intervals=(12, 24), conserve=kept, **options)
    fields = rolled(spec, hours)
    means = (fields * GLOBE.area_weights).mean((-2, -1))
    for i, label in enumerate(FED_BACK):
        moved = np.abs(means[1:, :, i] - means[0, :, i]).max() / spec.tendency_std[i]
        assert np.abs(fields[-1, :, i] - fields[0, :, i]).mean() > 0.1 * spec.tendency_std[i]
        assert moved < 1e-4 if label in kept else moved > 1e-2


def test_what_cannot_be_conserved_is_refused() -> None:
    spec = spec_of(weather(), diagnostic=(RAIN,))
    for label in (RAIN, "mean_sea_level_pressure"):
        with pytest.raises(InputError, match=f"model.options.conserve names {label}; fed back are {', '.join(FED_BACK)}"):
            Increments(spec, FieldOptions(conserve=(label,)))
    region = spec_of(weather(REGION), diagnostic=(RAIN,))
    with pytest.raises(InputError, match="needs a global grid"):
        Increments(region, FieldOptions(conserve=("2m_temperature",)))


def test_weights_of_what_the_model_has_not_and_negative_ones_are_refused() -> None:
    spec = spec_of(weather(), diagnostic=(RAIN,))
    Increments(spec, FieldOptions(variable_weights={"geopotential": 2.0, "geopotential_500": 3.0, RAIN: 0.0}))
    with pytest.raises(InputError, match="model.options.variable_weights names geopotental; expected of .*, geopotential, geo"):
        Increments(spec, FieldOptions(variable_weights={"geopotental": 3.0}))
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        FieldOptions(variable_weights={"geopotential": -1.0})


def test_precipitation_is_never_negative_and_dry_is_exactly_zero() -> None:
    data = weather()
    spec = spec_of(data, diagnostic=(RAIN,))
    made = forecast(network(spec), data, [data["time"].values[20]], days=2, members=6)[RAIN].values
    assert (made >= 0).all()
    assert 0.05 < (made == 0).mean() < 0.95


def test_members_are_transformed_back_one_by_one_and_their_mean_is_not_dry() -> None:
    """The mean of precipitation is that of its members; the transform of their mean logarithm would lack exp(s^2 / 2)."""
    spec = spec_of(weather(), diagnostic=(RAIN,))
    rain = spec.channels.index(RAIN)
    members = torch.randn(400, 4, 8, 16, generator=torch.Generator().manual_seed(0)).numpy() + 3
    together = spec.denormalise(members)
    for k in (0, 7):
        assert np.array_equal(together[k], spec.denormalise(members[k : k + 1])[0])
    logs = members[:, rain].astype(np.float64) * spec.std[rain] + spec.mean[rain]
    np.testing.assert_allclose(together[:, rain], np.expm1(np.maximum(logs, 0)) * 1e-3, rtol=1e-6)
    dry = spec.denormalise(members.mean(0, keepdims=True))[0, rain]
    ratio = (together[:, rain].mean(0) + 1e-3) / (dry + 1e-3)
    np.testing.assert_allclose(ratio, np.exp(logs.var(0) / 2), rtol=0.1)
    assert (together[:, rain].mean(0) > dry).all()


@torch.no_grad()
def test_precipitation_does_not_remember_what_fell_before() -> None:
    """It is what the network says, in units of its own std: no increment to smear, nothing fed back."""
    spec = spec_of(weather(), diagnostic=(RAIN,))
    increments, rain = Increments(spec, FieldOptions()), spec.channels.index(RAIN)
    frames, out = torch.randn(2, 2, 4, 8, 16), torch.randn(2, 4, 8, 16)
    assert torch.equal(increments.advance(frames, out)[:, -1, rain], out[:, rain])
    assert sum(plane == RAIN for plane in increments.planes) == 0


def test_several_intervals_need_their_own_step_among_them() -> None:
    spec = spec_of(weather(), intervals=(12, 24))
    for hours in (12, 24):
        assert Increments(replace(spec, step_hours=hours), FieldOptions()).step_hours == hours
    assert build(spec).increments.n_scalars == 2
