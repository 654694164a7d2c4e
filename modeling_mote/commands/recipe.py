"""Recipes: YAML files of a command's options, which count as if they stood before those on the command line."""

import argparse
from collections.abc import Callable
from pathlib import Path

from .command_line import Parser, suggestion


def add_recipe(parser: Parser) -> Callable[[list[str]], list[str]]:
    """Add `--config`; call it after the options that recipes may hold.

    Returns:
        what puts the options of the recipe before those given.
    """
    parser.add_argument("--config", help="recipe: a YAML file of these options; those of the command line win")
    known = sorted({option[2:] for option in parser.option_names() if option[:2] == "--"} - {"config", "help"})

    def complete(given: list[str]) -> list[str]:
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config", nargs="?")  # the parser itself says what is wrong
        config = finder.parse_known_args(given)[0].config
        return given if config is None else read_recipe(Path(config), known) + given

    return complete


def read_recipe(path: Path, known: list[str]) -> list[str]:
    """The options of a recipe as a command line has them; `./` and `../` at the start of a value are the recipe's.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: no such file.")
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # every value as it is written
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is no YAML file: {error}") from error
    if not isinstance(recipe, dict) or not all(isinstance(value, str) for value in recipe.values()):
        raise ValueError(f"--config {path} must hold lines of `option: value`.")
    unknown = sorted(set(recipe) - set(known))
    if unknown:
        raise ValueError(f"--config {path} has no option {', '.join(unknown)}{suggestion(unknown[0], known)}.")
    return [
        f"--{name}={(path.parent / value).resolve() if value.startswith(('./', '../')) else value}"
        for name, value in recipe.items()
        if value not in ("", "null", "~")
    ]
