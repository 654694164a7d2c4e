"""HMDB51 (Kuehne et al., 2011) as published: `<class>_test_split<fold>.txt` and `<class>/<clip>.avi`."""

from dataclasses import dataclass

from ..label_sets import LabelSet, load_label_set
from .clip_list import Clip, ClipListBuilder, OfficialListConfig, read_lines

# What the number after a clip means; the clips with 0 are in neither split.
USES = {"1": "train", "2": "test", "0": None}


@dataclass
class HMDB51Config(OfficialListConfig):
    """One of the three official splits into train and test.

    Attributes:
        fold: Official split, 1, 2 or 3.
    """

    fold: int = 1

    @property
    def title(self) -> str:
        """What messages call the data set."""
        return f"HMDB51 {self.name}"

    def split_names(self) -> tuple[str, ...]:
        """Return train and test."""
        return "train", "test"

    def read_label_set(self) -> LabelSet:
        """Return the 51 classes under the authors' names."""
        return load_label_set("hmdb51")

    def read_clips(self) -> dict[str, list[Clip]]:
        """Return the clips of the 51 lists `<class>_test_split<fold>.txt`, class after class."""
        clips: dict[str, list[Clip]] = {split: [] for split in self.wanted_splits}
        for name in self.label_set.classes:
            raw_name = name.replace(" ", "_")
            path = self.tree.find_list(f"{raw_name}_test_split{self.fold}.txt")
            label = self.label(raw_name, str(path))
            for line in filter(None, read_lines(path)):
                listed, _, use = line.rpartition(" ")
                if not listed or use not in USES:
                    raise ValueError(f"{path}, line {line!r}: expected a file name and 1 (train), 2 (test) or 0.")
                if (split := USES[use]) in clips:
                    clips[split].append(Clip(self.tree.find_video(f"{raw_name}/{listed.strip()}"), label))
        return clips


class HMDB51(ClipListBuilder):
    """HMDB51: configurations `split1`, `split2`, `split3`, each with the splits `train` and `test`."""

    BUILDER_CONFIG_CLASS = HMDB51Config
    BUILDER_CONFIGS = [HMDB51Config(name=f"split{fold}", fold=fold) for fold in (1, 2, 3)]
    DEFAULT_CONFIG_NAME = "split1"
