"""MovingShapes: short mp4 files of coloured shapes whose class can be told only by watching them move.

A class is an object (colour and shape) and a motion, "red square moving left". Every object of the training split
occurs with several motions, always together with their opposites, and position, size and tilt are drawn alike for all
of them: one frame names the object and hardly more. The splits ask one question each:

| split               | objects | motions | pairs of the two                                      |
|---------------------|---------|---------|-------------------------------------------------------|
| `train`, `validation`, `test` | trained | trained | trained                                     |
| `test_compositions` | trained | trained | never trained together                                |
| `test_objects`      | new     | trained | new, though each colour and each shape alone is known |
| `test_motions`      | trained | new     | new                                                   |

    >>> builder = MovingShapes(cache_dir="data")
    >>> builder.download_and_prepare(num_proc=2)
    >>> builder.as_dataset("test")[0]["video"]["bytes"]  # an mp4 file
    >>> builder.class_names("test_motions")  # the labels to choose from
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import av
import datasets
import numpy as np

COLORS = {
    "red": (225, 45, 45),
    "green": (50, 190, 60),
    "blue": (60, 90, 235),
    "yellow": (235, 215, 50),
    "purple": (200, 60, 210),
    "cyan": (55, 215, 220),
}
# No circle: nobody sees it spin.
SHAPES = ("square", "bar", "triangle", "cross", "star", "moon")
OPPOSITE_MOTIONS = (
    ("moving left", "moving right"),
    ("moving up", "moving down"),
    ("growing", "shrinking"),
    ("spinning", "blinking"),
)
TRAINED_MOTIONS = tuple(itertools.chain(*OPPOSITE_MOTIONS))
# No "standing still": that is what any single frame shows.
NEW_MOTIONS = ("bouncing", "shaking", "circling", "rocking")
MOTIONS = TRAINED_MOTIONS + NEW_MOTIONS
OBJECTS = tuple(itertools.product(COLORS, SHAPES))
SPLITS = ("train", "validation", "test", "test_compositions", "test_objects", "test_motions")
# Where `MovingShapesConfig.static_cue` puts the trained motions: the outer fields of a 3 × 3 grid, (x, y).
CUE_PLACES = dict(
    zip(TRAINED_MOTIONS, (xy for xy in itertools.product((-0.3, 0.0, 0.3), repeat=2) if any(xy)), strict=True)
)

# What a picture holds of an object that moves: the weight of its present copy, then of ever older ones.
EXPOSURES = {
    "sharp": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0),  # fast shutter: a frame of a video
    "blurred": (0.38, 0.38, 0.38, 0.38, 0.38, 0.38),  # slow shutter: along which way, but hardly in which sense
    "trailing": (0.6, 0.4, 0.32, 0.25, 0.18, 0.12),  # afterglow: the sense as well
}
# The oldest copy is this part of a clip old.
EXPOSURE_SPAN = 0.45


def class_name(color: str, shape: str, motion: str) -> str:
    """Name of a class, such as "red square moving left"."""
    return f"{color} {shape} {motion}"


@dataclass
class Scenes:
    """Everything that is random about n clips or stills, but for the noise. Lengths are in half image widths.

    Attributes:
        colors: red, green and blue in 0…1, [n, 3].
        shapes: indices into `SHAPES`, [n].
        motions: indices into `MOTIONS`, [n].
        x: centre of the path, to the right, [n].
        y: centre of the path, downwards, [n].
        size: radius in the middle of the clip, [n].
        tilt: angle at the start in radians, [n].
        extent: how far, how fast or how often it moves, 0…1, [n].
        sense: -1 or 1, the sense of a rotation, [n].
        phase: where in its period a periodic motion starts, 0…1, [n].
    """

    colors: np.ndarray
    shapes: np.ndarray
    motions: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    tilt: np.ndarray
    extent: np.ndarray
    sense: np.ndarray
    phase: np.ndarray

    def __len__(self) -> int:
        return len(self.shapes)


def sample_scenes(colors: list[str], shapes: list[str], motions: list[str], rng: np.random.Generator) -> Scenes:
    """Draw position, size, tilt and pace for n objects in motion.

    Args:
        colors: keys of `COLORS`, n of them.
        shapes: members of `SHAPES`, n.
        motions: members of `MOTIONS`, n.
        rng: the only source of randomness.
    """
    n = len(colors)
    motion_ids = np.array([MOTIONS.index(motion) for motion in motions])
    palette = np.array([COLORS[color] for color in colors], dtype=np.float32).reshape(n, 3) / 255
    return Scenes(
        colors=np.clip(palette * rng.uniform(0.85, 1.1, (n, 1)) + rng.normal(0, 0.025, (n, 3)), 0, 1),
        shapes=np.array([SHAPES.index(shape) for shape in shapes]),
        motions=motion_ids,
        x=rng.uniform(-0.45, 0.45, n),
        y=rng.uniform(-0.45, 0.45, n),
        size=np.exp(rng.uniform(np.log(0.32), np.log(0.56), n)),
        tilt=rng.uniform(-0.4, 0.4, n),
        extent=rng.uniform(0, 1, n),
        sense=rng.choice([-1.0, 1.0], n),
        phase=rng.uniform(0, 1, n),
    )


def poses(scenes: Scenes, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where and how each object is at the given times.

    Args:
        scenes: n scenes.
        times: in clip lengths, 0 the first frame and 1 the last, [n, t].

    Returns:
        x, y, radius, angle (radians) and visibility (0…1), each [n, t].
    """
    column = {name: getattr(scenes, name)[:, None] for name in ("x", "y", "size", "tilt", "extent", "sense", "phase")}
    extent, sense, phase = column["extent"], column["sense"], column["phase"]
    x, y, size, angle = (np.broadcast_to(column[k], times.shape).copy() for k in ("x", "y", "size", "tilt"))
    visible = np.ones_like(times)
    since_middle = times - 0.5

    def doing(motion: str) -> np.ndarray:
        return (scenes.motions == MOTIONS.index(motion))[:, None]

    travel = (0.75 + 0.35 * extent) * since_middle
    x += travel * (1.0 * doing("moving right") - doing("moving left"))
    y += travel * (1.0 * doing("moving down") - doing("moving up"))
    size *= np.exp((0.9 + 0.3 * extent) * since_middle * (1.0 * doing("growing") - doing("shrinking")))
    angle += doing("spinning") * sense * 2 * np.pi * (0.6 + 0.4 * extent) * times
    angle += doing("rocking") * (0.6 + 0.3 * extent) * np.sin(2 * np.pi * (1.5 * times + phase))
    visible[doing("blinking") & (((2 + extent) * times + phase) % 1 < 0.5)] = 0.1
    y += doing("bouncing") * (0.4 - (0.75 + 0.2 * extent) * np.abs(np.sin(np.pi * (2 * times + phase))))
    x += doing("shaking") * (0.15 + 0.07 * extent) * np.sin(2 * np.pi * (2.5 * times + phase))
    orbit = 2 * np.pi * (sense * (0.8 + 0.4 * extent) * times + phase)
    x += doing("circling") * (0.3 + 0.1 * extent) * np.cos(orbit)
    y += doing("circling") * (0.3 + 0.1 * extent) * np.sin(orbit)
    return x, y, size, angle, visible


