"""What every test has: shared data if there, a folder of its own, repeatable draws, and no network."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before numpy, numba and torch load: test processes run side by side, one thread each.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import xarray as xr

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("PLUMECAST_SHARED") or REPOSITORY.parent / "shared")
LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("full", parent=hypothesis.settings.get_profile("repeatable"), max_examples=1000)
hypothesis.settings.load_profile("full" if os.environ.get("PLUMECAST_FULL") else "repeatable")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("era-interim-weurope")`: a data set beside the repository, or a skip where there is no such folder."""

    def find(name: str) -> Path:
        if not (SHARED / "data").is_dir():
            pytest.skip(f"needs the data set {name}: put it at ../shared/data/{name}, or set PLUMECAST_SHARED")
        path = SHARED / "data" / name
        assert path.exists(), f"{SHARED / 'data'} is there but holds no {name}"
        return path

    return find


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of the packaged planet sample."""
    return REPOSITORY / "data_pipeline" / "sample"


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also the current one, for commands that write to runs/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True, scope="session")
def _exact_joins() -> Iterator[None]:
    """As the command line sets it: arithmetic on different coordinates is an error; float32 means are not left to bottleneck."""
    with xr.set_options(arithmetic_join="exact", use_bottleneck=False):
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Only loopback and local sockets: a test that reaches out fails at once, on every machine."""
    look_up, connect, connect_ex = socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX:
                _check_loopback(address[0])
            return call(self, address)

        return checked

    def guarded_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        _check_loopback(host)
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(connect))
        patch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


def _check_loopback(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name is not None and name not in LOOPBACK and not name.startswith("127.") and name != socket.gethostname():
        raise RuntimeError(f"a test tried to reach {name}; tests use loopback only")
