"""The transformer: rotary positions on the sphere, variables embedded apart, any grid, silent at the start, for every family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from models.backbones.conditioning import Attention, Modulated, SphereRotary, cell_centres, heads_of, sinusoidal
from models.backbones.transformer import Transformer, VariableEmbedding
from models.checkpoint import build
from models.contract import Sample, Stage, flat_noise_size
from tests.toys import GLOBE, network, samples_of, spec_of, weather

POLAR = Grid(np.linspace(-90, 90, 13), np.arange(16) * 22.5)
ODD = Grid(np.linspace(-77, 77, 7), np.arange(24) * 15.0)
PLANES = ("a", "b", "a", "b", "c")  # two frames of a and b


def net(grid: Grid = GLOBE, *, seed: int = 0, **changes: Any) -> Transformer:
    """A network with all weights random: the last convolution of an untrained one is zero."""
    torch.manual_seed(seed)
    sizes = {"width": 16, "blocks": 2, "patch": 2, "vector": 4, "local": 2, "position": 2}
    made = Transformer(PLANES, 2, grid, **{**sizes, **changes}).eval()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return made


def inputs(made: Transformer, batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(batch, 5, *made.shape), torch.randn(batch, 4), torch.randn(batch, *made.local_shape)


@pytest.mark.parametrize("longitude", [np.arange(16) * 22.5, np.arange(30) * 12.0])
def test_attention_sees_differences_of_longitude_across_the_date_line_too(longitude: np.ndarray) -> None:
    torch.manual_seed(0)
    latitude = np.linspace(-80, 80, 5)
    rotary = SphereRotary(latitude, longitude, 32)
    q, k = (torch.randn(32).expand(1, 1, 5 * longitude.size, 32) for _ in range(2))
    products = (rotary(q) @ rotary(k).transpose(-1, -2)).view(5, longitude.size, 5, longitude.size)
    torch.testing.assert_close(products.roll((3, 3), (1, 3)), products, rtol=1e-4, atol=1e-4)
    assert products[0, 0, :, 0].std() > 0.1
    assert products[0, 0, 0].std() > 0.1


def test_turning_keeps_lengths_and_says_nothing_of_a_token_to_itself() -> None:
    rotary = SphereRotary(np.array([0.0, 40.0]), np.array([0.0, 100.0, 200.0]), 8)
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotary(x).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotary(x)[..., 0, :], x[..., 0, :])  # the equator at longitude 0
    with pytest.raises(ValueError, match="multiple of 4"):
        SphereRotary([0.0], [0.0], 6)


def test_turning_worked_out_by_hand() -> None:
    """Two pairs: (0, 2) turns with latitude, (1, 3) with longitude, both once around the circle here."""
    rotary = SphereRotary([30.0], [60.0], 4)
    half, root = 0.5, 3**0.5 / 2
    turned = rotary(torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)).flatten()
    torch.testing.assert_close(turned, torch.tensor([root, half, half, root]))


def test_sinusoids_tell_numbers_apart() -> None:
    values = torch.tensor([0.0, 1.0, 2.0])
    found = sinusoidal(values, 4, longest=100.0)
    expected = torch.stack([values.cos(), (values / 100).cos(), values.sin(), (values / 100).sin()], 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("width", [8, 24, 64, 72, 104, 192, 1024])
def test_heads_fit_every_width(width: int) -> None:
    heads = heads_of(width)
    assert width % (4 * heads) == 0
    assert width // heads >= min(width, 32)


def test_cells_beyond_the_end_go_on_as_the_axis_ended() -> None:
    assert cell_centres(np.array([-60.0, -20, 20, 60, 100]), 3, 2).tolist() == [-40, 40, 120]


def test_a_block_does_nothing_at_first_and_then_follows_its_conditioning() -> None:
    torch.manual_seed(0)
    block = Modulated(16, 2, 8, local=3)
    tokens, conditioning, local = torch.randn(2, 6, 16), torch.randn(2, 8), torch.randn(2, 6, 3)
    assert torch.equal(block(tokens, conditioning, None, local), tokens)
    with torch.no_grad():
        block.to_affine.weight.normal_()
    before = block(tokens, conditioning, None, local)
    assert not torch.allclose(block(tokens, -conditioning, None, local), before)
    assert not torch.allclose(block(tokens, conditioning, None, -local), before)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    own, peer = Attention(16, 2), torch.nn.MultiheadAttention(16, 2, batch_first=True)
    peer.load_state_dict(
        {
            "in_proj_weight": own.to_qkv.weight, "in_proj_bias": own.to_qkv.bias,
            "out_proj.weight": own.out.weight, "out_proj.bias": own.out.bias,
        }
    )  # fmt: skip
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(own(x, None), peer(x, x, x)[0])


@torch.no_grad()
def test_the_aggregation_is_cross_attention_over_stored_embeddings() -> None:
    """The plain form: an embedding for each variable of each token, keys and values of it, a query a head, softmax."""
    torch.manual_seed(0)
    made = VariableEmbedding(PLANES, 8, 2, 2)
    for value in made.parameters():
        value.normal_()
    x = torch.randn(1, 5, 4, 6)
    found = made(x).view(2, 3, 2, 4)  # rows, columns, heads, numbers of a head
    for row, column, head in np.ndindex(2, 3, 2):
        patch = x[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
        keys, values = [], []
        for v, name in enumerate(("a", "b", "c")):
            own = [i for i, plane in enumerate(PLANES) if plane == name]
            keys.append(sum(patch[i] @ made.to_score[i, :, head] for i in own) + made.score_of_variable[v, head])
            weights = made.to_token[head].unflatten(0, (5, 4))
            values.append(sum(patch[i] @ weights[i] for i in own) + made.token_of_variable[head, v])
        expected = 3 * torch.stack(keys).softmax(0) @ torch.stack(values)
        torch.testing.assert_close(found[row, column, head], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("grid", [GLOBE, POLAR], ids=["cells", "polar rows"])
@pytest.mark.parametrize("patch", [1, 2])
def test_turning_the_globe_turns_the_answer(grid: Grid, patch: int) -> None:
    """By whole coarse cells, once the learned position planes, which alone know where they are, are silent."""
    made = net(grid, patch=patch, polar_rows=grid is POLAR, pole_signs=torch.tensor([1.0, -1, 1, -1, 1]))
    x, vector, local = inputs(made)
    turned = x.roll(4, -1), vector, local.roll(2 // patch, -1)
    assert not torch.allclose(made(*turned), made(x, vector, local).roll(4, -1), atol=1e-3)
    made.position.zero_()
    torch.testing.assert_close(made(*turned), made(x, vector, local).roll(4, -1), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_it_knows_how_far_from_the_equator_a_token_lies() -> None:
    made = net(position=0)
    x, vector, local = inputs(made)
    assert not torch.allclose(
        made(x.roll(4, -2), vector, local.roll(1, -2)).roll(-4, -2)[..., 1:3, :], made(x, vector, local)[..., 1:3, :], atol=1e-3
    )


@torch.no_grad()
@pytest.mark.parametrize("grid", [GLOBE, POLAR, ODD, Grid(np.arange(36.0, 45.1), np.arange(-4.0, 6.6))])
@pytest.mark.parametrize("changes", [{"patch": 1}, {"patch": 2}, {"patch": 4}, {"local": 0}, {"position": 0}])
def test_any_grid_comes_out_as_it_went_in(grid: Grid, changes: dict[str, Any]) -> None:
    made = net(grid, polar_rows=grid is POLAR, **changes)
    x, vector, local = inputs(made)
    out = made(x, vector, local)
    assert out.shape == (2, 2, *grid.shape)
    assert torch.isfinite(out).all()
    cells = [(size + more) / n for size, more, n in zip(grid.shape, made.extra, made.local_shape[1:], strict=True)]
    assert cells == [2 * made.patch] * 2


def test_a_circle_that_patches_do_not_divide_is_refused_rather_than_cut() -> None:
    with pytest.raises(InputError, match="18 longitudes around the globe are not a multiple of 4, two patches of 2"):
        net(Grid(np.linspace(-80, 80, 9), np.arange(18) * 20.0))


@torch.no_grad()
def test_untrained_it_says_nothing() -> None:
    torch.manual_seed(0)
    made = Transformer(PLANES, 2, GLOBE, width=16, blocks=2, patch=2, vector=4, local=2)
    assert not made(*inputs(made)).any()


@torch.no_grad()
def test_a_row_of_the_batch_does_not_see_the_others() -> None:
    made = net()
    x, vector, local = inputs(made, batch=4)
    before = made(x, vector, local)
    x[1:], vector[1:], local[1:] = 5.0, -3.0, 2.0
    assert torch.equal(made(x, vector, local)[0], before[0])


@torch.no_grad()
@pytest.mark.parametrize("which", [1, 2])
def test_global_and_local_noise_both_reach_the_output_everywhere(which: int) -> None:
    made = net()
    arguments = list(inputs(made))
    before = made(*arguments)
    arguments[which] = -arguments[which]
    assert ((made(*arguments) - before).abs() > 1e-6).float().mean() > 0.99


@pytest.mark.parametrize("family", ["crps", "vae"])
def test_families_learn_with_it_and_every_weight_gets_a_gradient(family: str) -> None:
    data = weather()
    options = {"backbone": "transformer", "widths": (16,), "patch": 2}
    spec = replace(spec_of(data, diagnostic=("total_precipitation_12hr",), **options), family=family)
    found = samples_of(data, spec).batch(np.arange(5, 8), 2)
    sample = Sample(*(torch.from_numpy(array) for array in (found.frames, found.targets, found.forcings)))
    untrained, generator = build(spec), network(spec)
    noise = torch.randn(2, 3, 3, flat_noise_size(generator.noise_shapes()), generator=torch.Generator().manual_seed(0))
    stage = Stage(rollout=2, kl=0.1, posterior=1.0, progress=1.0)
    assert torch.isfinite(untrained.loss(sample, noise, stage).total)
    generator.loss(sample, noise, stage).total.backward()
    assert [name for name, value in generator.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_it_computes_in_bfloat16_as_in_float32_to_its_precision() -> None:
    made = net()
    x, vector, local = inputs(made)
    with torch.no_grad():
        exact = made(x, vector, local)
        low = made.to(torch.bfloat16)(x.bfloat16(), vector.bfloat16(), local.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low - exact).std() < 0.05 * exact.std()
