"""The sample forecast in a checkpoint: it proves that an installation computes the same, and finds the one that does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import xarray as xr
from typer.testing import CliRunner

import models
from data_pipeline.errors import GateError, InputError
from models import commands, proof
from models.calibration import calibrate
from models.checkpoint import PROOF, load, read_tensors, save, write_tensors
from models.contract import Spec
from models.post_processing import read_table
from tests.toys import REGION, network, period, spec_of, weather


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return weather(steps=40)


@pytest.fixture(scope="module")
def spec(data: xr.Dataset) -> Spec:
    return spec_of(data, period(data, 0, 25), period(data, 26, 39), diagnostic=("total_precipitation_12hr",))


@pytest.fixture
def plain(spec: Spec, tmp_path: Path) -> Path:
    """A checkpoint without a sample forecast."""
    return save(tmp_path / "checkpoint.safetensors", spec, network(spec, size=0.05).state_dict(), {"data": "toy"}, torch.float16)


@pytest.fixture
def signed(plain: Path) -> Path:
    """A checkpoint with a sample forecast."""
    proof.attach(plain)
    return plain


def altered(path: Path, size: float) -> None:
    """Move every weight a little and keep the sample forecast."""
    header, tensors = read_tensors(path)
    generator = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        if not name.startswith(PROOF):
            value.add_((size * torch.randn(value.shape, generator=generator)).to(value.dtype))
    write_tensors(path, tensors, header)


def test_the_same_installation_computes_the_same_bytes(signed: Path) -> None:
    verdict = proof.prove(signed)
    assert verdict.identical
    assert str(verdict) == "bit-identical"
    assert verdict.difference == 0
    assert verdict.made_with["torch"] == torch.__version__


def test_weights_and_provenance_are_left_as_they_are(plain: Path) -> None:
    before = load(plain)
    proof.attach(plain)
    after = load(plain)
    assert after.provenance == before.provenance
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in after.state_dict().items())
    content = plain.read_bytes()
    proof.attach(plain)
    assert plain.read_bytes() == content


def test_other_rounding_is_equal_within_the_tolerance_and_other_weights_are_not(signed: Path) -> None:
    header, tensors = read_tensors(signed)
    tensors[f"{PROOF}fields"] = tensors[f"{PROOF}fields"] * (1 + 1e-6)
    about = json.loads(header["proof"]) | {"sha256": "0" * 64}
    write_tensors(signed, tensors, header | {"proof": json.dumps(about)})
    verdict = proof.prove(signed)
    assert not verdict.identical
    assert 0 < verdict.difference < 1e-3
    assert "of the tendency std (tolerance 0.01)" in str(verdict)

    altered(signed, 0.1)
    with pytest.raises(GateError, match=r"does not compute what it did: .* differs by .* It was made with torch"):
        proof.prove(signed)


def test_a_forecast_that_is_not_finite_fails(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = proof.sample_forecast
    monkeypatch.setattr(proof, "sample_forecast", lambda *given, **options: plain(*given, **options) * float("nan"))
    with pytest.raises(GateError, match="differs by nan"):
        proof.prove(signed)


def test_members_and_steps_differ_and_the_fields_are_those_of_plausible_weather(spec: Spec) -> None:
    fields = proof.sample_forecast(network(spec, size=0.05))
    assert fields.shape == (2, 2, 4, 8, 16)
    assert fields.dtype == torch.float32
    assert bool(torch.isfinite(fields).all())
    assert not torch.equal(fields[:, 0], fields[:, 1])
    smooth = proof._smooth(np.random.Generator(np.random.Philox(key=0)), 500, (16, 32))
    assert smooth.std() == pytest.approx(1, abs=0.15)
    assert np.abs(np.diff(np.concatenate([smooth, smooth[..., :1]], -1))).max() < 0.5 * np.ptp(smooth)


def test_a_region_has_a_sample_forecast_too(tmp_path: Path) -> None:
    spec = spec_of(weather(REGION, steps=30), forcings=(), patch=1, widths=(8,))
    path = save(tmp_path / "region.safetensors", spec, network(spec).state_dict(), {})
    proof.attach(path)
    assert proof.prove(path).identical


def test_on_a_large_grid_it_keeps_a_part_of_the_values() -> None:
    part = proof._part(torch.zeros(2, 2, 20, 181, 360))
    assert 1000 < part.numel() <= 2 * proof.VALUES


def test_calibration_keeps_it(signed: Path, data: xr.Dataset) -> None:
    calibrate(signed, data, scales=(0.9, 1.2), inits=2, members=2, steps=2)
    assert "noise_scale" in load(signed).provenance
    assert proof.prove(signed).identical


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    commands.register(app)
    app.callback()(lambda: None)
    return app


def test_the_command_shows_what_a_checkpoint_is_and_proves_it(command: typer.Typer, plain: Path) -> None:
    def call(*arguments: str) -> str:
        result = CliRunner().invoke(command, ["checkpoint", str(plain), *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    shown = call()
    assert "family           crps," in shown
    assert "kept in float16" in shown
    assert "not fed back     total_precipitation_12hr" in shown
    assert "grid, step       16x8 global" in shown
    assert "sample forecast  none; plumecast checkpoint PATH --add-proof adds one" in shown
    with pytest.raises(InputError, match="carries no sample forecast"):
        call("--prove")
    assert "sample forecast  2 members x 2 steps, sha256 " in call("--add-proof")
    assert "sample forecast bit-identical, made with torch" in call("--prove")


@pytest.mark.parametrize("name", models.SHIPPED)
def test_shipped_checkpoints_compute_what_their_maker_did(name: str) -> None:
    path = models.shipped(name)
    assert path.stat().st_size < 8e6
    about = load(path)
    assert (about.spec.training_period, about.spec.validation_period[:4]) == ("2001-01-01T00/2005-12-31T12", "2006")
    if name == "planet-64x32-12h":  # older than proofs and calibrations
        return
    proof.prove(path)
    assert read_table(path.with_suffix(".calibration.nc")).attrs["checkpoint_sha256"] == about.sha256
