"""Every notebook runs from top to bottom on a small packaged planet, offline, and what its text says holds."""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from matplotlib.image import imread
from nbclient import NotebookClient

from data_pipeline.derived import make_climatology
from data_pipeline.ingest import ingest
from forecast.demo import make_forecast, sample_recipe
from tests.toys import REGION, as_analysis

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
ELSEWHERE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|mnt|opt|var|Users)/|[A-Z]:\\\\")
OFFLINE = """
import socket
def refused(*arguments, **options):
    raise RuntimeError(f"a notebook tried to reach {arguments}")
connect = socket.socket.connect
socket.getaddrinfo = refused
local = lambda self, to: self.family == socket.AF_UNIX or to[0] == "127.0.0.1"
socket.socket.connect = lambda self, to: connect(self, to) if local(self, to) else refused(to)
"""


class Shown(NamedTuple):
    """At least so many pictures and tables; smaller: edits that make it quick; claims: what its text says, as assertions."""

    pictures: int
    tables: int
    smaller: dict[str, str]
    claims: str


EXPECTED = {
    "01_data": Shown(3, 3, {}, "assert verify_store(ANALYSIS) == []"),
    "02_ensemble_maps": Shown(
        7, 0, {"], 10, 16": "], 5, 8", "0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8": "0.5"}, "assert members.sizes['number'] == 8",
    ),
    "03_verification": Shown(
        5, 3, {"demo-24-members": "demo-8-members", "n_boot=200": "n_boot=20"},
        """
from verification.readout import skill
assert EVENT == "> q0.95"
report = WORK / "notebook-report.html"
assert certificate.passed
assert report.stat().st_size > 100_000
assert report.with_suffix(".csv").exists()
assert (skill(state, usual)["crpss"].sel(channel=CHANNEL, prediction_timedelta=1 * DAY) > 0.5).all()
sizes = scores_by_size(ensemble, analysis, CHANNEL, 5 * DAY)
assert (sizes["crps_ecdf"].diff("members") < 0).all()
assert abs(sizes["crps"] / sizes["crps"][-1] - 1).max() < 0.1
""",
    ),
    "04_extreme_event": Shown(
        7, 4, {"24, (7, 6, 5, 4, 3, 2, 1)": "8, (7, 5, 3, 1)"},
        """
from verification import efi
assert (str(EVENT)[:13], round(LATITUDE), round(LONGITUDE)) == ("2007-11-01T12", 59, 298)
index = efi(members.sel(HERE), quantiles.sel(HERE)).values
assert index[0] < -0.9
assert index[-1] > -0.8
assert float(truth.sel(HERE)) < float(quantiles.sel(HERE)[0])
assert table["ratio of the tails"].iloc[0] < 0.5 < table["ratio of the tails"].iloc[-1]
assert (summary["mean minus truth (hPa)"] > 0).all()
assert (summary["members below the truth (%)"] < 50).all()
assert open_forecast(FORECAST).attrs["checkpoint_sha256"] == generator.sha256
assert generator.sha256[:8] in FORECAST.name
assert seen["prediction_timedelta"].max() == LEAD
above_all = grew["deepest member minus truth (hPa)"] > 0
assert above_all.iloc[-1]
assert (above_all.values == (summary["members below the truth (%)"] == 0).values).all()
assert float(strike.max()) > 0.5
""",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def planet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's with notebooks/ and runs/demo: one training year, four forecasts of eight members."""
    home = tmp_path_factory.mktemp("notebooks")
    out = home / "runs" / "demo"
    recipe = sample_recipe()
    recipe["source"]["pattern"] = "planet_200[57]*.nc"
    ingest(recipe, out / "analysis.zarr")
    make_climatology(recipe, out, quantiles=(0.05, 0.95))
    make_forecast(out / "analysis.zarr", out, members=8, inits=4, days=5)
    (home / "notebooks").mkdir()
    return home


@pytest.fixture(scope="module")
def kernel(planet: Path) -> Iterator[NotebookClient]:
    """One kernel for all: importing torch and cartopy takes longer than most cells. It writes nothing outside `planet`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_CACHE_HOME"):
            patch.setenv(name, str(planet / "own"))
        patch.setenv("MPLCONFIGDIR", mpl.get_cachedir())  # its list of fonts takes seconds to make
        patch.delenv("MPLBACKEND", raising=False)
        startup = planet / "own" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "00-offline.py").write_text(OFFLINE)
        client = NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3", timeout=300)  # type: ignore[no-untyped-call]
        with client.setup_kernel(cwd=str(planet / "notebooks")):
            yield client


def notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)  # type: ignore[no-untyped-call]


def code_of(cells: nbformat.NotebookNode) -> Iterator[str]:
    """The Python of each code cell, without magics."""
    for cell in cells["cells"]:
        if cell["cell_type"] == "code":
            yield "\n".join(line for line in cell["source"].splitlines() if not line.startswith("%"))


def test_every_notebook_is_expected_here() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook_in_git_has_no_output_no_machine_and_defines_nothing(name: str) -> None:
    text, cells = (NOTEBOOKS / f"{name}.ipynb").read_text(), notebook(name)
    nbformat.validate(cells)  # type: ignore[no-untyped-call]
    assert not ELSEWHERE.search(text)
    assert "widgets" not in cells["metadata"]
    for cell in cells["cells"]:
        assert cell["metadata"] == {}
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    for source in code_of(cells):
        found = [type(node).__name__ for node in ast.walk(ast.parse(source))]
        assert not {"FunctionDef", "AsyncFunctionDef", "ClassDef", "Lambda"} & set(found), source
        assert not re.search(r"^\s*!", source, re.MULTILINE)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook_asks_a_question_runs_from_one_path_and_says_what_to_try_next(name: str) -> None:
    cells = notebook(name)["cells"]
    assert re.match(r"# .+\n\n\*[^*]+\?", cells[0]["source"])
    code = "\n".join(code_of(notebook(name)))
    assert code.count('Path("../runs/') == 1
    assert code.count("ensure_sample(") == 1
    assert not re.search(r"\b(ingest|prepare|exists)\(", code)  # the sample never stands in for a path of one's own
    assert "**Try next:**" in cells[-1]["source"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook_runs_offline_without_a_warning_and_shows_what_it_promises(
    name: str, planet: Path, kernel: NotebookClient
) -> None:
    expected = EXPECTED[name]
    pictures, tables = shown_by(kernel, notebook(name), expected.smaller, expected.claims)
    assert len(pictures) >= expected.pictures
    assert len(tables) >= expected.tables
    for picture in pictures:
        assert_has_content(picture, planet)


def test_the_first_notebook_runs_on_a_store_of_ones_own(planet: Path, kernel: NotebookClient) -> None:
    rng = np.random.default_rng(0)
    fields = {"geopotential_500": (5.5e4, 800.0), "10m_v_component_of_wind": (0.0, 6.0)}
    steps = 4 * 366 + 40  # a leap year and ten days, every six hours, of a region, without a gap
    data = as_analysis(
        {label: mean + size * rng.normal(size=(steps, *REGION.shape)) for label, (mean, size) in fields.items()},
        REGION, "2004-01-01", 6,
    )  # fmt: skip
    (planet / "files").mkdir()
    data.to_netcdf(planet / "files" / "own.nc")
    recipe = {"source": {"path": str(planet / "files")}, "analysis": {"channels": list(fields), "step": "6h"}}
    ingest(recipe, planet / "runs" / "own" / "analysis.zarr")
    changes = {
        "../runs/demo/": "../runs/own/",
        'CHANNEL = Channel("2m_temperature")': 'CHANNEL = Channel("geopotential", 500)',
        "2005-12-31T12": "2004-12-31T18",
        '("Bergen", 60.39, 5.32)': '("Zaragoza", 41.65, -0.88)',
    }
    pictures, tables = shown_by(kernel, notebook("01_data"), changes, EXPECTED["01_data"].claims)
    assert len(pictures) == 3
    assert len(tables) >= 3


def shown_by(
    kernel: NotebookClient, cells: nbformat.NotebookNode, changes: dict[str, str], claims: str
) -> tuple[list[bytes], list[Any]]:
    """The pictures and tables of a notebook that runs with such changes, without a warning, and whose claims hold."""
    for old, new in changes.items():
        assert sum(cell["source"].count(old) for cell in cells["cells"]) == 1, old
        for cell in cells["cells"]:
            cell["source"] = cell["source"].replace(old, new)
    fresh, last = (nbformat.v4.new_code_cell(source) for source in ("%reset -f", claims))  # type: ignore[no-untyped-call]
    cells["cells"] = [fresh, *cells["cells"], last]
    kernel.nb = cells
    kernel.reset_execution_trackers()
    for index, cell in enumerate(cells["cells"]):
        kernel.execute_cell(cell, index)
    outputs = [output for cell in cells["cells"] for output in cell.get("outputs", [])]
    said = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert [text for text in said if not text.startswith("compiling the score kernels")] == []  # once in a new installation
    shown = [output["data"] for output in outputs if "data" in output]
    pictures = [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]
    return pictures, [data for data in shown if "<table" in data.get("text/html", "")]


def assert_has_content(picture: bytes, folder: Path) -> None:
    """A picture of a fair size that is not blank."""
    path = folder / "picture.png"
    path.write_bytes(picture)
    pixels: np.ndarray[Any, Any] = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 200
    assert (np.abs(pixels - pixels[0, 0]).max(axis=-1) > 0.1).mean() > 0.01
