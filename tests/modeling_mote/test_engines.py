"""Engines: PyTorch's features from another program, a cache that is never wrong, and a pick that says why."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from modeling_mote import MoTEForVideoClassification, engines, fastest
from modeling_mote.commands import command_line
from modeling_mote.engines import ENGINES, check_engine, drop_engine, graph_key, use_engine, what_is_wrong
from modeling_mote.fastest import candidates, describe, pick, use_fastest
from modeling_mote.processing.module_state import module_state
from modeling_mote.processing.tensor_files import fingerprint
from modeling_mote.token_merging import merge_tokens

from .conftest import tiny_model

pytest.importorskip("onnxruntime", reason="engines need the extra export")
pytest.importorskip("onnxscript", reason="engines need the extra export")

SEED = 3


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache with the graphs of the tiny model, in float32 and int8."""
    folder = tmp_path_factory.mktemp("cache")
    use_engine(tiny_model(seed=SEED), "onnxruntime-int8", folder)
    return folder


@pytest.fixture
def model() -> MoTEForVideoClassification:
    return tiny_model(seed=SEED)


def engine_or_skip(name: str) -> str:
    try:
        check_engine(name)
    except ValueError as error:
        pytest.skip(str(error))
    return name


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, (_, precision) in ENGINES.items() if precision == "float32"])
def test_scores_are_pytorchs(model, cache, videos, candidates, name):
    views = torch.stack([videos, videos.flip(1)], 1)  # [b, v, t, 3, h, w]
    plain = [model(videos).logits, model(views, class_embeds=candidates).logits]
    used = use_engine(model, engine_or_skip(name), cache)
    calls = count_layers(model)
    found = [model(videos).logits, model(views, class_embeds=candidates).logits]
    assert (calls[0] == 0) == (name != "torch")  # an engine ran, not PyTorch
    assert used.error <= 1e-5
    for each, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_equal_frames_are_encoded_once(model, cache, videos):
    still = videos[:, :1].expand(-1, 8, -1, -1, -1)
    plain = model.get_frame_features(still).pooler_output
    use_engine(model, "onnxruntime", cache)
    counts, engine = [], model.vision_model.forward

    def counting(pixel_values, *args, **kwargs):
        counts.append(len(pixel_values))
        return engine(pixel_values, *args, **kwargs)

    model.vision_model.forward = counting
    torch.testing.assert_close(model.get_frame_features(still).pooler_output, plain, rtol=0, atol=1e-4)
    assert counts == [len(still)]
    model.get_frame_features(videos)
    assert counts == [2, 16]  # whose frames all differ


@pytest.mark.slow  # a graph is exported
@torch.no_grad()
def test_an_engine_merges_the_tokens_that_the_tower_merges(videos, tmp_path):
    model = tiny_model(seed=SEED)
    plain = model(videos).logits
    merge_tokens(model, 2)
    merged = model(videos).logits
    use_engine(model, "onnxruntime", tmp_path)
    torch.testing.assert_close(model(videos).logits, merged, rtol=0, atol=1e-4)
    assert (merged - plain).abs().max() > 1e-2


def count_layers(model) -> list[int]:
    """`[0]`: forwards of the image tower's layers from now on."""
    calls = [0]

    def note(*_: object) -> None:
        calls[0] += 1

    for layer in model.vision_model.encoder.layers:
        layer.register_forward_hook(note)
    return calls


@torch.no_grad()
def test_int8_keeps_the_best_class_where_it_is_clear(model, cache, videos):
    plain = model.get_frame_features(videos).pooler_output
    logits = model(videos).logits
    error = use_engine(model, "onnxruntime-int8", cache).error
    moved = F.normalize(model.get_frame_features(videos).pooler_output, dim=-1) - F.normalize(plain, dim=-1)
    assert 1e-4 < moved.norm(dim=-1).max() < 0.5 and 1e-4 < error < 0.5  # another arithmetic, of 32 numbers a row
    found = model(videos).logits
    difference = (found - logits).abs().max()
    first, second = logits.topk(2, dim=-1).values.unbind(-1)
    clear = first - second > 2 * difference
    assert torch.equal(found.argmax(-1)[clear], logits.argmax(-1)[clear])


@torch.no_grad()
def test_a_cached_graph_is_found_again(model, cache):
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    said: list[str] = []
    for name in ("onnxruntime", "onnxruntime-int8"):
        assert use_engine(model, name, cache, said.append).seconds == 0
    assert said == [] and before == {path: path.stat().st_mtime_ns for path in cache.rglob("*")}


@pytest.mark.parametrize("damage", ["another model's", "a flipped bit", "a lost file", "no record"])
def test_a_cache_that_does_not_fit_is_known(model, cache, tmp_path, damage):
    key = graph_key(model, "float32")
    place = shutil.copytree(cache / "engines" / key[:32], tmp_path / "place")
    assert what_is_wrong(place, key) is None
    harm(place, damage)
    if damage == "another model's":
        key = graph_key(tiny_model(seed=SEED + 1), "float32")
    expected = "holds the graph of another model" if damage == "another model's" else "is damaged"
    assert what_is_wrong(place, key).startswith(expected)


def harm(place: Path, damage: str) -> None:
    weights = place / "frames.onnx.data"
    if damage == "a flipped bit":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "a lost file":
        weights.unlink()
    elif damage == "no record":
        (place / "checksums.json").unlink()


