"""Checkpoints: what is saved comes back, equal content has equal bytes, and a damaged or foreign file gets one clear message."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_pipeline.disk import sha256
from data_pipeline.errors import InputError
from models import checkpoint
from models.checkpoint import build, load, read_tensors, save
from models.contract import Spec
from tests.toys import network, spec_of, weather


@pytest.fixture(scope="module")
def spec() -> Spec:
    return spec_of(weather(steps=40), position=0)


@pytest.fixture
def saved(spec: Spec, tmp_path: Path) -> Path:
    return save(tmp_path / "checkpoint.safetensors", spec, network(spec).state_dict(), {"data": "a toy world", "iteration": 7})


def test_weights_spec_and_provenance_come_back(saved: Path, spec: Spec) -> None:
    generator = load(saved)
    for name, value in network(spec).state_dict().items():
        assert torch.equal(generator.state_dict()[name], value)
    assert generator.spec.as_dict() == Spec.from_dict(json.loads(json.dumps(spec.as_dict()))).as_dict()
    assert generator.spec.training_period == "2001-01-01T00/2001-01-20T12"
    assert (generator.provenance["data"], generator.provenance["iteration"]) == ("a toy world", 7)
    assert generator.provenance["torch"] == torch.__version__
    assert generator.sha256 == sha256(saved)
    assert not generator.training


def test_half_precision_halves_the_file_and_opens_in_float32(saved: Path, spec: Spec, tmp_path: Path) -> None:
    half = save(tmp_path / "half.safetensors", spec, network(spec).state_dict(), {}, torch.float16)
    assert half.stat().st_size < 0.7 * saved.stat().st_size
    for name, value in load(half).state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, network(spec).state_dict()[name], rtol=1e-3, atol=1e-6)


def test_in_bfloat16_weights_are_cast_and_scales_are_not(saved: Path) -> None:
    low, exact = load(saved, precision="bfloat16"), load(saved)
    assert (low.compute_dtype, exact.compute_dtype) == (torch.bfloat16, torch.float32)
    assert {value.dtype for value in low.parameters()} == {torch.bfloat16}
    for (name, value), (_, other) in zip(low.named_buffers(), exact.named_buffers(), strict=True):
        assert torch.equal(value, other), name


def test_the_header_is_json_and_readable_without_any_library(saved: Path) -> None:
    content = saved.read_bytes()
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    assert metadata["format"] == "plumecast-checkpoint-1"
    assert json.loads(metadata["spec"])["channels"][0] == "geopotential_500"
    assert size % 8 == 0


def test_equal_content_has_equal_bytes(spec: Spec, tmp_path: Path) -> None:
    provenance = {"text": 'Zürich "q" \\ \n', "recipe": {"b": 1, "a": [2, 3]}}
    files = [save(tmp_path / f"{i}.safetensors", spec, network(spec).state_dict(), provenance) for i in range(8)]
    assert len({file.read_bytes() for file in files}) == 1
    assert load(files[0]).provenance["text"] == provenance["text"]


def test_others_may_read_it_as_the_umask_allows(spec: Spec, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        made = save(tmp_path / "open.safetensors", spec, network(spec).state_dict(), {})
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_file(saved: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save(saved, spec, network(spec, seed=1).state_dict(), {})
    assert saved.read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_named(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"checkpoint.safetensors cannot be read as safetensors .* may be cut short"):
        load(saved)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.safetensors not found; train one with `plumecast train RECIPE`"):
        load(tmp_path / "none.safetensors")


def test_a_pickle_is_not_opened(tmp_path: Path, spec: Spec) -> None:
    torch.save(network(spec).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load(tmp_path / "model.pt")


def test_safetensors_of_somebody_else_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"not a plumecast checkpoint \(format 'pt', expected 'plumecast-checkpoint-1'\)"):
        load(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, spec: Spec, value: float) -> None:
    weights = network(spec).state_dict()
    weights["net.head.conv.bias"][1] = value
    save(tmp_path / "bad.safetensors", spec, weights, {})
    with pytest.raises(InputError, match=r"tensor net.head.conv.bias holds values that are not finite"):
        load(tmp_path / "bad.safetensors")


def test_weights_that_do_not_fit_the_spec_are_refused(tmp_path: Path, spec: Spec) -> None:
    weights = network(spec).state_dict()
    weights.pop("net.head.conv.bias")
    save(tmp_path / "bad.safetensors", spec, weights, {})
    with pytest.raises(InputError, match=r"does not fit its own spec: (.|\n)*net.head.conv.bias"):
        load(tmp_path / "bad.safetensors")


def test_a_family_or_a_device_that_does_not_exist_is_refused(saved: Path, spec: Spec) -> None:
    with pytest.raises(InputError, match="model family 'oracle' is not known; choose from crps"):
        build(Spec.from_dict({**spec.as_dict(), "family": "oracle"}))
    with pytest.raises(InputError, match="device 'abacus' cannot be used here"):
        load(saved, "abacus")


def test_reading_a_folder_is_an_error_for_the_person(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_tensors(tmp_path)