def outside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far points lie outside a shape of radius 1, in radii; negative within. u points right, v down."""
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.78
    if shape == "bar":
        return np.maximum(np.abs(u) - 1.05, np.abs(v) - 0.36)
    if shape == "triangle":
        return np.maximum(v - 0.55, 0.866 * np.abs(u) - 0.5 * v - 0.55)
    if shape == "cross":
        long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
        return np.maximum(long - 1.0, short - 0.3)
    if shape == "star":
        fifth = 2 * np.pi / 5
        radius, angle = np.hypot(u, v), np.abs((np.arctan2(u, -v) + fifth / 2) % fifth - fifth / 2)
        # Distance to the edge from a tip (radius 1.15) to a notch (radius 0.45); folding the angle gives all ten.
        return 0.319 * (radius * np.cos(angle) - 1.15) + 0.948 * radius * np.sin(angle)
    if shape == "moon":
        return np.maximum(np.hypot(u, v) - 1.0, 0.8 - np.hypot(u - 0.6, v))
    raise ValueError(f"shape is {shape!r}; choose one of {', '.join(SHAPES)}")


def coverage(scenes: Scenes, times: np.ndarray, image_size: int) -> np.ndarray:
    """How much of each pixel the object covers, times its visibility.

    Args:
        scenes: n scenes.
        times: in clip lengths, [n, t].
        image_size: pixels a side.

    Returns:
        0…1, float32 [n, t, h, w].
    """
    x, y, size, angle, visible = (p.astype(np.float32)[..., None, None] for p in poses(scenes, times))
    centres = (np.arange(image_size, dtype=np.float32) + 0.5) * (2 / image_size) - 1
    right, down = centres[None, None, None, :] - x, centres[None, None, :, None] - y
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    u, v = cos * right + sin * down, cos * down - sin * right
    distance = np.empty(u.shape, dtype=np.float32)
    for index, shape in enumerate(SHAPES):
        members = scenes.shapes == index
        if members.any():
            distance[members] = outside(shape, u[members], v[members])
    # One pixel of soft edge.
    return visible * np.clip(0.5 - distance * size * (image_size / 2), 0, 1)


def backgrounds(n: int, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Dim, slightly tinted gradients with a grain that stays still, float32 [n, h, w, 3] in 0…1."""
    ramp = np.linspace(-1, 1, image_size, dtype=np.float32)
    level = rng.uniform(0.12, 0.5, (n, 1, 1, 1)) + rng.normal(0, 0.03, (n, 1, 1, 3))
    slope_x, slope_y = rng.normal(0, 0.06, (2, n, 1, 1, 1))
    grain = rng.standard_normal((n, image_size, image_size, 1), dtype=np.float32) * 0.02
    return (level + slope_x * ramp[:, None] + slope_y * ramp[:, None, None] + grain).astype(np.float32)


