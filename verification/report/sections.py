"""What the report shows beyond curves by lead, in the order of the page; a section is made where its states keep what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr

from verification.report import decisions, events, ranks, reliability, spectra


def sections(
    states: Sequence[xr.Dataset], *, reference: str | None = None, n_boot: int = 300, seed: int = 0
) -> list[dict[str, Any]]:
    """The sections that the states have something for, as `panels.html` shows them.

    Each has id, title, note, channels (label, long_name, groups of figures with captions, tables) and numbers: the rows behind
    its figures, for `details.write_details`. reference: the model that the skill for extremes is against.
    """
    options: dict[str, Any] = {"n_boot": n_boot, "seed": seed}
    made = [
        ranks.section(states, **options),
        reliability.section(states, **options),
        decisions.section(states, **options),
        events.section(states, reference=reference, **options),
        spectra.section(states),
    ]
    return [section for section in made if section is not None and section["channels"]]
