"""Make `ne_110m.npz`, `ne_50m.npz` and `SHA256SUMS` from the TopoJSON files of the npm package world-atlas 2.0.2.

    npm pack world-atlas@2.0.2
    tar xzf world-atlas-2.0.2.tgz
    python -m verification.naturalearth.build package/

world-atlas (Michael Bostock, ISC licence) repackages Natural Earth 4.1, which is in the public domain.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from verification.naturalearth import FOLDER, SCALE

SOURCES = {
    "countries-110m.json": "2516c915867c7baf18ddec727aec46c315541a07cfb3d79a6559b05d5e94eee8",
    "countries-50m.json": "04342cdc1e3016bcd7db1630de95684d67b79fe3c8c460321e87aef469502394",
}


def decode_arcs(topology: dict[str, Any]) -> list[np.ndarray]:
    """Arcs (n, 2) in degrees; TopoJSON stores quantised differences."""
    scale, translate = (np.array(topology["transform"][key]) for key in ("scale", "translate"))
    return [np.cumsum(arc, axis=0) * scale + translate for arc in topology["arcs"]]


def arc_uses(geometry: dict[str, Any]) -> set[int]:
    """The arcs of one geometry; a reversed arc `~i` counts as `i`."""
    found: set[int] = set()

    def visit(node: Any) -> None:
        if isinstance(node, int):
            found.add(node if node >= 0 else ~node)
        else:
            for child in node:
                visit(child)

    if "geometries" in geometry:
        for child in geometry["geometries"]:
            found |= arc_uses(child)
    else:
        visit(geometry.get("arcs", []))
    return found


def split(arc: np.ndarray) -> list[np.ndarray]:
    """Cut an arc where it jumps over the antimeridian and where it runs along the frame (the cut edges of polygons)."""
    start, end = arc[:-1], arc[1:]
    jump = np.abs(end[:, 0] - start[:, 0]) > 180
    seam = (np.abs(start[:, 0]) > 179.98) & (np.abs(end[:, 0]) > 179.98)
    pole = (start[:, 1] < -89.9) | (end[:, 1] < -89.9)
    pieces = np.split(arc, np.flatnonzero(jump | seam | pole) + 1)
    return [piece for piece in pieces if len(piece) > 1]


def pack(arcs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(points int16 in hundredths of a degree, number of points of each line), repeated points dropped."""
    rounded = [np.round(piece * SCALE).astype(np.int16) for arc in arcs for piece in split(arc)]
    kept = [line[np.r_[True, (np.diff(line, axis=0) != 0).any(axis=1)]] for line in rounded]
    kept = [line for line in kept if len(line) > 1]
    return np.concatenate(kept), np.array([len(line) for line in kept], dtype=np.int32)


def build(source: Path) -> None:
    sums = []
    for name, expected in SOURCES.items():
        raw = (source / name).read_bytes()
        if hashlib.sha256(raw).hexdigest() != expected:
            raise SystemExit(f"{source / name} is not the file of world-atlas 2.0.2")
        topology = json.loads(raw)
        arcs = decode_arcs(topology)
        countries = Counter(i for country in topology["objects"]["countries"]["geometries"] for i in arc_uses(country))
        coast = sorted(arc_uses(topology["objects"]["land"]))
        borders = sorted(i for i, uses in countries.items() if uses > 1)
        packed: dict[str, Any] = {}
        for feature, chosen in (("coast", coast), ("borders", borders)):
            packed[feature], packed[f"{feature}_lengths"] = pack([arcs[i] for i in chosen])
        target = FOLDER / f"ne_{name.removeprefix('countries-').removesuffix('.json')}.npz"
        np.savez_compressed(target, **packed)
        sums.append(f"{hashlib.sha256(target.read_bytes()).hexdigest()}  {target.name}\n")
    (FOLDER / "SHA256SUMS").write_text("".join(sorted(sums)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    build(Path(sys.argv[1]))