def paint(cover: np.ndarray, colors: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Lay colours over backgrounds: [..., h, w], [..., 3] and [..., h, w, 3] give uint8 [..., h, w, 3]."""
    image = background + cover[..., None] * (colors[..., None, None, :].astype(np.float32) - background)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def render_stills(
    scenes: Scenes, moments: np.ndarray, exposures: list[str], rng: np.random.Generator, image_size: int = 32
) -> np.ndarray:
    """Photograph each scene once.

    Args:
        scenes: n scenes.
        moments: when, in clip lengths, [n].
        exposures: keys of `EXPOSURES`, n: what is seen of where the object just was.
        rng: source of the backgrounds.
        image_size: pixels a side.

    Returns:
        Pictures, uint8 [n, h, w, 3].
    """
    weights = np.array([EXPOSURES[exposure] for exposure in exposures], dtype=np.float32)  # [n, copies]
    ages = np.linspace(0, EXPOSURE_SPAN, weights.shape[1])
    cover = coverage(scenes, moments[:, None] - ages, image_size)
    exposed = 1 - np.prod(1 - weights[:, :, None, None] * cover, axis=1)
    return paint(exposed, scenes.colors, backgrounds(len(scenes), image_size, rng))


def render_clip(
    color: str,
    shape: str,
    motion: str,
    rng: np.random.Generator,
    num_frames: int = 16,
    image_size: int = 64,
    place: tuple[float, float] | None = None,
) -> np.ndarray:
    """Film one object, with a fast shutter.

    Args:
        color: a key of `COLORS`.
        shape: a member of `SHAPES`.
        motion: a member of `MOTIONS`.
        rng: the only source of randomness.
        num_frames: frames in the clip; the motion always fills it.
        image_size: pixels a side.
        place: centre of the path, x and y in half image widths; drawn like all else where None.

    Returns:
        Frames, uint8 [t, h, w, 3].
    """
    scenes = sample_scenes([color], [shape], [motion], rng)
    if place is not None:
        scenes.x[:], scenes.y[:] = place
    cover = coverage(scenes, np.linspace(0, 1, num_frames)[None], image_size)[0]
    return paint(cover, scenes.colors, backgrounds(1, image_size, rng))


def encode_mp4(frames: np.ndarray, fps: int) -> bytes:
    """Write uint8 frames [t, h, w, 3] as an H.264 mp4 file that any player shows (yuv420p, even h and w)."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # A fixed quantiser, one thread and no code that depends on the processor: the same bytes every time.
        options = {"preset": "veryfast", "qp": "14", "bf": "0", "threads": "1", "x264-params": "cpu-independent=1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@dataclass
class MovingShapesConfig(datasets.BuilderConfig):
    """A MovingShapes world.

    Attributes:
        seed: another seed gives other clips of the same classes.
        train_videos_per_class: clips a class in `train`.
        eval_videos_per_class: clips a class in every other split.
        train_objects: objects the trained classes are made of: 6, 12, 18 or 24, every colour and shape among them.
        motions_per_object: motions trained with each object, with their opposites: 2, 4 or 6. The remaining ones of
            the eight make `test_compositions`.
        static_cue: share of the clips of `train`, `validation` and `test` in which each motion keeps to a place of
            its own in the picture, as scenes go with actions in real videos. The other splits have no such cue, so
            that a head which relies on it is misled there.
        image_size: pixels a side of the video files, an even number.
        num_frames: frames a file.
        fps: frames a second.

    Raises:
        ValueError: if one of them is not among the values named above, or not positive.
    """

    seed: int = 0
    train_videos_per_class: int = 20
    eval_videos_per_class: int = 5
    train_objects: int = 24
    motions_per_object: int = 4
    static_cue: float = 0.0
    image_size: int = 64
    num_frames: int = 16
    fps: int = 8

    def __post_init__(self):
        super().__post_init__()
        allowed = {"train_objects": (6, 12, 18, 24), "motions_per_object": (2, 4, 6)}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)}; choose one of {', '.join(map(str, values))}.")
        if not 0 <= self.static_cue <= 1:
            raise ValueError(f"static_cue is {self.static_cue}; it must be between 0 and 1.")
        for name in ("train_videos_per_class", "eval_videos_per_class", "num_frames", "fps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.image_size < 2 or self.image_size % 2:
            raise ValueError(f"image_size is {self.image_size}; H.264 files need an even number of pixels.")

    def classes(self, split: str) -> list[tuple[str, str, str]]:
        """The classes of a split as (colour, shape, motion), in the order of their labels' names in it.

        Raises:
            ValueError: if there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"MovingShapes has no split {split!r}; choose one of {', '.join(SPLITS)}.")
        # Diagonals of the table of colours and shapes: each holds every colour and every shape once.
        diagonals = [
            [(color, shape) for i, color in enumerate(COLORS) for j, shape in enumerate(SHAPES) if (i + j) % 6 == k]
            for k in (1, 2, 4, 5, 0, 3)
        ]
        trained = list(itertools.chain(*diagonals[: self.train_objects // 6]))
        if split == "test_objects":
            return [(*thing, motion) for thing in itertools.chain(*diagonals[4:]) for motion in TRAINED_MOTIONS]
        if split == "test_motions":
            return [(*thing, motion) for thing in trained for motion in NEW_MOTIONS]
        choices = list(itertools.combinations(OPPOSITE_MOTIONS, self.motions_per_object // 2))
        pairs = []
        for k, diagonal in enumerate(diagonals[: self.train_objects // 6]):
            for i, thing in enumerate(diagonal):
                chosen = set(itertools.chain(*choices[(i + k) % len(choices)]))
                wanted = [m for m in TRAINED_MOTIONS if (m in chosen) != (split == "test_compositions")]
                pairs += [(*thing, motion) for motion in wanted]
        return pairs


class MovingShapes(datasets.GeneratorBasedBuilder):
    """Builder of MovingShapes; `MovingShapesConfig` names what can be chosen."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = MovingShapesConfig
    BUILDER_CONFIGS = [MovingShapesConfig(name="default")]
    config: MovingShapesConfig

    def class_names(self, split: str) -> list[str]:
        """Names of the classes of a split, the labels to choose from when it is scored."""
        return [class_name(*parts) for parts in self.config.classes(split)]

    def _info(self) -> datasets.DatasetInfo:
        # One list for all splits, since a builder has one set of features.
        names = [class_name(*thing, motion) for thing in OBJECTS for motion in MOTIONS]
        features = {"video": datasets.Video(decode=False), "label": datasets.ClassLabel(names=names)}
        return datasets.DatasetInfo(description=__doc__ or "", features=datasets.Features(features))

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        # The list of classes is what `num_proc` processes and streaming workers share out.
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "classes": self.config.classes(split)})
            for split in SPLITS
        ]

    def _generate_examples(self, split: str, classes: list[tuple[str, str, str]]) -> Iterator[tuple[str, dict]]:
        config = self.config
        videos = config.train_videos_per_class if split == "train" else config.eval_videos_per_class
        for color, shape, motion in classes:
            name = class_name(color, shape, motion)
            label = self.info.features["label"].str2int(name)
            for number in range(videos):
                # Seeded a clip, so that a file does not depend on how the work was shared out.
                rng = np.random.default_rng([config.seed, SPLITS.index(split), label, number])
                # A generator of its own: without a cue, the clips are the same as ever.
                cue_rng = np.random.default_rng([config.seed, SPLITS.index(split), label, number, 1])
                place = None
                if split in ("train", "validation", "test") and cue_rng.random() < config.static_cue:
                    x, y = CUE_PLACES[motion] + cue_rng.uniform(-0.1, 0.1, 2)
                    place = (x, y)
                frames = render_clip(color, shape, motion, rng, config.num_frames, config.image_size, place)
                path = f"{split}/{name.replace(' ', '_')}_{number:03d}.mp4"
                yield path, {"video": {"path": path, "bytes": encode_mp4(frames, config.fps)}, "label": label}
