"""Token merging: what the paper describes, on and off without a trace, and never mixed with what is not merged."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPTextModelWithProjection

from modeling_mote import merge_tokens
from modeling_mote.feature_cache import fingerprint, frame_features_key, video_features_key
from modeling_mote.processing import ExampleSet, MoTEVideoProcessor
from modeling_mote.processing.module_state import module_state, tokens_merged_per_layer

PATCHES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def model(make_model):
    """Frames of 16 patches and a class token, through three layers."""
    return make_model(vision_config={**PATCHES, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8})


def features(model, videos, **options) -> torch.Tensor:
    with torch.no_grad():
        return model.get_frame_features(videos, **options).pooler_output


def by_hand(model, frame: torch.Tensor, per_layer: int) -> torch.Tensor:
    """The feature of one frame [3, h, w] by the paper's description, token by token: each is (patches, vector)."""
    tower = model.vision_model
    tokens = list(tower.pre_layrnorm(tower.embeddings(frame[None]))[0])
    sizes = [1.0] * len(tokens)
    for layer in tower.encoder.layers:
        normed, attention = layer.layer_norm1(torch.stack(tokens)), layer.self_attn
        q, k, v = (
            projection(normed).view(len(tokens), 2, 16)  # [n, heads, width]
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        heads = [
            torch.softmax(q[:, h] @ k[:, h].T / 4 + torch.tensor(sizes).log(), dim=-1) @ v[:, h] for h in range(2)
        ]
        tokens = list(torch.stack(tokens) + attention.out_proj(torch.cat(heads, dim=-1)))
        edges = []  # each of the first set, but the class token, and its most similar token of the second
        for one in range(2, len(tokens), 2):
            likeness = {
                other: F.cosine_similarity(k[one].mean(0), k[other].mean(0), dim=0).item()
                for other in range(1, len(tokens), 2)
            }
            other = max(likeness, key=likeness.__getitem__)
            edges.append((likeness[other], one, other))
        merged = {one: other for _, one, other in sorted(edges, reverse=True)[:per_layer]}
        for other in set(merged.values()):
            group = [other, *(one for one in merged if merged[one] == other)]
            total = sum(sizes[each] for each in group)
            tokens[other] = sum(sizes[each] * tokens[each] for each in group) / total
            sizes[other] = total
        order = [each for each in (*range(0, len(tokens), 2), *range(1, len(tokens), 2)) if each not in merged]
        tokens, sizes = [tokens[each] for each in order], [sizes[each] for each in order]
        states = torch.stack(tokens)
        tokens = list(states + layer.mlp(layer.layer_norm2(states)))
    assert sum(sizes) == 17
    return model.visual_projection(tower.post_layernorm(tokens[0]))


@pytest.mark.parametrize("per_layer", [1, 4, 8])
def test_features_are_those_of_the_papers_description(model, videos, per_layer):
    merge_tokens(model, per_layer)
    with torch.no_grad():
        expected = torch.stack([by_hand(model, frame, per_layer) for frame in videos[0]])
    torch.testing.assert_close(features(model, videos[:1])[0], expected, atol=1e-5, rtol=1e-5)


def test_each_layer_has_so_many_tokens_less(model, videos):
    merge_tokens(model, 5)
    states = model.get_frame_features(videos, output_hidden_states=True).hidden_states
    assert [state.shape[1] for state in states] == [17, 12, 7, 4]  # at most half of those that may be merged
    assert tokens_merged_per_layer(model) == 5


def test_off_it_leaves_no_trace(model, videos, tmp_path):
    before, twin = features(model, videos), copy.deepcopy(model)
    merge_tokens(model, 4)
    merged = features(model, videos)
    assert not torch.allclose(merged, before, atol=1e-3)
    assert model.state_dict().keys() == twin.state_dict().keys()
    model.save_pretrained(tmp_path)
    assert torch.equal(features(type(model).from_pretrained(tmp_path).eval(), videos), before)
    torch.testing.assert_close(features(copy.deepcopy(model), videos), merged, rtol=0, atol=0)
    merge_tokens(model, 0)
    assert torch.equal(features(model, videos), before) and fingerprint(model) == fingerprint(twin)
    assert module_state(model.vision_model) == module_state(twin.vision_model)
    assert [type(each) for each in model.modules()] == [type(each) for each in twin.modules()]


def test_frames_do_not_depend_on_their_batch(model, videos):
    merge_tokens(model, 4)
    whole = features(model, videos)
    alone = torch.cat([features(model, videos[:, [index]]) for index in range(videos.shape[1])], dim=1)
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-5)


def test_attention_implementations_agree(model, videos):
    merge_tokens(model, 4)
    sdpa = features(model, videos)
    model.set_attn_implementation("eager")
    outputs = model.get_frame_features(videos, output_attentions=True)
    torch.testing.assert_close(outputs.pooler_output, sdpa, atol=1e-5, rtol=1e-5)
    assert [each.shape[-1] for each in outputs.attentions] == [17, 13, 9]
    assert features(model.to(torch.bfloat16), videos.bfloat16()).isfinite().all()


@pytest.mark.slow
def test_it_exports(model, videos):
    merge_tokens(model, 4)
    exported = torch.export.export(model.vision_model, (videos[0],)).module()
    torch.testing.assert_close(
        exported(videos[0]).pooler_output, model.vision_model(videos[0]).pooler_output, atol=1e-5, rtol=1e-5
    )


def test_it_trains(model, videos):
    merge_tokens(model, 4)
    model.train()
    model.vision_model.activation_checkpointing_enable()
    model(videos, labels=torch.tensor([0, 1])).loss.backward()
    gradient = model.vision_model.embeddings.patch_embedding.weight.grad
    assert gradient.isfinite().all() and gradient.any()


def test_whatever_keeps_features_tells_them_apart(model, videos):
    processor, keys = MoTEVideoProcessor(num_frames=8), set()
    for number in (0, 2, 4):
        merge_tokens(model, number)
        keys.add(
            (
                fingerprint(model),
                module_state(model.vision_model),
                frame_features_key(model, processor, ["a clip"], {}),
                video_features_key(model, processor),
            )
        )
    assert [len(set(each)) for each in zip(*keys, strict=True)] == [3] * 4


def test_examples_of_another_setting_are_refused(model, videos, tmp_path):
    merge_tokens(model, 1)
    examples = {"one": features(model, videos[:1]), "other": features(model, videos[1:])}
    ExampleSet.from_features(model, examples).save(tmp_path / "examples")
    assert ExampleSet.load(tmp_path / "examples", model).tokens_merged == 1
    merge_tokens(model, 0)
    with pytest.raises(ValueError, match="were made with merge_tokens 1, and the model has 0"):
        ExampleSet.load(tmp_path / "examples", model)


@pytest.mark.parametrize("number", [-1, 9, 2.0, True])
def test_numbers_that_make_no_sense(model, number):
    with pytest.raises(ValueError, match="whole number from 0 to 8, half of the 16 patches"):
        merge_tokens(model, number)


def test_models_that_have_no_such_tower(model, make_config):
    text = CLIPTextModelWithProjection(make_config().text_config)
    with pytest.raises(ValueError, match="CLIPTextModelWithProjection has none"):
        merge_tokens(text, 1)
    model.vision_model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="Merged tokens need attn_implementation 'eager' or 'sdpa'"):
        merge_tokens(model, 1)
