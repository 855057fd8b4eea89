"""A planet whose atmosphere is a few waves that move east: the interface of the real model, without it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from data_pipeline.grid import Grid
from data_pipeline.planet.model import DYNAMICS, Raw, State, Surroundings

SIGMA = np.array([0.025, 0.095, 0.2, 0.34, 0.51, 0.685, 0.835, 0.95])
GRID = Grid.named("F8")  # 32 x 16, Gaussian
SHAPE = (GRID.longitude.size, GRID.latitude.size)


def surroundings(phis: float = 0.0, land: float = 0.0) -> Surroundings:
    """Flat: the same height and land fraction everywhere."""
    return Surroundings(SIGMA, GRID, np.full(SHAPE, phis), np.full(SHAPE, phis / 9.81), np.full(SHAPE, land))


class ToyAtmosphere:
    """Pairs along the last axis of the dynamics turn by a fixed phase an hour; fields follow from `temperature_variation`."""

    versions = "a toy"

    def __init__(self, truncation: int = 31) -> None:
        self.truncation, self.surroundings, self.hours_run = truncation, surroundings(), 0

    def at_rest(self, time: pd.Timestamp, seed: int) -> State:
        noise = np.random.default_rng(seed)
        dynamics = {name: noise.normal(size=(8, 4, 4)).astype("f4") for name in DYNAMICS[:-1]}
        return State(time, {**dynamics, "sim_time": np.float32(0)}, {"memory": np.zeros(3, "f4")})

    def from_dynamics(self, time: pd.Timestamp, dynamics: dict[str, np.ndarray]) -> State:
        return State(time, dynamics, {"memory": np.zeros(3, "f4")})

    def run(self, state: State, stamps: int, hours: int) -> tuple[State, Raw]:
        found = []
        for _ in range(stamps):
            dynamics = {name: _turned(array, hours) for name, array in state.dynamics.items()}
            physics = {"memory": np.roll(state.physics["memory"], 1) + np.float32(hours)}
            state = State(state.time + pd.Timedelta(hours=hours), dynamics, physics)
            found.append({**_fields(state), "rain": np.full(SHAPE, 1e-4 * hours, "f4")})
            self.hours_run += hours
        times = pd.DatetimeIndex([state.time - pd.Timedelta(hours=hours) * k for k in range(stamps)][::-1])
        return state, Raw(times, {name: np.stack([one[name] for one in found]) for name in found[0]})

    def diagnose(self, state: State) -> Raw:
        return Raw(pd.DatetimeIndex([state.time]), {name: array[None] for name, array in _fields(state).items()})


def _turned(array: np.ndarray, hours: int) -> np.ndarray:
    if array.ndim == 0:
        return array
    turned = (array[..., ::2] + 1j * array[..., 1::2]) * np.exp(0.01j * hours)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(array.shape).astype(array.dtype)


def _fields(state: State) -> dict[str, np.ndarray]:
    east, north = np.deg2rad(GRID.longitude)[:, None], np.deg2rad(GRID.latitude)[None, :]
    waves = sum(state.dynamics["temperature_variation"][0, k, 0] * np.cos((k + 1) * east) * np.cos(north) for k in range(4))
    temperature = np.broadcast_to((270 + waves)[None], (8, *SHAPE)).astype("f4")
    height = (287.04 * temperature * -np.log(SIGMA)[:, None, None]).astype("f4")
    wind, dry = np.broadcast_to(waves, (8, *SHAPE)).astype("f4"), np.zeros((8, *SHAPE), "f4")
    return {"u": wind, "v": -wind, "t": temperature, "q": dry, "z": height, "ps": np.full(SHAPE, 1e5, "f4")}
