"""What a search may choose from, as a recipe declares it or the command line: what is taken, and what is refused."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from chiasm.datasets import InputError
from chiasm.recipes.ranges import Choice, Range, searched_settings
from chiasm.recipes.recipe import BUILT_IN, Recipe, load_recipe


@dataclass(frozen=True)
class Settings:
    """One setting of each type."""

    epochs: int = 8
    rate: float = 1e-3
    clip: float | None = None
    head: str = "gated"
    notes: bool = True
    sets: tuple[str, ...] = ("a",)
    seed: int = 0


def recipe(**module: object) -> Recipe:
    return Recipe("own", SimpleNamespace(**module), Settings())


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("rate=1e-4:1e-2:log", "rate", Range(1e-4, 1e-2, log=True)),
        ("rate=0:0.5", "rate", Range(0, 0.5)),
        ("epochs=4:16:4", "epochs", Range(4, 16, step=4)),
        ("clip=0.5:5", "clip", Range(0.5, 5)),
        ("clip=none,1", "clip", Choice(None, 1.0)),
        ("head=gated, late", "head", Choice("gated", "late")),
        ("notes=yes,no", "notes", Choice(True, False)),
        ("epochs=4,8", "epochs", Choice(4, 8)),
    ],
)
def test_a_range_is_read_in_the_type_of_its_setting(text, name, expected):
    assert searched_settings(recipe(), ranges=[text]) == {name: expected}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("rate", "--range was given 'rate'; expected name=low:high"),
        ("rate=", "--range was given 'rate='"),
        ("depth=1:3", "has no setting depth to search; it has epochs, rate, clip"),
        ("rate=0.1:0.01", "0.1:0.01 of rate is reversed or empty"),
        ("rate=0.1:0.1", "is reversed or empty"),
        ("rate=0:1:log", "by its logarithm, which needs numbers above 0"),
        ("rate=0:inf", "of rate is not finite"),
        ("rate=0:nan", "of rate is not finite"),
        ("rate=0:1:2", "has the step 2; expected one above 0 that fits"),
        ("rate=0:1:log:0.1", "expected low:high, low:high:log"),
        ("rate=low:high", "The range of rate is 'low:high'; expected low:high"),
        ("epochs=1.5:4", "of epochs has 1.5; the setting is of type int"),
        ("epochs=1:4:0.5", "of epochs has 0.5; the setting is of type int"),
        ("epochs=1,many", "The setting epochs is 'many'; expected a value of type int"),
        ("head=1:3", "head is of type str, which has no range"),
        ("notes=0:1", "notes is of type bool, which has no range"),
        ("head=gated", "needs two or more values, all different"),
        ("head=gated,gated", "needs two or more values, all different"),
        ("sets=a,b", "has a value that is no number, word, true or false, or None"),
        ("seed=0:9", "seed is not searched: the best of many would be luck"),
    ],
)
def test_a_range_that_cannot_be_is_refused(text, match):
    with pytest.raises(InputError, match=match):
        searched_settings(recipe(), ranges=[text])


@pytest.mark.parametrize(
    ("searched", "match"),
    [
        ({}, r"Nothing of the recipe own is to be searched\. Declare .* SEARCHED = .* --range learning_rate="),
        ([], "SEARCHED of the recipe own is no dictionary"),
        ({"rate": (0, 1)}, "expected a Range or a Choice"),
        ({"rate": Range(0.1, 1, log=True, step=0.1)}, "has both log and a step"),
        ({"clip": Choice(1.0, "2")}, "has '2'; the setting is of type float or None"),
        ({"epochs": Choice(True, 4)}, "has True; the setting is of type int"),
    ],
)
def test_what_a_recipe_declares_wrongly_is_refused(searched, match):
    with pytest.raises(InputError, match=match):
        searched_settings(recipe(SEARCHED=searched))


def test_what_is_set_is_not_searched_and_the_command_line_replaces_what_the_recipe_says():
    own = recipe(SEARCHED={"rate": Range(0.1, 1), "epochs": Range(4, 8)})
    assert list(searched_settings(own)) == ["epochs", "rate"]
    assert searched_settings(own, ["epochs=4"], ["rate=2:3", "head=gated,late"]) == {
        "rate": Range(2, 3),
        "head": Choice("gated", "late"),
    }
    with pytest.raises(InputError, match="rate is given by --set and to be searched by --range"):
        searched_settings(own, ["rate=1"], ["rate=2:3"])


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_shipped_recipe_says_what_may_be_searched_and_its_own_settings_are_among_that(name):
    shipped = load_recipe(name)
    searched = searched_settings(shipped)
    assert len(searched) > 2
    assert all(getattr(shipped.settings, setting) in one for setting, one in searched.items())


def test_a_value_is_in_a_range_or_not():
    assert 4 in Range(2, 8, step=2)
    assert 5 not in Range(2, 8, step=2)
    assert 0.3 in Range(0.1, 0.9, step=0.1)
    assert 9 not in Range(2, 8)
    assert None not in Range(2, 8)
    assert True not in Range(0, 8)
    assert 8 in Choice(8, 16)
    assert True not in Choice(1, 2)


def test_settings_are_told_to_be_looked_at_where_they_are():
    from chiasm.recipes.search import _watched

    watched, looked_at = _watched(Settings(epochs=3))
    assert not looked_at
    assert watched.epochs == 3
    assert looked_at == {"epochs"}
    assert dataclasses.replace(watched, epochs=5).rate == 1e-3
