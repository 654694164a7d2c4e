"""Worlds of MovingShapes as frame features of the tiny CLIP, and the top-1 of video features in them.

All experiments on heads start here: every frame of a world is encoded once, by `examples/moving_shapes_clip`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import harmonic_mean, mean
from typing import Any

import datasets
import torch
import torch.nn.functional as F
import transformers
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoTokenizer, CLIPImageProcessor

from modeling_mote import MoTEForVideoClassification
from modeling_mote.feature_cache import class_features
from modeling_mote.processing import MoTEVideoProcessor
from modeling_mote.processing.builders import MovingShapes
from modeling_mote.processing.builders.moving_shapes import MOTIONS, OBJECTS, class_name
from modeling_mote.processing.clips import VideoClips, collate_clips
from modeling_mote.processing.tensor_files import load_tensors, save_tensors

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "examples" / "moving_shapes_clip"
NUM_FRAMES = 8
SPLIT_TITLES = {  # of the splits that are scored
    "test": "trained classes",
    "test_compositions": "unseen pairs",
    "test_objects": "unseen objects",
    "test_motions": "unseen motions",
}
SPLITS = ("train", *SPLIT_TITLES)
UNSEEN = ("compositions", "objects", "motions")  # columns of the last three, each with its own classes' names
NAMES = ("names_objects", "names_motions")  # with the names of all objects, without a motion
COLUMNS = {
    "trained": "trained classes",
    "compositions": "unseen compositions",
    "objects": "unseen objects",
    "motions": "unseen motions",
    "trade_off": "trade-off",
    "one_list_trained": "one list: trained",
    "one_list_unseen": "one list: unseen",
    "names_objects": "object names: unseen objects",
    "names_motions": "object names: unseen motions",
}


@dataclass(frozen=True)
class World:
    """Options of `MovingShapesConfig`; another seed gives other clips of the same classes."""

    train_objects: int
    motions_per_object: int
    static_cue: float
    train_videos_per_class: int = 20
    eval_videos_per_class: int = 5
    seed: int = 0

    @property
    def name(self) -> str:
        return (
            f"{self.train_objects}objects_{self.motions_per_object}motions_cue{self.static_cue}"
            f"_{self.train_videos_per_class}train_{self.eval_videos_per_class}eval_seed{self.seed}"
        )


@dataclass
class Data:
    """A world as features: frame_embeds [n, t, d] and class indices [n] per split; class features by their names."""

    classes: dict[str, list[tuple[str, str, str]]]
    frame_embeds: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    text_embeds: dict[str, torch.Tensor]

    def names(self, split: str) -> list[str]:
        return [class_name(*parts) for parts in self.classes[split]]

    def candidates(self, names: Iterable[str]) -> torch.Tensor:
        return torch.stack([self.text_embeds[name] for name in names])

    @property
    def width(self) -> int:
        """Of the features, d."""
        return self.frame_embeds["train"].shape[-1]

    def widened(self, width: int) -> "Data":
        """The same world in wider features: turned into a larger space, where every cosine is what it was."""
        drawn = torch.randn(width, self.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        turned = torch.linalg.qr(drawn)[0].float().T  # its rows are orthonormal
        return replace(
            self,
            frame_embeds={split: frames @ turned for split, frames in self.frame_embeds.items()},
            text_embeds={name: embed @ turned for name, embed in self.text_embeds.items()},
        )


def quiet() -> None:
    transformers.logging.set_verbosity_error()  # no report on the head, which a bare CLIP has none of
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def load_clip(kind: type[MoTEForVideoClassification] = MoTEForVideoClassification, **config: Any) -> Any:
    """The tiny CLIP with a new head, drawn from PyTorch's generator."""
    return kind.from_pretrained(CLIP, num_frames=NUM_FRAMES, dtype=torch.float32, **config)


def clips_of_split(
    builder: MovingShapes, split: str, video_processor: MoTEVideoProcessor, num_frames: int, first: int | None = None
) -> tuple[VideoClips, list[str]]:
    """A split's clips, of each class the first few if asked, and the names of its classes, which labels count."""
    rows, names = builder.as_dataset(split), builder.class_names(split)
    if first is not None:
        videos = len(rows) // len(names)
        rows = rows.select([index for index in range(len(rows)) if index % videos < first])
    labels = {rows.features["label"].str2int(name): index for index, name in enumerate(names)}
    return VideoClips(rows, video_processor, num_frames, "uniform", labels=labels), names


def read_clips(builder: MovingShapes, split: str, first: int | None = None) -> Iterator[dict[str, Any]]:
    """Batches of a split's pixels and class indices, of the first few clips of each class if asked."""
    pixels = CLIPImageProcessor.from_pretrained(CLIP)
    video_processor = MoTEVideoProcessor(
        size={"shortest_edge": pixels.crop_size["height"]},
        crop_size=pixels.crop_size,
        image_mean=pixels.image_mean,
        image_std=pixels.image_std,
    )
    clips, _ = clips_of_split(builder, split, video_processor, NUM_FRAMES, first)
    for batch in DataLoader(clips, batch_size=64, collate_fn=collate_clips):
        if batch["errors"]:
            raise ValueError(f"A clip of {builder.cache_dir} can't be read: {batch['errors'][0][-1]}")
        yield batch | clips.inputs(batch)


