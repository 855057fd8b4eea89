"""Core-seconds of a member-day: the processor time of the whole engine, all threads, the least of several turns."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from data_pipeline.recipe import fingerprint
from forecast.rollout import make_plan, run
from forecast.sinks import MemorySink
from tests.benchmarks._campaign import SEED, Model

DAYS, TURNS = 3, 3


def cost(work: Path, analysis: xr.Dataset, init: np.datetime64, models: list[Model], members: int) -> dict[str, dict[str, float]]:
    """{model: core-seconds a member-day, members, days, turns, threads, parameters}, in turns, cached by checkpoint."""
    folder = work / "cost"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"members": members, "days": DAYS, "turns": TURNS, "threads": torch.get_num_threads()}
    files = {each.name: folder / f"{each.name}-{fingerprint({**each.identity, **settings})[:8]}.json" for each in models}
    todo = [each for each in models if not files[each.name].exists()]
    seconds: dict[str, list[float]] = {each.name: [] for each in todo}
    for turn in range(TURNS + 1):
        for each in todo:
            plan = make_plan(list(each.generators), analysis, [init], days=DAYS, members=members, seed=SEED)
            start = time.process_time()
            run(list(each.generators), analysis, plan, [MemorySink()])
            if turn:  # the first warms up
                seconds[each.name].append((time.process_time() - start) / (members * DAYS))
    for each in todo:
        parameters = sum(value.numel() for generator in each.generators for value in generator.parameters())
        found = {"core_seconds": min(seconds[each.name]), "parameters": parameters, **settings}
        files[each.name].write_text(json.dumps(found))
    return {each.name: json.loads(files[each.name].read_text()) for each in models}
