"""MoTE for transformers: importing this package registers it with the Auto classes and `pipeline()`."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .processing.lazy import lazy_names

if TYPE_CHECKING:
    from .configuration_mote import MoTEConfig, MoTETemporalConfig
    from .explanation import Explanation, explain
    from .modeling_mote import MoTEForVideoClassification, MoTEModel, MoTETemporalModel
    from .modulation_search import choose_modulation_temperature
    from .token_merging import merge_tokens

__version__ = "0.2.0"

__getattr__ = lazy_names(
    __name__,
    {
        "Explanation": "explanation",
        "MoTEConfig": "configuration_mote",
        "MoTEForVideoClassification": "modeling_mote",
        "MoTEModel": "modeling_mote",
        "MoTETemporalConfig": "configuration_mote",
        "MoTETemporalModel": "modeling_mote",
        "choose_modulation_temperature": "modulation_search",
        "explain": "explanation",
        "merge_tokens": "token_merging",
    },
)


def _is_command() -> bool:
    """Whether this process is `mote`, or `python -m modeling_mote…`."""
    if sys.argv[:1] != ["-m"]:  # what it is while the package of a module that `python -m` runs is imported
        return Path(sys.argv[0] if sys.argv else "").stem == "mote"
    return any(f"{each}.".startswith(f"{__name__}.") for each in sys.orig_argv)


# A command answers --help and a wrong path before it needs PyTorch (seconds); whatever loads a checkpoint registers.
if not _is_command():
    importlib.import_module(".registration", __name__)

__all__ = [
    "Explanation",
    "MoTEConfig",
    "MoTEForVideoClassification",
    "MoTEModel",
    "MoTETemporalConfig",
    "MoTETemporalModel",
    "choose_modulation_temperature",
    "explain",
    "merge_tokens",
]


def __dir__() -> list[str]:
    """The lazy names too, for whoever presses Tab."""
    return sorted({*globals(), *__all__})
