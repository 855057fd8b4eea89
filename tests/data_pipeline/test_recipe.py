"""Recipes: overrides, all faults at once, fingerprints and differences; the packaged recipes are sound."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from data_pipeline.ingest import AnalysisSection
from data_pipeline.recipe import differences, fingerprint, read_recipe, section
from data_pipeline.schema import Channel
from data_pipeline.source import SourceSection
from data_pipeline.statistics import Periods
from data_pipeline.variables import lookup


def write(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def test_a_recipe_takes_its_name_from_the_file_and_overrides_in_toml_or_bare_text(tmp_path: Path) -> None:
    path = write(tmp_path, '[analysis]\nstep = "12h"\nchannels = ["2m_temperature"]\n')
    overrides = ["analysis.step=6h", 'analysis.channels=["geopotential_500"]', "source.path=/data/x y", "training.seed=3"]
    recipe = read_recipe(path, overrides)
    assert recipe["name"] == "job"
    assert recipe["analysis"] == {"step": "6h", "channels": ["geopotential_500"]}
    assert recipe["source"]["path"] == "/data/x y"
    assert recipe["training"]["seed"] == 3


def test_unquoted_dates_are_text_too(tmp_path: Path) -> None:
    path = write(tmp_path, "[periods]\ntest = [2001-01-01, 2001-02-01T12:00:00]\n")
    recipe = read_recipe(path, ["analysis.stop=2001-02-28"])
    assert recipe["periods"]["test"] == ["2001-01-01", "2001-02-01T12:00:00"]
    assert recipe["analysis"]["stop"] == "2001-02-28"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[analysis\n", [], "not valid TOML"),
        ("[weather]\n", [], "unknown section weather; expected some of name, source"),
        ("", ["analysis.step"], "expected key=value"),
        ("name = 'x'", ["name.of=y"], "'name' is a value, not a section"),
        ("", ["name=5"], "name 5; expected a text that can name a folder"),
        ("", ["name=../elsewhere"], "expected a text that can name a folder"),
        ("", ["name="], "expected a text that can name a folder"),
    ],
)
def test_a_faulty_recipe_is_an_input_error(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recipe(write(tmp_path, text), overrides)


def test_a_missing_recipe_says_where_the_packaged_ones_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml not found; the packaged ones are in recipes/"):
        read_recipe(tmp_path / "none.toml")


def test_what_is_no_text_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not valid TOML"):
        read_recipe(tmp_path / "binary.toml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_recipe(tmp_path)


def test_all_faults_of_a_section_are_listed_at_once() -> None:
    recipe = {"name": "job", "analysis": {"step": 12, "colour": "red", "method": "magic"}}
    with pytest.raises(InputError) as caught:
        section(recipe, "analysis", AnalysisSection)
    for key in ("analysis.step", "analysis.colour: unknown key", "analysis.method", "analysis.channels"):
        assert key in str(caught.value)


def test_a_period_that_ends_before_it_starts_is_an_error() -> None:
    with pytest.raises(InputError, match=r"periods\.test.*starts at 2001-01-02"):
        section({"periods": {"test": ["2001-01-02", "2001-01-01"]}}, "periods", Periods)


@pytest.mark.parametrize("stamp", ["NaT", "2001", "20010101", "2001-13-01", "2001-01-01T00Z", "1492-10-12"])
def test_what_is_no_stamp_begins_no_period(stamp: str) -> None:
    with pytest.raises(InputError, match=rf"periods\.test\.0.*'{stamp}': expected an ISO stamp"):
        section({"periods": {"test": [stamp, "2261-01-01"]}}, "periods", Periods)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.dictionaries(st.text(), st.integers())), max_size=5))
def test_fingerprints_ignore_the_order_of_keys(content: dict[str, object]) -> None:
    assert fingerprint(content) == fingerprint(dict(reversed(content.items())))
    assert list(differences(content, content)) == []
    changed = {**content, "\0another": 1}
    assert fingerprint(changed) != fingerprint(content)
    assert list(differences(content, changed)) == ["\0another: None -> 1"]


def test_differences_name_the_leaf() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert list(differences(old, new)) == ["a.c: 2 -> 5", "d: 3 -> None", "e: None -> 4"]


@pytest.mark.parametrize(
    "name",
    ["recipes/planet", "recipes/era_interim_europe", "recipes/era5_global_djf", "data_pipeline/sample/recipe"],
)
def test_packaged_recipes_are_sound(repository: Path, name: str) -> None:
    recipe = read_recipe(repository / f"{name}.toml")
    source, analysis = section(recipe, "source", SourceSection), section(recipe, "analysis", AnalysisSection)
    periods = section(recipe, "periods", Periods)
    assert source.path is not None
    assert not Path(source.path).is_absolute()
    assert source.description
    assert all(lookup(Channel.parse(label).name) is not None for label in analysis.channels)
    assert periods.test is not None
    given_periods = [period for period in (periods.training, periods.validation, periods.test) if period is not None]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(given_periods))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, r'kind = "files" needs source.path'),
        ({"kind": "weatherbench"}, r'kind = "weatherbench" needs source.url'),
        ({"path": "x", "url": "gs://y"}, r'kind = "files" has no url \(of kind = "weatherbench"\)'),
        ({"kind": "weatherbench", "url": "gs://y", "pattern": "*.nc"}, r'has no pattern \(of kind = "files"\)'),
        ({"kind": "ftp", "path": "x"}, "source.kind"),
    ],
)
def test_a_source_has_the_options_of_its_kind(source: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        section({"source": source}, "source", SourceSection)


@pytest.mark.parametrize(
    ("region", "message"),
    [([60, 30, 0, 10], "south < north"), ([30, 60, 10, 0], "west < east"), ([30, 60, 0], "analysis.region")],
)
def test_a_region_that_is_none_is_an_error(region: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        section({"analysis": {"channels": ["2m_temperature"], "step": "6h", "region": region}}, "analysis", AnalysisSection)
