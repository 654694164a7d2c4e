"""Weight-space blending of a fine-tuned MoTE with the CLIP that it started from."""

import torch
from transformers import CLIPModel


@torch.no_grad()
def blend_with_clip(model: CLIPModel, clip: CLIPModel, alpha: float) -> None:
    """Makes the image tower and the logit scale alpha · fine-tuned + (1 - alpha) · CLIP, in place.

    The authors' test scripts do so with alpha = 0.99 (the paper does not mention it). The temporal layers have no CLIP
    counterpart and stay; the text tower was frozen.

    Args:
        model: the fine-tuned model.
        clip: the CLIP it was fine-tuned from.
        alpha: weight of the fine-tuned weights, from 0 to 1; 1 changes nothing.

    Raises:
        ValueError: if alpha is out of range, or the image towers differ in size.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 (CLIP) and 1 (fine-tuned), got {alpha}.")
    if alpha == 1:
        return
    tensors, pretrained = model.state_dict(), clip.state_dict()
    for name, tensor in tensors.items():
        if name.startswith(("vision_model.", "visual_projection.")) or name == "logit_scale":
            if name not in pretrained or pretrained[name].shape != tensor.shape:
                raise ValueError(
                    f"The CLIP to blend with has another image tower: {name} is not {list(tensor.shape)}."
                )
            tensor.copy_(alpha * tensor + (1 - alpha) * pretrained[name].to(tensor))
