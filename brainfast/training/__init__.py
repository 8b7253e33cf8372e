"""Training: recipes, losses, checkpoints, the loop, and the soup of its best checkpoints."""

from .fit import fit
from .recipes import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe", "fit"]
