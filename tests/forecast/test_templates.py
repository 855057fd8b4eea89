"""The templates of deploy/: each checked by the tools of its engine where they are found, and run with stand-ins for the rest."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
INSTALLED = "/opt/plumecast/bin"
UNITS = ("plumecast-tick@planet.timer", "plumecast-tick@planet.service", "plumecast-serve@planet.service")
CRON_LINE = re.compile(r"((?:\S+ ){5})(\S+) (.*)")


def tool(name: str, package: str) -> str:
    """The path of a program, also one that pip put beside this Python; a skip that says what to install where it is missing."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed here ({package}): this template is not checked")
    return found


def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=60, **options)


def stand_in(path: Path, body: str) -> Path:
    """A shell script in the place of a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


# systemd


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units in a folder of their own, their program replaced by one that is there."""
    shutil.copytree(DEPLOY / "systemd", tmp_path / "units")
    stand_in(tmp_path / "bin" / "plumecast", "true")
    for unit in (tmp_path / "units").glob("*.service"):
        unit.write_text(unit.read_text().replace(INSTALLED, str(tmp_path / "bin")))
    return tmp_path / "units"


def complaints(units: Path) -> str:
    """What systemd says of the units; unknown keys are warnings to it, with exit code 0."""
    checked = run(tool("systemd-analyze", "apt-get install systemd"), "verify", "--man=no", *(units / unit for unit in UNITS))
    return checked.stderr or ("" if checked.returncode == 0 else f"exit code {checked.returncode}")


def test_systemd_finds_nothing_wrong_with_the_units(units: Path) -> None:
    assert complaints(units) == ""


@pytest.mark.parametrize(
    ("file", "right", "wrong", "message"),
    [
        ("plumecast-.service.d/common.conf", "Nice=5", "Nicer=5", "Unknown key 'Nicer'"),
        ("plumecast-tick@.timer", "OnCalendar=*-*-* *:00/10:00 UTC", "OnCalendar=*:70 UTC", "Failed to parse calendar"),
        ("plumecast-serve@.service", "/plumecast cycle", "/plumcast cycle", "not executable"),
    ],
)
def test_and_would_find_a_slip(units: Path, file: str, right: str, wrong: str, message: str) -> None:
    text = (units / file).read_text()
    assert right in text
    (units / file).write_text(text.replace(right, wrong))
    assert message in complaints(units)


def test_the_services_are_confined(units: Path) -> None:
    """`systemd-analyze security` rates from 0 to 10: 9.2 and more without any of this; a forecast needs the network."""
    for name in ("plumecast-tick@.service", "plumecast-serve@.service"):
        # offline it reads a template without its name, and of drop-ins none but one in a folder of the unit itself
        (units / f"{name}.d").symlink_to(units / "plumecast-.service.d")
        rated = run(
            tool("systemd-analyze", "apt-get install systemd"), "security", "--offline=yes", "--threshold=25", "--no-pager",
            units / name, env=os.environ | {"SYSTEMD_UNIT_PATH": str(units)},
        )  # fmt: skip
        assert rated.returncode == 0, rated.stdout + rated.stderr


def test_the_timer_ticks_in_utc(units: Path) -> None:
    (calendar,) = re.findall(r"^OnCalendar=(.*)$", (units / "plumecast-tick@.timer").read_text(), re.MULTILINE)
    shown = run(tool("systemd-analyze", "apt-get install systemd"), "calendar", "--iterations=3", calendar)
    assert shown.returncode == 0, shown.stderr
    minutes = [int(text) for text in re.findall(r"\d\d:(\d\d):00 UTC", shown.stdout)]
    assert len(minutes) == 3
    assert {(later - earlier) % 60 for earlier, later in itertools.pairwise(minutes)} == {10}


# cron


