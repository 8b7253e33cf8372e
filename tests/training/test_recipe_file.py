"""Recipes from JSON files: a model's card, one's own, and mistakes in them."""

from __future__ import annotations

import json

import pytest

from brainfast.errors import BrainfastError
from brainfast.training import GroupRecipe
from brainfast.training.group_recipes import find_group_recipe
from brainfast.training.recipes import Recipe, find_recipe


def test_a_recipe_comes_back_from_the_card_that_keeps_it(tmp_path):
    path = tmp_path / "config.json"
    recipe = Recipe(name="mine", lr=3e-4, head={"dim": 7}, betas=(0.8, 0.9))
    path.write_text(json.dumps({"training": {"recipe": recipe.model_dump(mode="json")}}))
    assert find_recipe(str(path)) == recipe
    phase_2 = find_group_recipe("llm-vem", 2, "paper")
    path.write_text(phase_2.model_dump_json())
    assert find_group_recipe("llm-vem", 2, str(path)) == phase_2


def test_what_is_left_out_is_the_papers_and_the_file_gives_the_name(tmp_path):
    path = tmp_path / "slow.json"
    path.write_text('{"lr": 1e-5}')
    assert find_recipe(str(path)) == Recipe(name="slow", lr=1e-5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"lr": -1}', "lr: expected a field of Recipe, got Input should be greater than 0"),
        ('{"learning_rate": 1}', "learning_rate: expected a field of Recipe"),
        ("[1]", "expected the fields of a recipe"),
        ("{", "recipe.json"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, told):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(BrainfastError, match=told):
        find_recipe(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BrainfastError, match="nothing there"):
        find_group_recipe("blobgpt", 1, str(tmp_path / "none.json"))


def test_epochs_become_the_steps_of_this_group():
    recipe = find_group_recipe("llm-vem", 2, "paper")
    assert recipe.for_pairs(63_823).steps == 2081  # all of Algonauts, 6 times 184 at a time
    assert recipe.for_pairs(1840).steps == 60
    assert recipe.for_pairs(1840).warm_up == 6
    assert recipe.for_pairs(100).steps == 6  # a batch holds all of them once
    fixed = recipe.changed({"steps": 9})
    assert (fixed.epochs, fixed.for_pairs(1840).steps) == (None, 9)
    plain = GroupRecipe(name="plain", steps=5)
    assert plain.for_pairs(1840) == plain