@torch.no_grad()
def encode_world(world: World, output: Path) -> MovingShapes:
    """Writes a world's videos, encodes every frame once, and keeps the features."""
    builder = MovingShapes(cache_dir=str(output / "data"), **asdict(world))
    builder.download_and_prepare()
    path = output / "worlds" / f"{world.name}.safetensors"
    if not path.is_file():
        model = load_clip().eval()
        tensors: dict[str, torch.Tensor] = {}
        for split in tqdm(SPLITS, desc="encoding frames"):
            frames, labels = [], []
            for batch in read_clips(builder, split):
                frames.append(model.get_frame_features(batch["pixel_values_videos"]).pooler_output)
                labels.append(batch["labels"])
            tensors |= {f"{split}.frame_embeds": torch.cat(frames), f"{split}.labels": torch.cat(labels)}
        save_tensors(tensors, path)
    return builder


def load_world(world: World, output: Path) -> Data:
    """The features of a world that was encoded, and those of every class name that its scores use."""
    tensors, _ = load_tensors(output / "worlds" / f"{world.name}.safetensors")
    config = MovingShapes.BUILDER_CONFIG_CLASS(**asdict(world))
    things = [" ".join(thing) for thing in OBJECTS]
    names = things + [f"{thing} {motion}" for thing in things for motion in MOTIONS]
    embeds = class_features(load_clip(), AutoTokenizer.from_pretrained(CLIP), names, cache_dir=output)
    return Data(
        classes={split: config.classes(split) for split in SPLITS},
        frame_embeds={split: tensors[f"{split}.frame_embeds"] for split in SPLITS},
        labels={split: tensors[f"{split}.labels"] for split in SPLITS},
        text_embeds=dict(zip(names, embeds, strict=True)),
    )


# Cosines [n, c] of a split's clips to candidate classes [c, d].
Cosines = Callable[[str, torch.Tensor], torch.Tensor]


def right_answers(cosines: Cosines, data: Data) -> dict[str, torch.Tensor]:
    """Whether each clip's best label is its own, [n] per split, out of the labels of that split."""
    return {
        split: cosines(split, data.candidates(data.names(split))).argmax(-1) == data.labels[split]
        for split in SPLITS[1:]
    }


def score(cosines: Cosines, data: Data) -> dict[str, float]:
    """Top-1 of every column."""
    everything = [name for split in SPLITS[1:] for name in data.names(split)]
    things = [" ".join(thing) for thing in OBJECTS]
    columns = {}

    def top1(split: str, names: list[str], truth: list[str]) -> float:
        found = cosines(split, data.candidates(names)).argmax(-1)
        targets = torch.tensor([names.index(name) for name in truth])[data.labels[split]]
        return (found == targets).double().mean().item()

    for split, column in zip(SPLITS[1:], ("trained", *UNSEEN), strict=True):
        names = data.names(split)
        columns[column] = top1(split, names, names)
        columns[f"one_list_{column}"] = top1(split, everything, names)
        columns[f"names_{column}"] = top1(
            split, things, [f"{color} {shape}" for color, shape, _ in data.classes[split]]
        )
    columns["one_list_unseen"] = mean(columns[f"one_list_{column}"] for column in UNSEEN)
    columns["trade_off"] = trade_off(columns)
    return columns


def trade_off(columns: dict[str, float]) -> float:
    """As the paper's table 4: harmonic mean over the unseen sets, then with the trained one."""
    unseen = [columns[column] for column in UNSEEN]
    return harmonic_mean([columns["trained"], harmonic_mean(unseen)])


def plain_clip(data: Data) -> dict[str, float]:
    """CLIP's own scores, of the mean over frames."""
    return score(lambda split, candidates: F.normalize(data.frame_embeds[split].mean(1), dim=-1) @ candidates.T, data)


def probe(data: Data) -> float:
    """Top-1 on trained classes of a linear classifier of the mean frame, which knows nothing of time."""
    mean_frames = {split: F.normalize(data.frame_embeds[split].mean(1), dim=-1) for split in ("train", "test")}
    classifier = torch.nn.Linear(mean_frames["train"].shape[1], len(data.classes["train"]))
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(classifier(mean_frames["train"]), data.labels["train"])
        value = value + 1e-4 * classifier.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    found = classifier(mean_frames["test"]).argmax(-1)
    return (found == data.labels["test"]).double().mean().item()


def unmodulated(moved: dict[str, torch.Tensor], data: Data) -> Cosines:
    """Cosines of e + h, of the temporal part [n, d] per split."""

    def cosines(split: str, candidates: torch.Tensor) -> torch.Tensor:
        return F.normalize(data.frame_embeds[split].mean(1) + moved[split], dim=-1) @ candidates.T

    return cosines
