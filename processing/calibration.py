"""What scores mean, learned from labelled clips: how sure to be, how well a label fits, whether any does.

`fit_calibration` makes a `Calibration` of cosines and true labels; `answers.py` applies it. It is a few numbers, which
a checkpoint keeps in `config.calibration`. It holds for videos and label lists like those that it was fitted on: in a
list of another length, or on videos of another kind, it is a guess.

Shapes: b clips, c candidate labels.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

KEPT_RESIDUALS = 200
LEAST_CLIPS = 10
LISTED_CLIPS = 2000  # that lists of labels are drawn for; of more, evenly spread ones
PRIOR = 1e-2  # pulls weights towards 0, so that clips that are all told apart give finite ones
STEPS = 100
# Indices of clips [r] and of labels [k] → cosines [r, k].
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Calibration:
    """What a checkpoint knows of its scores.

    Attributes:
        temperature: of softmax(cosine / temperature), at which the true labels are likeliest (Guo et al., arXiv
            1706.04599).
        sigmoid: scale and bias of sigmoid(scale · cosine + bias), for each label by itself.
        known: of the log-odds that the true label is in the list: weights of the largest cosine, of the mean of all,
            of log c, and of the first two times log c; and a bias.
        residuals: -log of the true label's probability for clips of rank `ranks` among all, in rising order.
        ranks: from 1 to `num_clips`.
        num_clips: labelled clips that it was fitted on.
        num_labels: labels in their list.
    """

    temperature: float
    sigmoid: tuple[float, ...]
    known: tuple[float, ...]
    residuals: tuple[float, ...]
    ranks: tuple[int, ...]
    num_clips: int
    num_labels: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If something is missing, of a wrong length, or no finite number.
        """
        names = [each.name for each in fields(cls)]
        lengths = {"sigmoid": 2, "known": 6, "ranks": len(values.get("residuals") or ())}
        try:
            taken = {name: values[name] for name in names}
            plain = {
                name: tuple(float(each) for each in value) if isinstance(value, (list, tuple)) else float(value)
                for name, value in taken.items()
            }
            numbers = [each for value in plain.values() for each in (value if isinstance(value, tuple) else (value,))]
            whole = all(len(plain[name]) == length for name, length in lengths.items())  # type: ignore[arg-type]
            if not (all(map(math.isfinite, numbers)) and whole and plain["residuals"] and taken["temperature"] > 0):
                raise ValueError("numbers are missing or no finite ones")
            plain["ranks"] = tuple(int(each) for each in taken["ranks"])
            return cls(**plain | {name: int(taken[name]) for name in ("num_clips", "num_labels")})  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"calibration in the configuration is damaged ({error}): fit it anew (mote calibrate), or set it to "
                "null"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def log_probabilities(self, cosines: torch.Tensor) -> torch.Tensor:
        """Logarithms of the labels' probabilities, if one of them is the true one: [b, c] of [b, c]."""
        return (cosines.double() / self.temperature).log_softmax(-1)

    def label_probabilities(self, cosines: torch.Tensor) -> torch.Tensor:
        """Probability of each label by itself, whatever the others: [b, c] of [b, c]."""
        scale, bias = self.sigmoid
        return (scale * cosines.double() + bias).sigmoid()

    def known_probability(self, cosines: torch.Tensor) -> torch.Tensor:
        """Probability that the true label is in the list at all, [b] of [b, c]."""
        weights = torch.tensor(self.known, dtype=torch.float64, device=cosines.device)
        return (_list_features(cosines) @ weights[:-1] + weights[-1]).sigmoid()

    def largest_residual(self, coverage: float) -> float:
        """The residual up to which labels belong to a set that holds the true one with this probability.

        Split conformal prediction: of n clips, the one of rank ceil((n + 1) · coverage); infinity, so that a set holds
        every label, if n clips are too few for it.
        """
        rank = math.ceil((self.num_clips + 1) * coverage - 1e-9)
        return next(
            (residual for place, residual in zip(self.ranks, self.residuals, strict=True) if place >= rank), math.inf
        )


def calibration_of(config: Any) -> Calibration | None:
    """The calibration that a model's configuration holds; None if it was never fitted.

    Raises:
        ValueError: If it is damaged.
    """
    values = getattr(config, "calibration", None)
    return None if values is None else Calibration.from_dict(values)


