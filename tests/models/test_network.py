"""The one dial: presets of both backbones, what fills them, what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.backbones.network import PRESETS, NetworkOptions, network
from models.backbones.transformer import Transformer
from models.backbones.unet import UNet
from models.increments import FieldOptions, Increments
from tests.toys import spec_of, weather


@pytest.mark.parametrize("backbone", ["unet", "transformer"])
def test_every_backbone_has_the_same_four_sizes_each_larger_than_the_one_before(backbone: str) -> None:
    sizes = PRESETS[backbone]
    assert list(sizes) == ["tiny", "small", "base", "large"]
    widths = [sum(size["widths"]) for size in sizes.values()]
    assert widths == sorted(set(widths))
    for preset in sizes:
        assert NetworkOptions(backbone=backbone, preset=preset).filled()["patch"] in (1, 2)


@pytest.mark.parametrize("backbone", ["unet", "transformer"])
def test_a_preset_fills_what_is_not_given(backbone: str) -> None:
    options = NetworkOptions(backbone=backbone, preset="tiny", blocks=5).filled()
    assert options == PRESETS[backbone]["tiny"] | {
        "backbone": backbone, "preset": "tiny", "blocks": 5, "dropout": 0.0, "position": 8,
    }  # fmt: skip


@pytest.mark.parametrize(("backbone", "kind", "widths"), [("unet", UNet, (8, 16)), ("transformer", Transformer, (16,))])
def test_both_are_made_by_the_same_call_and_know_the_poles(backbone: str, kind: type, widths: tuple[int, ...]) -> None:
    spec = spec_of(weather())
    increments = Increments(spec, FieldOptions())
    options = NetworkOptions(backbone=backbone, widths=widths, patch=2, blocks=1, position=1)
    made = network(spec, options, increments.planes, 4, vector=3, local=2, pole_signs=increments.pole_signs)
    assert isinstance(made, kind)
    assert made.local_shape[0] == 2
    assert made.pole_signs is not None
    assert made.pole_signs.tolist() == [1, 1, -1, 1] * 2 + [1] * 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [12]}, "multiple of 8"),
        ({"widths": []}, "multiple of 8"),
        ({"backbone": "transformer", "widths": [64, 128]}, "the transformer has one width"),
        ({"patch": 4}, "the U-Net takes 1 or 2"),
        ({"patch": 3}, "patch"),
        ({"backbone": "mlp"}, "'unet' or 'transformer'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkOptions.model_validate(options)