@pytest.fixture
def crontab() -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Variables, and (schedule, user, command) of each line, of a file of /etc/cron.d."""
    variables, jobs = {}, []
    for line in (DEPLOY / "cron" / "plumecast").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if setting := re.fullmatch(r"([A-Z_]+)=(.*)", line):
            variables[setting[1]] = setting[2]
        else:
            job = CRON_LINE.fullmatch(line)
            assert job, f"neither a variable nor five fields, a user and a command: {line}"
            jobs.append((job[1].strip(), job[2], job[3]))
    return variables, jobs


def test_cron_understands_the_schedule(crontab: tuple[dict[str, str], list[tuple[str, str, str]]]) -> None:
    cronsim = pytest.importorskip("cronsim", reason="cronsim is not installed here (extra dev): the schedule is not checked")
    import datetime as dt

    variables, ((schedule, user, command),) = crontab
    assert variables["CRON_TZ"] == "UTC"
    assert user == "plumecast"
    assert "%" not in command, "cron turns % into an end of line"
    ticks = cronsim.CronSim(schedule, dt.datetime(2027, 3, 28, 0, 5, tzinfo=dt.UTC))
    assert [next(ticks).strftime("%H:%M") for _ in range(3)] == ["00:10", "00:20", "00:30"]


@pytest.mark.parametrize(("code", "mail"), [(0, ""), (3, ""), (4, "a tick failed")])
def test_cron_mails_one_line_for_a_tick_that_failed(
    crontab: tuple[dict[str, str], list[tuple[str, str, str]]], code: int, mail: str, tmp_path: Path
) -> None:
    tool("flock", "apt-get install util-linux")
    program = stand_in(tmp_path / "bin" / "plumecast", f'echo "asked: $*"; echo "of the run" >&2; exit {code}')
    variables, ((_, _, command),) = crontab
    for folder in ("/var/lib/plumecast", "/var/log/plumecast"):
        (tmp_path / folder[1:]).mkdir(parents=True)
        command = command.replace(folder, str(tmp_path / folder[1:]))
    done = run(variables["SHELL"], "-c", command.replace(INSTALLED, str(program.parent)), env={"PATH": variables["PATH"]})
    assert mail in done.stdout
    assert len(done.stdout.splitlines()) == bool(mail)
    assert done.stderr == ""
    logged = (tmp_path / "var/log/plumecast/tick.log").read_text()
    assert logged == "asked: cycle tick /etc/plumecast/cycle.toml\nof the run\n"


def test_cron_leaves_a_tick_alone_that_is_still_at_work(
    crontab: tuple[dict[str, str], list[tuple[str, str, str]]], tmp_path: Path
) -> None:
    import fcntl

    tool("flock", "apt-get install util-linux")
    program = stand_in(tmp_path / "bin" / "plumecast", "echo started")
    variables, ((_, _, command),) = crontab
    command = command.replace("/var/lib/plumecast", str(tmp_path)).replace("/var/log/plumecast", str(tmp_path))
    with (tmp_path / "tick.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(variables["SHELL"], "-c", command.replace(INSTALLED, str(program.parent)), env={"PATH": variables["PATH"]})
    assert done.stdout == done.stderr == (tmp_path / "tick.log").read_text() == ""


# Slurm


@pytest.fixture
def batch(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Start the batch script as task 3 of its array, with this body in the place of plumecast; scontrol notes its words."""
    stand_in(tmp_path / "bin" / "scontrol", f'echo "$*" >> {tmp_path}/scontrol')

    def start(body: str) -> subprocess.Popen[str]:
        program = stand_in(tmp_path / "forecast", body)
        slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "2"}
        return subprocess.Popen(
            ["bash", DEPLOY / "slurm" / "forecast.sbatch", "/data/a.zarr", "--members", "50"], stdout=subprocess.PIPE, text=True,
            env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PLUMECAST": str(program), **slurm},
        )  # fmt: skip

    return start


def test_shells_find_nothing_wrong_with_the_scripts() -> None:
    for script in DEPLOY.rglob("*.sbatch"):
        assert run("bash", "-n", script).stderr == ""
        checked = run(tool("shellcheck", "extra dev"), script)
        assert checked.returncode == 0, checked.stdout


def test_a_task_makes_its_share_with_its_cores(batch: Callable[[str], subprocess.Popen[str]], tmp_path: Path) -> None:
    with batch('echo "$* threads=$PLUMECAST_THREADS"; exit 4') as task:
        shown, _ = task.communicate(timeout=60)
    assert shown == "forecast /data/a.zarr --members 50 --share 3/10 threads=2\n"
    assert task.returncode == 4
    assert not (tmp_path / "scontrol").exists()
    text = (DEPLOY / "slurm" / "forecast.sbatch").read_text()
    assert re.search(r"^#SBATCH --array=1-10%", text, re.MULTILINE), "as many tasks as shares"


@pytest.mark.parametrize("code", [143, 0])
def test_a_task_out_of_time_stops_its_forecast_and_asks_for_another_go_unless_that_was_done(
    batch: Callable[[str], subprocess.Popen[str]], tmp_path: Path, code: int
) -> None:
    with batch(f"trap 'kill $!; echo stopped; exit {code}' TERM; sleep 60 & echo ready; wait") as task:
        assert task.stdout is not None
        assert task.stdout.readline() == "ready\n"
        task.send_signal(signal.SIGTERM)  # to the shell alone, as --signal=B:TERM does
        assert task.stdout.readline() == "stopped\n"
        assert task.wait(timeout=60) == 0
    asked = (tmp_path / "scontrol").read_text() if (tmp_path / "scontrol").exists() else ""
    assert asked == ("requeue 77_3\n" if code else "")


# Kubernetes


def manifests() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed here (extra dev): the manifests are not checked")
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "plumecast.yaml").read_text()))


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_kubernetes_knows_every_field(version: str) -> None:
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed here (extra dev): the manifests are not checked"
    )
    found = manifests()
    for manifest in found:
        schemas.validate(manifest, version, strict=True)
    cronjob = found[1]
    cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["volumes"] = []
    with pytest.raises(schemas.ValidationError):
        schemas.validate(cronjob, version, strict=True)


def test_the_cronjob_runs_one_tick_at_a_time_without_rights() -> None:
    claim, cronjob = manifests()
    spec = cronjob["spec"]
    assert (spec["concurrencyPolicy"], spec["timeZone"]) == ("Forbid", "Etc/UTC")
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_container_is_built_as_its_linter_wants_it_and_for_the_user_of_the_pod() -> None:
    checked = run(tool("hadolint", "extra dev"), DEPLOY / "Containerfile")
    assert checked.returncode == 0, checked.stdout
    user = manifests()[1]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    text = (DEPLOY / "Containerfile").read_text()
    assert f"USER {user}:{user}\n" in text
    for copied in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())
