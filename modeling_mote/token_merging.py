"""Token merging (ToMe, arXiv 2210.09461): fewer patch tokens in each layer of CLIP's image tower, without training.

>>> merge_tokens(model, 16)  # every layer of the image tower merges the 16 pairs of tokens that are most alike
>>> merge_tokens(model, 0)  # as it was

It changes the features, and so every score: it is off unless asked for, is not saved with a checkpoint, and whatever
keeps features or scores keeps them apart by it. Weights are neither copied nor changed: the classes of the image
tower's modules are those below while it is on.

Shapes: b frames, n tokens of a frame, the first of which is the class token, h heads, k = width of a head, d = width
of the tower.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    eager_attention_forward,
)

from .processing.module_state import TOKENS_MERGED, tokens_merged_per_layer

BIASED_ATTENTION = ("eager", "sdpa")  # implementations that add a bias per key to the logits


def merge_tokens(model: nn.Module, per_layer: int) -> None:
    """Let every layer of a model's image tower merge tokens, or stop it.

    Args:
        model: any model with CLIP's image tower as `vision_model`.
        per_layer: pairs of tokens that each layer merges into one, fewer if fewer than half of the tokens are left;
            0 computes as CLIP does.

    Raises:
        ValueError: if it is no whole number from 0 to half of a frame's patches, the image tower is not CLIP's, its
            attention knows no bias, or an engine runs it.
    """
    tower: Any = getattr(model, "vision_model", None)
    encoder = getattr(tower, "encoder", None)
    if type(encoder) not in (CLIPEncoder, TokenMergingEncoder):
        raise ValueError(f"Tokens are merged in CLIP's image tower, and {type(model).__name__} has none.")
    patches = (tower.config.image_size // tower.config.patch_size) ** 2
    if isinstance(per_layer, bool) or not isinstance(per_layer, int) or not 0 <= per_layer <= patches // 2:
        raise ValueError(
            f"merge_tokens is {per_layer!r}: pass a whole number from 0 to {patches // 2}, half of the {patches} "
            "patches of a frame."
        )
    if hasattr(tower, "engine"):
        raise ValueError(
            f"The engine {tower.engine} runs the image tower as it was: call drop_engine(model) before merge_tokens, "
            "and use_engine after it."
        )
    attention = tower.config._attn_implementation
    if per_layer and attention not in BIASED_ATTENTION:
        raise ValueError(
            f"Merged tokens need attn_implementation {' or '.join(map(repr, BIASED_ATTENTION))}, and the image tower "
            f"has {attention!r}."
        )
    kinds: tuple[Any, ...] = (CLIPEncoder, CLIPEncoderLayer, CLIPAttention)
    if per_layer:
        kinds = (TokenMergingEncoder, TokenMergingLayer, TokenMergingAttention)
        setattr(encoder, TOKENS_MERGED, per_layer)
    else:
        vars(encoder).pop(TOKENS_MERGED, None)
    encoder.__class__ = kinds[0]
    for layer in encoder.layers:
        layer.__class__, layer.self_attn.__class__ = kinds[1:]


class TokenMergingEncoder(CLIPEncoder):
    """CLIP's layers, between which it is known how many patches each token stands for."""

    tokens_merged_per_layer: int  # which `fingerprint` and `module_state` tell features apart by

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: Any = None, **kwargs: Any) -> BaseModelOutput:
        hidden_states, sizes = inputs_embeds, None
        for layer in self.layers:
            hidden_states, sizes = layer(
                hidden_states, attention_mask, sizes=sizes, num_merged=self.tokens_merged_per_layer, **kwargs
            )
        return BaseModelOutput(last_hidden_state=hidden_states)


class TokenMergingLayer(CLIPEncoderLayer):
    """CLIP's layer, which merges tokens between its attention and its feed-forward (section 3)."""

    def forward(
        self,
        hidden_states: torch.Tensor,  # [b, n, d]
        attention_mask: Any = None,
        sizes: torch.Tensor | None = None,  # patches that each token stands for, float32 [b, n]; None if one each
        num_merged: int = 0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Proportional attention: a token counts as often as there are patches in it.
        bias = None if sizes is None else sizes.log().to(hidden_states.dtype)[:, None, None]
        attended, _, keys = self.self_attn(self.layer_norm1(hidden_states), bias, **kwargs)
        hidden_states = hidden_states + attended
        sizes = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.float32) if sizes is None else sizes
        num_merged = min(num_merged, (hidden_states.shape[1] - 1) // 2)
        hidden_states, sizes = average_tokens(hidden_states, sizes, match_tokens(keys, num_merged), num_merged)
        return hidden_states + self.mlp(self.layer_norm2(hidden_states)), sizes


class TokenMergingAttention(CLIPAttention):
    """CLIP's attention, which gives its keys too, [b, h, n, k]: tokens are compared by them."""

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        queries, keys, values = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        attended, weights = attend(
            self, queries, keys, values, attention_mask, scaling=self.scale, dropout=dropout, **kwargs
        )
        return self.out_proj(attended.flatten(2)), weights, keys


def match_tokens(keys: torch.Tensor, num_merged: int) -> torch.Tensor:
    """Bipartite soft matching: which tokens are merged into which.

    Every other token, from the first on, looks among the rest for the one whose key is most like its own, by the
    cosine of their means over heads. The `num_merged` pairs that are most alike become one token each. The class
    token, which is the first, looks for none.

    Args:
        keys: of the attention, [b, h, n, k].
        num_merged: pairs to merge, at most (n - 1) // 2.

    Returns:
        the new place of every token, [b, n]: first come those that looked and stay, in their order, then the rest, in
        theirs; merged tokens share a place.
    """
    metric = F.normalize(keys.detach().float().mean(1), dim=-1)  # [b, n, k]
    likeness = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)  # [b, those that look, the rest]
    likeness[:, 0] = -torch.inf
    best, partner = likeness.max(-1)
    stay = torch.ones_like(partner).scatter(1, best.topk(num_merged, sorted=False).indices, 0)
    staying = best.shape[1] - num_merged
    places = partner.new_empty(keys.shape[0], keys.shape[2])
    places[:, ::2] = torch.where(stay == 1, stay.cumsum(1) - 1, staying + partner)
    places[:, 1::2] = torch.arange(staying, keys.shape[2] - num_merged, device=keys.device)
    return places


def average_tokens(
    hidden_states: torch.Tensor, sizes: torch.Tensor, places: torch.Tensor, num_merged: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put tokens in their new places, where those that share one become their mean over patches.

    Args:
        hidden_states: tokens, [b, n, d].
        sizes: patches that each stands for, float32 [b, n].
        places: see `match_tokens`, as for the next one.
        num_merged: pairs that share a place.

    Returns:
        tokens [b, n - num_merged, d], and the patches that each stands for, float32 [b, n - num_merged].
    """
    b, n, d = hidden_states.shape
    m = n - num_merged
    rows = (places + m * torch.arange(b, device=places.device)[:, None]).flatten()  # [b n]
    totals = sizes.new_zeros(b * m).index_add(0, rows, sizes.flatten())
    shares = (sizes.flatten() / totals[rows]).to(hidden_states.dtype)
    weighted = hidden_states.flatten(0, 1) * shares[:, None]
    merged = hidden_states.new_zeros(b * m, d).index_add(0, rows, weighted)
    return merged.view(b, m, d), totals.view(b, m)


__all__ = ["merge_tokens", "tokens_merged_per_layer"]
