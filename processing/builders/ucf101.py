"""UCF101 (Soomro et al., 2012) as published: `ucfTrainTestlist/` and `<Class>/v_<Class>_g<group>_c<clip>.avi`."""

from dataclasses import dataclass

from ..label_sets import LabelSet, load_label_set
from .clip_list import Clip, ClipListBuilder, OfficialListConfig, read_lines


@dataclass
class UCF101Config(OfficialListConfig):
    """One of the three official splits into train and test.

    Attributes:
        fold: Official split, 1, 2 or 3.
    """

    fold: int = 1

    @property
    def title(self) -> str:
        """What messages call the data set."""
        return f"UCF101 {self.name}"

    def split_names(self) -> tuple[str, ...]:
        """Return train and test."""
        return "train", "test"

    def read_label_set(self) -> LabelSet:
        """Return the 101 classes under the authors' names."""
        return load_label_set("ucf101")

    def read_clips(self) -> dict[str, list[Clip]]:
        """Return the clips of `trainlist0<fold>.txt` and `testlist0<fold>.txt`."""
        class_index = self.tree.find_list("classInd.txt")
        numbered = {}  # {number in the training lists: label}
        for line in filter(None, read_lines(class_index)):
            number, _, raw_name = line.partition(" ")
            numbered[number] = self.label(raw_name.strip(), str(class_index))

        clips: dict[str, list[Clip]] = {}
        for split in self.wanted_splits:
            path = self.tree.find_list(f"{split}list0{self.fold}.txt")
            clips[split] = []
            for line in filter(None, read_lines(path)):
                listed, _, number = line.partition(" ")
                label = self.label(listed.split("/")[0], f"{path}, line {line!r}")
                if number and numbered.get(number.strip()) != label:
                    raise ValueError(f"{path}, line {line!r}: {class_index.name} gives its number another class.")
                clips[split].append(Clip(self.tree.find_video(listed), label))
        return clips


class UCF101(ClipListBuilder):
    """UCF101: configurations `split1`, `split2`, `split3`, each with the splits `train` and `test`."""

    BUILDER_CONFIG_CLASS = UCF101Config
    BUILDER_CONFIGS = [UCF101Config(name=f"split{fold}", fold=fold) for fold in (1, 2, 3)]
    DEFAULT_CONFIG_NAME = "split1"
