"""Training: recipes, losses, checkpoints, the loop, and the soup of its best checkpoints."""

from .fit import fit
from .group_fit import fit_group
from .group_recipes import GROUP_RECIPES, GroupRecipe
from .new_subject import add_subject
from .recipes import RECIPES, Recipe

__all__ = ["GROUP_RECIPES", "RECIPES", "GroupRecipe", "Recipe", "add_subject", "fit", "fit_group"]
