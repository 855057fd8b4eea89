"""[products] of a recipe: what is made of an ensemble. Every key has a default that fits whatever the forecast holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from data_pipeline.recipe import SECTIONS, Hours, Section, read_recipe, section

Statistic = Literal["mean", "spread", "minimum", "maximum"]
STATISTICS: tuple[Statistic, ...] = ("mean", "spread", "minimum", "maximum")


class Place(Section):
    """One point of the plumes, in degrees."""

    name: str = Field(min_length=1, max_length=64)
    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-360, le=360)


class StampSection(Section):
    """[products.stamps]: fields of all members, for stamp maps and spaghetti.

    every: of the leads. grid: as 64x32, conservative; without it the forecast's own. contours: {channel: thresholds with units}
    that are recorded for spaghetti.
    """

    channels: list[str] = Field(min_length=1)
    every: Hours = "24h"
    grid: str | None = None
    contours: dict[str, list[str]] = Field(default={})


class TrackSection(Section):
    """[products.tracks]: lows of mean sea level pressure, followed through each member; see `products.tracks`.

    depth_hpa: rise of pressure that closes the contour around a low within radius_km. speed_ms: fastest motion. lifetime: least,
    from first to last stamp. most: tracks kept of a member, the longest. strike_km, strike_window: a strike is a centre within
    the distance during the window that ends at the lead.
    """

    depth_hpa: float = Field(default=2.0, gt=0)
    radius_km: float = Field(default=1000.0, gt=0)
    speed_ms: float = Field(default=35.0, gt=0)
    lifetime: Hours = "24h"
    most: int = Field(default=48, ge=1)
    strike_km: float = Field(default=300.0, gt=0)
    strike_window: Hours = "24h"


class ProductsSection(Section):
    """[products]: what to make. An empty list or `false` is none of a kind; left out, what the forecast allows.

    channels: labels or variables. derived: wind speeds and longer accumulations to treat like channels. quantiles: of the
    ensemble. thresholds: events, see `products.conditions`. neighbourhood_km: beside each probability its mean within the
    distance. efi: channels of EFI and SOT. points: a CSV or TOML file; place: points in the recipe itself. nearest_land: take the
    nearest land cell instead of interpolating.
    """

    channels: list[str] | None = None
    derived: list[str] = Field(default=[])
    statistics: list[Statistic] = Field(default=list(STATISTICS))
    quantiles: list[float] = Field(default=[0.1, 0.25, 0.5, 0.75, 0.9])
    thresholds: list[str] | None = None
    neighbourhood_km: float | None = Field(default=None, gt=0)
    efi: list[str] | None = None
    points: str | None = None
    place: list[Place] = Field(default=[])
    nearest_land: bool = False
    stamps: StampSection | None = None
    tracks: Annotated[
        Annotated[TrackSection, Tag("section")] | Annotated[bool, Tag("switch")],
        Discriminator(lambda value: "switch" if isinstance(value, bool) else "section"),
    ] = True

    @model_validator(mode="after")
    def _levels(self) -> ProductsSection:
        levels = self.quantiles
        if len(set(levels)) < len(levels) or not all(0 <= level <= 1 for level in levels):
            raise ValueError(f"quantiles {levels}: expected different numbers from 0 to 1")
        return self


def of_recipe(recipe: Mapping[str, Any]) -> ProductsSection:
    """[products] of a recipe that was read; the defaults if it has none. Raises InputError listing every fault."""
    return section(recipe, "products", ProductsSection)


def read_products(path: str | Path, overrides: Sequence[str] = ()) -> ProductsSection:
    """[products] of a recipe file; `points` is taken from its folder. Raises InputError as `read_recipe`, and for every fault."""
    found = of_recipe(read_recipe(path, overrides, (*SECTIONS, "products")))
    if found.points is None:
        return found
    beside = Path(path).parent / found.points
    return found.model_copy(update={"points": str(beside)}) if beside.exists() else found