@pytest.mark.slow  # graphs are exported
@torch.no_grad()
@pytest.mark.parametrize("damage", ["another model's", "a flipped bit"])
def test_a_cache_that_does_not_fit_is_made_anew(cache, videos, tmp_path, damage):
    model = tiny_model(seed=SEED + (damage == "another model's"))
    logits = model(videos).logits
    place = tmp_path / "engines" / graph_key(model, "float32")[:32]
    shutil.copytree(cache / "engines" / graph_key(tiny_model(seed=SEED), "float32")[:32], place)
    harm(place, damage)
    with pytest.warns(UserWarning, match="(holds the graph of another model|is damaged .*); it is made anew"):
        assert use_engine(model, "onnxruntime", tmp_path).seconds > 0
    torch.testing.assert_close(model(videos).logits, logits, rtol=0, atol=1e-4)


def test_what_an_engine_does_not_give_comes_from_pytorch(model, cache, videos):
    with torch.no_grad():
        expected = model.vision_model(pixel_values=videos[0], output_hidden_states=True).hidden_states
    use_engine(model, "onnxruntime", cache)
    with torch.no_grad():
        found = model.get_frame_features(videos[:1], output_hidden_states=True).hidden_states
    torch.testing.assert_close(found, expected)
    pixels = videos.clone().requires_grad_()
    model.get_frame_features(pixels).pooler_output.sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert torch.is_grad_enabled() and not model(videos).logits.isnan().any()


@torch.no_grad()
def test_weights_that_change_are_refused(model, cache, videos):
    use_engine(model, "onnxruntime", cache)
    model.vision_model.post_layernorm.weight.add_(1.0)
    with pytest.raises(ValueError, match="were edited or moved after an engine took them"):
        model(videos)
    drop_engine(model)
    assert model(videos).logits.isfinite().all()


@torch.no_grad()
def test_caches_tell_an_engines_features_from_pytorchs(model, cache, videos, tmp_path):
    plain, logits = (fingerprint(model), module_state(model.vision_model)), model(videos).logits
    use_engine(model, "onnxruntime-int8", cache)
    assert fingerprint(model) != plain[0] and module_state(model.vision_model) != plain[1]
    model.save_pretrained(tmp_path)  # the checkpoint knows nothing of it
    torch.testing.assert_close(MoTEForVideoClassification.from_pretrained(tmp_path).eval()(videos).logits, logits)
    drop_engine(model)
    assert (fingerprint(model), module_state(model.vision_model)) == plain
    assert torch.equal(model(videos).logits, logits)


def test_the_commands_offer_every_engine():
    assert tuple(ENGINES) == command_line.ENGINES


def test_what_can_not_run_is_one_sentence(model, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="There is no engine 'tensorrt': choose torch, "):
        use_engine(model, "tensorrt", tmp_path)
    with pytest.raises(ValueError, match=r"float32 models on the CPU, and this one is torch.bfloat16 on cpu"):
        use_engine(tiny_model().bfloat16(), "onnxruntime", tmp_path)
    monkeypatch.setattr(engines, "instruction_sets", lambda: ["avx2"])
    with pytest.raises(ValueError, match="this CPU has no instructions for bfloat16"):
        use_engine(model, "torch-bfloat16", tmp_path)
    for library, name, extra in (("openvino", "openvino", "openvino"), ("onnxruntime", "onnxruntime-int8", "export")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ValueError, match=rf"{name} needs {library}: pip install 'mote-transformers\[{extra}\]'"):
            use_engine(model, name, tmp_path)
    assert candidates() == ["torch"]


@torch.no_grad()
def test_the_fastest_is_measured_once_and_said(model, cache, videos, monkeypatch):
    monkeypatch.setattr(fastest, "candidates", lambda: ["torch", "onnxruntime", "onnxruntime-int8"])
    logits, said = model(videos).logits, []
    engine = use_fastest(model, cache, said.append)
    assert engine.name in ENGINES and said[0].startswith("Measuring which engine is fastest on this machine, once")
    assert len(said) == 2 and said[1].startswith(f"Fastest here: {engine.name}, 0.") and "onnxruntime-int8" in said[1]
    assert (model(videos).logits - logits).abs().max() <= (1e-4 if engine.name != "onnxruntime-int8" else 5)
    again: list[str] = []
    assert use_fastest(model, cache, again.append).name == engine.name and again == said[1:]
    (record,) = (cache / "engines").glob("fastest-*.json")
    os.truncate(record, 10)
    with pytest.warns(UserWarning, match="is damaged .*; it is measured anew"):
        use_fastest(model, cache)
    record.unlink()


def test_the_fastest_keeps_to_pytorchs_features_and_is_worth_it():
    def measured(*rows: tuple[str, float, float]) -> list[dict[str, object]]:
        return [dict(zip(("engine", "seconds", "error"), row, strict=True)) for row in rows]

    table = measured(("torch", 1.0, 0.0), ("onnxruntime", 0.8, 1e-6), ("onnxruntime-int8", 0.2, 0.5))
    assert pick(table) is table[1]
    assert describe(table, table[1]) == (
        "Fastest here: onnxruntime, 0.8 s per clip, 1.2 x PyTorch (torch 1 s, onnxruntime-int8 0.2 s (too far "
        "off)); on 4 frames checked, it moves no cosine by more than 1e-06."
    )
    table = measured(("torch", 1.0, 0.0), ("onnxruntime", 0.95, 1e-6))
    assert pick(table) is table[0]
    assert describe(table, table[0]) == ("Fastest here: torch, 1 s per clip; measured beside it: onnxruntime 0.95 s.")
