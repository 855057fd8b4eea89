"""SPEEDY through `jcm`: state in, state and gridded fields at the next stamps out. Spectral, eight sigma layers, 40 minute steps.

The model is the one behind the packaged planet: JCM with default parameters, its own orography and land-sea mask, and a
surface climate that repeats every year (sea and land temperature, ice, snow and soil wetness, monthly, interpolated to days).
"""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid

STEP_SECONDS = 2400
EPOCH = pd.Timestamp("2000-08-01")  # step 0: radiation runs every third step counted from here
TRUNCATIONS = (21, 31, 42, 63)
# the leaves of dinosaur's state in jax's own order
DYNAMICS = ("vorticity", "divergence", "temperature_variation", "log_surface_pressure", "specific_humidity", "sim_time")
WATER_DENSITY = 1000.0  # kg m-3
GRAVITY = 9.81  # m s-2, jcm's


@dataclass(frozen=True)
class State:
    """The whole model at a stamp: {name: array} of the dynamics (spectral coefficients) and of the physics (its memory)."""

    time: pd.Timestamp
    dynamics: dict[str, np.ndarray]
    physics: dict[str, np.ndarray]


@dataclass(frozen=True)
class Raw:
    """What the model holds at `times`, on its own grid: fields (time, layer, longitude, latitude) or without layer.

    u, v (m s-1), t (K), q (kg kg-1), z (m2 s-2), ps (Pa), rain (m of water over the interval that ends at the stamp). float32.
    """

    times: pd.DatetimeIndex
    fields: dict[str, np.ndarray]


@dataclass(frozen=True)
class Surroundings:
    """What does not change: sigma of the layers' middles, latitude and longitude (degrees), and fields (longitude, latitude).

    phis: spectral surface geopotential (m2 s-2), with its ripples; orography: grid-point height (m); land: fraction.
    """

    sigma: np.ndarray
    grid: Grid
    phis: np.ndarray
    orography: np.ndarray
    land: np.ndarray


