"""The package as a user meets it: the wheel, the command line, the errors, the promises of its configuration files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

import plumecast
from data_pipeline.errors import GateError, InputError, NotReadyError

PACKAGES = ("data_pipeline", "models", "forecast", "verification")
NOT_INSTALLED = {"data_pipeline/sample/make_sample.py"}
TEXT = {".py", ".toml", ".md", ".txt", ".yml", ".cfg", ".ipynb", ".html", ".css", ".js", ".json", ""}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A copy of what goes into a wheel, so that building leaves nothing in the repository."""
    copy = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.partial"))
    for name in ("pyproject.toml", "plumecast.py", "README.md", "LICENSE"):
        shutil.copy(repository / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, source: Path) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=source, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: zipfile.ZipFile, source: Path) -> None:
    expected = {
        path.relative_to(source).as_posix() for name in PACKAGES for path in (source / name).rglob("*") if path.is_file()
    } | {"plumecast.py"}
    installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert installed == expected - NOT_INSTALLED


def test_wheel_names_the_command_and_carries_the_licence(wheel: zipfile.ZipFile) -> None:
    by_name = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "plumecast = plumecast:main" in wheel.read(by_name["entry_points.txt"]).decode()
    assert "Apache License" in wheel.read(by_name["LICENSE"]).decode()


def test_installed_wheel_runs_outside_the_repository(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = (
        "import pathlib, data_pipeline, models, forecast, verification, plumecast\n"
        "for module in (data_pipeline, models, forecast, verification, plumecast):\n"
        "    print(pathlib.Path(module.__file__).parent)\n"
        "plumecast.main()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(tmp_path / "site")) for line in done.stdout.splitlines()[:5])
    assert "plumecast demo" in done.stdout


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the application with the words that reach it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def test_every_command_helps_with_an_example() -> None:
    application = plumecast.application()
    found = dict(commands(typer.main.get_command(application)))
    assert {("demo",), ("train",), ("forecast",), ("verify",), ("report",)} <= set(found)
    without = []
    for words in found:
        result = CliRunner().invoke(application, [*words, "--help"], env={"COLUMNS": "130", "TERM": "dumb"})
        assert result.exit_code == 0, words
        if not re.search(r"Examples?:\s+plumecast " + " ".join(words), result.output):
            without.append(" ".join(words))
    assert not without, "no example in --help"


def test_version_is_that_of_the_distribution(repository: Path) -> None:
    result = CliRunner().invoke(plumecast.application(), ["--version"])
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert result.output == f"plumecast {project['version']}\n"


def test_help_loads_neither_torch_nor_the_plotting_libraries() -> None:
    code = "import sys, plumecast; plumecast.application(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "matplotlib", "cartopy", "numba", "eccodes"} & set(loaded)
    assert not heavy, f"imported before any command runs: {heavy}"


def run_with(failure: BaseException, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The exit code of `plumecast` when its command raises `failure`."""
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise failure

    monkeypatch.setattr(plumecast, "application", lambda: app)
    monkeypatch.setattr(sys, "argv", ["plumecast"])
    with pytest.raises(SystemExit) as left:
        plumecast.main()
    return left.value.code


@pytest.mark.parametrize(
    ("failure", "code"),
    [(InputError("no [model] here"), 2), (NotReadyError("no [model] here"), 3), (GateError("no [model] here"), 4)],
)
def test_a_known_failure_is_a_message_and_an_exit_code(
    failure: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(failure, monkeypatch) == code
    assert capsys.readouterr() == ("", "error: no [model] here\n")


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMECAST_DEBUG", "1")
    with pytest.raises(InputError, match="broken"):
        run_with(InputError("broken"), monkeypatch)


@pytest.mark.parametrize("arguments", [["--threads", "0", "demo"], ["--threads", "many", "demo"], ["no-such-command"]])
def test_wrong_usage_is_explained_with_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(plumecast.application(), arguments)
    assert result.exit_code == 2
    assert "Usage: plumecast" in result.output
    assert "Traceback" not in result.output


def test_an_interrupt_leaves_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with(KeyboardInterrupt(), monkeypatch) == 130


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["--threads", "3", "verify"], {"PLUMECAST_THREADS": "5"}, "3"),
        (["--threads=4", "verify"], {"OMP_NUM_THREADS": "1"}, "4"),
        (["--threads", "0", "verify"], {"OMP_NUM_THREADS": "7"}, "7"),
        (["verify", "--threads", "9"], {"PLUMECAST_THREADS": "5"}, "5"),
        (["verify"], {"OMP_NUM_THREADS": "7"}, "7"),
        (["verify"], {}, str(plumecast._cores())),
    ],
)
def test_threads_come_from_option_then_environment_then_cores(
    arguments: list[str], environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PLUMECAST_THREADS", *plumecast.THREAD_VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    plumecast.settle_threads(arguments)
    assert {os.environ[variable] for variable in ("PLUMECAST_THREADS", *plumecast.THREAD_VARIABLES)} == {expected}


def test_everything_that_may_be_installed_is_pinned_exactly(repository: Path) -> None:
    lines = [line for line in (repository / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(pins) == len(lines), "a package is pinned twice"
    assert all(re.fullmatch(r"[\w.!]+", version) for version in pins.values()), "not an exact version"
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    for requirement in map(Requirement, project["dependencies"] + extras):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} excludes its pin {pin}"


def test_maps_can_be_projected_after_grib_was_opened() -> None:
    code = "import eccodes, pyproj; print(pyproj.Transformer.from_crs(4326, 3035, always_xy=True).transform(10, 52))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(4321000.0, 3210000.0)\n"), done.stderr


def test_make_help_explains_every_target(repository: Path) -> None:
    shown = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (repository / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert {"demo", "test", "check", "campaign", "bench", "notebooks", "clean"} <= set(phony[1].split())
    for target in phony[1].split():
        assert re.search(rf"^  make {target} +\S+", shown, re.MULTILINE), f"make help does not explain {target}"


def test_imports_between_the_packages_point_one_way(repository: Path) -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_forbidden_import_breaks_the_contract(source: Path, tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "verification" / "__init__.py").write_text("import forecast\n")
    shutil.copy(source / "pyproject.toml", tmp_path)
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "verification is not allowed to import forecast" in done.stdout


def text_files(repository: Path) -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [repository / name for name in listed.stdout.splitlines()]
    return [path for path in paths if path.suffix in TEXT and path.is_file()]


def test_no_file_names_a_path_of_somebodys_machine(repository: Path) -> None:
    pattern = re.compile(r"(?<![\w.:/])/(?:root|home|Users|work|private|mnt)/\w")
    found = [
        f"{path.relative_to(repository)}:{number}"
        for path in text_files(repository)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


@pytest.mark.parametrize("host", ["example.org", "192.0.2.1"])
def test_tests_cannot_reach_the_network(host: str) -> None:
    import socket

    with pytest.raises(RuntimeError, match="loopback only"):
        socket.create_connection((host, 80), timeout=1)


def test_tests_can_use_loopback() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5) as client:
        assert client.getpeername() == server.getsockname()


def test_shared_data_reports_a_name_that_is_not_there(shared_data: Callable[[str], Path]) -> None:
    shared_data("planet-64x32-12h")
    with pytest.raises(AssertionError, match=r"holds no plane\b"):
        shared_data("plane")
