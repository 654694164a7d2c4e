"""A video's feature for search and bulk, and its logits, from one pass over its frames."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .modeling_mote import MoTEModel


@torch.no_grad()
def embed_frames(
    model: MoTEModel, frame_embeds: torch.Tensor, class_embeds: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features without modulation, and logits with it, of videos whose frames are encoded.

    Args:
        model: In evaluation mode.
        frame_embeds: Frame features e, [b, v, t, d].
        class_embeds: Features of the candidate classes, [c, d], if logits are wanted.

    Returns:
        The L2-normalised mean over views of L2-normalised mean(h(e + pos) + e), float32 [b, d] on the CPU; and
        exp(logit_scale) · cosine with modulation, float32 [b, c] on the CPU, or None.

        Shapes: b videos, v views, t frames, d = `projection_dim`, c classes.

    Raises:
        ValueError: If the features are no finite numbers.
    """
    temporal = model.get_temporal_features(frame_embeds).last_hidden_state
    whole = model.get_modulation(frame_embeds)  # rho = 1, whatever is asked of the feature later
    views = F.normalize(model.modulate(frame_embeds, temporal, whole).mean(-2).float(), dim=-1)  # [b, v, d]
    embeds = F.normalize(views.mean(1), dim=-1)
    if not embeds.isfinite().all():
        raise ValueError("The model gives features that are no numbers: its weights are damaged.")
    if class_embeds is None:
        return embeds.cpu(), None
    classes = model.normalize_classes(class_embeds)
    logits, _, _ = model.score_modulated(frame_embeds, temporal, classes)
    return embeds.cpu(), logits.cpu()


@torch.no_grad()
def embed_videos(
    model: MoTEModel, video_processor: Any, videos: Sequence[torch.Tensor], class_embeds: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `embed_frames`, of videos as the processor reads them.

    Args:
        model: In evaluation mode.
        video_processor: Its video processor, which normalises.
        videos: uint8 [t, 3, h, w] or [v, t, 3, h, w] each; those of one length share a forward.
        class_embeds: See `embed_frames`.

    Raises:
        ValueError: As `embed_frames`.
    """
    if len({video.shape for video in videos}) > 1:  # sampled by frames per second
        parts = [embed_videos(model, video_processor, [video], class_embeds) for video in videos]
        logits = [part for _, part in parts if part is not None]
        return torch.cat([embeds for embeds, _ in parts]), torch.cat(logits) if logits else None
    pixels = video_processor.normalize_pixels(torch.stack(list(videos)).to(model.device))
    views = pixels if pixels.ndim == 6 else pixels[:, None]  # [b, v, t, 3, h, w]
    return embed_frames(model, model.get_frame_features(views.to(model.dtype)).pooler_output, class_embeds)


__all__ = ["embed_frames", "embed_videos"]