def without_true(cosines: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What the clips would be scored by if their true labels were not in the list: [b, c - 1] of [b, c]."""
    return cosines[~F.one_hot(labels, cosines.shape[1]).bool()].view(len(cosines), -1)


def fit_calibration(cosines: Any, labels: Any, score: Score | None = None) -> Calibration:
    """Fit a calibration to labelled clips.

    What "none of these" looks like is learned from the same clips: each with its true label in the list and left out
    of it, in lists of every length up to c; and from the same lists the probability of each label by itself.

    Args:
        cosines: of the clips to all labels of the list, [b, c].
        labels: index of each clip's true label, [b].
        score: cosines of some of the clips to some of the labels alone, of their indices [r] and [k], [r, k]; by
            default those of `cosines`. With feature modulation a cosine depends on the other labels of the list, so
            that short lists have to be scored by the model.

    Returns:
        The calibration.

    Raises:
        ValueError: For shapes that do not fit, fewer than `LEAST_CLIPS` clips or 3 labels, cosines that are no finite
            numbers, and labels that are no index.
    """
    values = torch.as_tensor(cosines).detach().to("cpu", torch.float64)
    truth = torch.as_tensor(labels).to("cpu")
    if values.dim() != 2 or truth.shape != values.shape[:1]:
        raise ValueError(f"cosines must be [b, c] and labels [b], got {list(values.shape)} and {list(truth.shape)}")
    count, width = values.shape
    if count < LEAST_CLIPS or width < 3:
        raise ValueError(
            f"a calibration needs at least {LEAST_CLIPS} labelled clips and 3 labels, got {count} and {width}"
        )
    if not values.isfinite().all():
        raise ValueError("a cosine is no finite number: leave out clips that could not be scored")
    if truth.is_floating_point() or truth.dtype == torch.bool or not ((truth >= 0) & (truth < width)).all():
        raise ValueError(f"labels must be whole numbers from 0 to {width - 1}")
    truth = truth.long()
    temperature = _fit_temperature(values, truth)
    residuals = -(values / temperature).log_softmax(-1).gather(1, truth[:, None])[:, 0]
    lists = list(_draw_lists(score or (lambda rows, columns: values[rows][:, columns]), truth, width))
    ranks = torch.linspace(1, count, min(count, KEPT_RESIDUALS)).round().long()
    return Calibration(
        temperature=temperature,
        sigmoid=_fit_logistic(
            torch.cat([each.cosines.reshape(-1, 1) for each in lists]),
            torch.cat([each.is_true.reshape(-1) for each in lists]),
        ),
        known=_fit_logistic(
            torch.cat([_list_features(each.cosines) for each in lists]),
            torch.cat([torch.full((len(each.cosines),), each.listed) for each in lists]),
        ),
        residuals=tuple(residuals.sort().values[ranks - 1].tolist()),
        ranks=tuple(ranks.tolist()),
        num_clips=count,
        num_labels=width,
    )


def _list_features(cosines: torch.Tensor) -> torch.Tensor:
    """What tells whether a label of the list fits, [b, 5] of [b, c]; see `Calibration.known`.

    The largest of many cosines is large by chance, and how large the others are says how much: both grow with the
    length of the list.
    """
    values = cosines.double()
    largest, mean = values.amax(-1, keepdim=True), values.mean(-1, keepdim=True)
    length = torch.full_like(mean, math.log(values.shape[-1]))
    return torch.cat([largest, mean, length, largest * length, mean * length], dim=-1)


class _List(NamedTuple):
    """Cosines of some clips to a list of labels, [r, k], which of these are true, [r, k], and whether any is."""

    cosines: torch.Tensor
    is_true: torch.Tensor
    listed: bool


def _draw_lists(score: Score, labels: torch.Tensor, width: int) -> Iterator[_List]:
    """Lists of 1, 2, 4, ... and c labels, and for each length clips whose label is in them and others."""
    generator = torch.Generator().manual_seed(0)
    some = torch.linspace(0, len(labels) - 1, min(len(labels), LISTED_CLIPS)).round().long()

    def scored(columns: torch.Tensor, of: torch.Tensor, listed: bool) -> Iterator[_List]:
        rows = some[torch.isin(labels[some], of)]
        if len(rows):
            cosines = torch.as_tensor(score(rows, columns)).detach().to("cpu", torch.float64)
            yield _List(cosines, labels[rows, None] == columns, listed)

    for length in (2**power for power in range(20) if 2**power < width):
        lists = torch.randperm(width, generator=generator).split(length)  # at least two: every label is in one
        for own, others in zip(lists, (*lists[1:], lists[0]), strict=True):
            yield from scored(own, own, listed=True)
            yield from scored(others, own, listed=False)
    everything = torch.arange(width)
    yield from scored(everything, everything, listed=True)
    for label in everything:
        yield from scored(everything[everything != label], label[None], listed=False)


def _fit_temperature(cosines: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature of the least cross-entropy, found by halving on a logarithmic scale."""
    grid = torch.linspace(math.log(1e-3), math.log(1.0), 61, dtype=torch.float64)
    for _ in range(4):
        losses = torch.stack([F.cross_entropy(cosines / at.exp(), labels) for at in grid])
        best = int(losses.argmin())
        grid = torch.linspace(float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)]), 21).double()
    return float(grid[len(grid) // 2].exp())


def _fit_logistic(features: torch.Tensor, positive: torch.Tensor) -> tuple[float, ...]:
    """Weights [f] and bias of a logistic regression with a ridge, by Newton's method, of features [n, f]."""
    mean, spread = features.mean(0), features.std(0).clamp_min(1e-9)
    design = torch.cat([(features - mean) / spread, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
    truth, weights = positive.to(features.dtype), torch.zeros(design.shape[1], dtype=features.dtype)
    ridge = PRIOR * torch.eye(design.shape[1], dtype=features.dtype) * len(features) ** 0.5
    for _ in range(STEPS):
        odds = (design @ weights).sigmoid()
        curvature = (design * (odds * (1 - odds))[:, None]).T @ design + ridge
        step = torch.linalg.solve(curvature, design.T @ (odds - truth) + ridge @ weights)
        weights = weights - step * min(1.0, 2.0 / float(step.norm().clamp_min(1e-12)))
        if float(step.norm()) < 1e-9:
            break
    scaled = weights[:-1] / spread
    return (*scaled.tolist(), float(weights[-1] - (scaled * mean).sum()))


__all__ = ["Calibration", "calibration_of", "fit_calibration", "without_true"]
