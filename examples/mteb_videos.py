"""Score models side by side on one task in MTEB: which of the classes of a folder does each video show?

    python examples/mteb_videos.py --data my_videos --models runs/moving_shapes/model examples/moving_shapes_clip
    python examples/mteb_videos.py --data my_videos --models runs/mine/model microsoft/xclip-base-patch32

The first two are a MoTE and a bare CLIP, whose frame features are averaged; X-CLIP and PE-AV are models that MTEB
knows by name. `--data` has a folder per class. Each text is "a video of …" and a class; the score is MTEB's own, of
`ZeroShotClassificationEvaluator`. Every model gets its frames from the same decoder, by its own wrapper's rule.

Prints each model's top-1 accuracy with N. Needs `pip install "mote-transformers[mteb]"`; models by name a network too.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mteb
import torch
from datasets import Dataset
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from mteb.models import SentenceTransformerEncoderWrapper, Video2ImagesWrapper
from mteb.models.model_implementations.clip_models import CLIPModel
from mteb.models.model_meta import ModelMeta
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig

import modeling_mote  # noqa: F401  registers MoTE, so that no code of a folder runs
from modeling_mote.processing import decode_video
from modeling_mote.processing.class_names import to_words
from modeling_mote.processing.sources import find_videos


class Frames:
    """The frames of a file, as MTEB's collators ask for them: those that every other number here is made of.

    Args:
        path: Of the file.
    """

    def __init__(self, path: str) -> None:
        frames, _ = decode_video(path)
        self.frames = torch.as_tensor(frames).permute(0, 3, 1, 2)  # [n, 3, h, w]
        self.metadata = SimpleNamespace(num_frames=len(self.frames))

    def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
        """`data`, uint8 [t, 3, h, w], of t indices."""
        return SimpleNamespace(data=self.frames[indices])


class VideoFolder(AbsTaskZeroShotClassification):
    """Zero-shot classification of a folder of videos, a folder per class.

    Args:
        data: The folder.
    """

    metadata = TaskMetadata(
        name="VideoFolder",
        description="Videos of a folder against the names of their classes.",
        dataset={"path": "local/videos", "revision": "1"},
        type="VideoZeroshotClassification",
        category="v2t",
        modalities=["video", "text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="accuracy",
    )
    input_column_name = "video"

    def __init__(self, data: str) -> None:
        super().__init__()
        self.folder = data

    def load_data(self, **_: Any) -> None:
        """List the videos; each is decoded when it is asked for."""
        files = find_videos([self.folder]).files
        folders = [Path(file).parent.name for file in files]
        classes = sorted(set(folders))
        self.count = len(files)
        self.labels = [f"a video of {to_words(name)}." for name in classes]
        rows = Dataset.from_dict({"video": files, "label": [classes.index(folder) for folder in folders]})
        self.dataset = {"test": rows.with_transform(self._read)}
        self.data_loaded = True

    @staticmethod
    def _read(rows: dict[str, list]) -> dict[str, list]:
        return rows | ({"video": [Frames(file) for file in rows["video"]]} if "video" in rows else {})

    def get_candidate_labels(self) -> list[str]:
        """The texts that are compared."""
        return self.labels


def load(name: str) -> Any:
    """A model as MTEB runs it: a MoTE as any sentence-transformers model, a local CLIP by the mean of 8 frames.

    Args:
        name: Folder, or a name that MTEB knows.
    """
    if not Path(name).is_dir():
        return mteb.get_model(name)
    kind, called = AutoConfig.from_pretrained(name).model_type, f"local/{Path(name).resolve().name}"
    if kind == "mote":
        model: Any = SentenceTransformerEncoderWrapper(SentenceTransformer(name))
        model.mteb_model_meta = ModelMeta.create_empty({"name": called, "modalities": ["video", "text"]})
        return model
    if kind != "clip":
        raise ValueError(f"{name} holds a model of type {kind!r}: pass a MoTE, a CLIP, or a name that MTEB knows.")
    model = CLIPModel(name, revision=None)  # type: ignore[arg-type]
    model.mteb_model_meta = ModelMeta.create_empty({"name": called, "modalities": ["image", "text"]})
    return Video2ImagesWrapper(model, num_frames=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of videos, with a folder per class")
    parser.add_argument("--models", required=True, nargs="+", help="folders, or names that MTEB knows")
    parser.add_argument("--batch_size", type=int, default=8, help="videos at a time")
    options = parser.parse_args()
    task = VideoFolder(options.data)
    for name in options.models:
        encoding = {"batch_size": options.batch_size, "show_progress_bar": False}
        result = mteb.evaluate(load(name), task, cache=None, encode_kwargs=encoding, show_progress_bar=False)
        scores = result.task_results[0].scores["test"][0]
        top1, asked = 100 * scores["accuracy"], f"{task.count} videos, {len(task.labels)} classes"
        print(f"{name}: top-1 {top1:.2f} % of {asked}")


if __name__ == "__main__":
    main()