class Atmosphere:
    """The compiled model at one spectral truncation. Making one takes about 10 s, the first `run` of a length 20 s more."""

    def __init__(self, truncation: int = 31) -> None:
        if truncation not in TRUNCATIONS:
            raise InputError(f"truncation {truncation}: the model runs at {', '.join(map(str, TRUNCATIONS))}")
        jcm = _import_jcm()
        coords = jcm.coords(truncation)
        folder = resources.files("jcm.data.bc.t30.clim")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of xarray, about merges inside jcm
            terrain = jcm.TerrainData.from_file(str(folder / "terrain.nc"), coords=coords)
            forcing = jcm.ForcingData.from_file(str(folder / "forcing.nc"), coords=coords, align_mode="wrap_year")
        self.truncation = truncation
        self._jcm = jcm
        self._model = jcm.Model(
            coords=coords, terrain=terrain, time_step=STEP_SECONDS / 60, start_time=f"{EPOCH:%Y-%m-%d}",
            physics=jcm.speedy_physics(checkpoint_terms=False),
        )  # fmt: skip
        self._step = self._model._get_op_split_step_fn(forcing)
        self._template = self._model.bootstrap_state()
        horizontal = coords.horizontal
        boundaries = np.asarray(coords.vertical.boundaries, np.float64)
        self.surroundings = Surroundings(
            sigma=0.5 * (boundaries[1:] + boundaries[:-1]),
            grid=Grid(np.rad2deg(horizontal.latitudes), np.rad2deg(horizontal.longitudes)),
            # the orography that the dynamics feel; `terrain.phis0` is smoothed in another way
            phis=GRAVITY * np.asarray(horizontal.to_nodal(self._model.dycore._truncated_orography), np.float64),
            orography=np.asarray(terrain.orog, np.float64),
            land=np.asarray(terrain.fmask, np.float64),
        )

    @property
    def versions(self) -> str:
        """The packages and the resolution that decide the numbers, for attributes."""
        return f"JCM {metadata.version('jcm')}, dinosaur {metadata.version('dinosaur')}, jax {metadata.version('jax')}"

    def at_rest(self, time: pd.Timestamp, seed: int) -> State:
        """Isothermal and at rest, with a small seeded noise in surface pressure: where a spin-up begins."""
        dynamics = self._model.dycore.initial_state(None, random_seed=seed)
        return State(time, _dynamics(self._jcm.jax, dynamics), _physics(self._jcm.jax, self._template[1]))

    def from_dynamics(self, time: pd.Timestamp, dynamics: dict[str, np.ndarray]) -> State:
        """A state from spectral coefficients alone, cut to this truncation; the memory of the physics starts empty.

        Raises InputError if coefficients are missing or coarser than this model.
        """
        wanted = _dynamics(self._jcm.jax, self._template[0])
        cut = {}
        for name, like in wanted.items():
            if name not in dynamics:
                raise InputError(f"the model state of {time} has no {name}; it has {', '.join(sorted(dynamics))}")
            have = np.asarray(dynamics[name])
            if have.ndim != like.ndim or any(a < b for a, b in zip(have.shape, like.shape, strict=True)):
                raise InputError(f"{name} of {time} has shape {have.shape}; T{self.truncation} needs {like.shape}")
            cut[name] = have[tuple(slice(size) for size in like.shape)].astype(like.dtype)
        return State(time, cut, _physics(self._jcm.jax, self._template[1]))

    def run(self, state: State, stamps: int, hours: int) -> tuple[State, Raw]:
        """Step on: the state after `stamps` intervals of `hours`, and the fields at the end of each.

        Raises InputError if `hours` is no multiple of the time step, GateError-free: values are checked by the caller.
        """
        inner, rest = divmod(hours * 3600, STEP_SECONDS)
        if rest:
            raise InputError(f"an interval of {hours} h is no multiple of the time step of {STEP_SECONDS} s")
        jax, jdt = self._jcm.jax, self._jcm.jdt
        seconds = int((state.time - EPOCH).total_seconds())
        clock = self._model.start_time + jdt.Timedelta(
            days=jax.numpy.int32(seconds // 86400), seconds=jax.numpy.int32(seconds % 86400)
        )
        carry = (
            _rebuilt(jax, self._template[0], state.dynamics), _rebuilt(jax, self._template[1], state.physics), clock,
            jax.numpy.int32(seconds // STEP_SECONDS),
        )  # fmt: skip
        (dynamics, physics, _, _), out = self._compiled(stamps, inner)(carry)
        times = state.time + pd.Timedelta(hours=hours) * pd.RangeIndex(1, stamps + 1)
        after = State(times[-1], _dynamics(jax, dynamics), _physics(jax, physics))
        return after, Raw(pd.DatetimeIndex(times), {name: np.asarray(field) for name, field in out.items()})

    def diagnose(self, state: State) -> Raw:
        """The fields of a state itself, without a step; no rain."""
        physical = self._jcm.verify_state(
            self._model.dycore.to_physics_state(_rebuilt(self._jcm.jax, self._template[0], state.dynamics))
        )
        fields = {name: np.asarray(field)[None] for name, field in _physical_fields(physical).items()}
        return Raw(pd.DatetimeIndex([state.time]), fields)

    @functools.lru_cache(maxsize=8)  # noqa: B019  a model lives as long as its process
    def _compiled(self, stamps: int, inner: int) -> Any:
        jax, jdt, date_data = self._jcm.jax, self._jcm.jdt, self._jcm.DateData

        def one_step(carry: Any, _: Any) -> Any:
            state, physics, clock, count, rain = carry
            state, physics = self._step(state, physics, date_data(clock, count, STEP_SECONDS))
            rain = rain + physics["surface_exchange"].precipitation * (STEP_SECONDS / WATER_DENSITY)
            clock = clock + jdt.Timedelta(seconds=jax.numpy.int32(STEP_SECONDS))
            return (state, physics, clock, count + jax.numpy.int32(1), rain), None

        def one_stamp(carry: Any, _: Any) -> Any:
            dry = jax.numpy.zeros_like(carry[1]["surface_exchange"].precipitation)
            (*carry, rain), _ = jax.lax.scan(one_step, (*carry, dry), None, length=inner)
            physical = self._jcm.verify_state(self._model.dycore.to_physics_state(carry[0]))
            return tuple(carry), {**_physical_fields(physical), "rain": rain}

        return jax.jit(lambda carry: jax.lax.scan(one_stamp, carry, None, length=stamps))


def use_one_core(core: int) -> None:
    """Bind this process to one core, before the model is made: ensembles run one process a core."""
    if hasattr(os, "sched_setaffinity"):
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {available[core % len(available)]})


def _physical_fields(physical: Any) -> dict[str, Any]:
    from jcm import constants

    return {
        "u": physical.u_wind, "v": physical.v_wind, "t": physical.temperature, "q": physical.specific_humidity,
        "z": physical.geopotential, "ps": physical.normalized_surface_pressure * constants.p0,
    }  # fmt: skip


@dataclass(frozen=True)
class _Jcm:
    jax: Any
    jdt: Any
    Model: Any
    DateData: Any
    TerrainData: Any
    ForcingData: Any
    verify_state: Any
    speedy_coords: Any
    speedy_physics: Any

    def coords(self, truncation: int) -> Any:
        return self.speedy_coords(spectral_truncation=truncation)


def _import_jcm() -> _Jcm:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jax
            import jax_datetime as jdt
            from jcm.date import DateData
            from jcm.forcing import ForcingData
            from jcm.model import Model
            from jcm.physics.speedy.speedy_coords import get_speedy_coords
            from jcm.physics.speedy.speedy_terms import speedy_physics
            from jcm.physics_interface import verify_state
            from jcm.terrain import TerrainData
    except ImportError as error:
        raise InputError(f"the simulated planet needs the extra simulate: pip install plumecast[simulate] ({error})") from None
    return _Jcm(jax, jdt, Model, DateData, TerrainData, ForcingData, verify_state, get_speedy_coords, speedy_physics)


def _dynamics(jax: Any, tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves(tree)
    return {name: np.asarray(leaf) for name, leaf in zip(DYNAMICS, leaves, strict=True)}


def _physics(jax: Any, tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _rebuilt(jax: Any, like: Any, named: dict[str, np.ndarray]) -> Any:
    """The inverse of `_dynamics` and `_physics`, in the form of `like`."""
    leaves, structure = jax.tree_util.tree_flatten(like)
    arrays = [jax.numpy.asarray(array, dtype=leaf.dtype) for leaf, array in zip(leaves, named.values(), strict=True)]
    return jax.tree_util.tree_unflatten(structure, arrays)
