"""Which clips are trained on, and which are held out."""

import datasets
import pytest

from modeling_mote.processing.builders import list_sha256
from modeling_mote.training_data import few_shot, hold_out, load_train_and_validation, training_classes


def rows_of(*clips):
    """Rows of (path, label, start)."""
    features = datasets.Features(
        {
            "video": datasets.Video(decode=False),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "path": datasets.Value("string"),
            "start": datasets.Value("float64"),
            "end": datasets.Value("float64"),
        }
    )
    columns = {name: [] for name in features}
    for path, label, start in clips:
        for name, value in zip(features, ({"path": path, "bytes": None}, label, path, start, None), strict=True):
            columns[name].append(value)
    return datasets.Dataset.from_dict(columns, features)


def paths(rows):
    return [] if rows is None else list(rows["path"])


def test_a_share_of_each_class_is_held_out():
    rows = rows_of(
        *[(f"{label}{n}.mp4", label, None) for label, count in ((0, 10), (1, 5), (2, 2)) for n in range(count)]
    )
    train, held = hold_out(rows, 0.2, seed=0)
    assert [list(held["label"]).count(label) for label in (0, 1, 2)] == [2, 1, 1]
    assert sorted(paths(train) + paths(held)) == sorted(paths(rows))
    assert paths(hold_out(rows, 0.2, seed=0)[1]) == paths(held)
    assert any(paths(hold_out(rows, 0.2, seed=seed)[1]) != paths(held) for seed in (1, 2, 3))
    assert training_classes(train) == ["a", "b", "c"]


def test_a_class_of_one_file_is_trained_on():
    train, held = hold_out(rows_of(("a.mp4", 0, None), ("b0.mp4", 1, None), ("b1.mp4", 1, None)))
    assert len(train) == 2 and list(held["label"]) == [1]
    train, held = hold_out(rows_of(("a.mp4", 0, None), ("b.mp4", 1, None)))
    assert len(train) == 2 and held is None
    assert hold_out(rows_of(("b0.mp4", 1, None), ("b1.mp4", 1, None)), share=0)[1] is None


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_one_file_stay_together(seed):
    """Or a model would be measured on the very scenes that it was trained on."""
    rows = rows_of(*[(f"{file}.mp4", file % 2, float(part)) for file in range(10) for part in range(3)])
    train, held = hold_out(rows, 0.2, seed)
    assert len(held) == 6 and not set(paths(train)) & set(paths(held))


@pytest.mark.parametrize("seed", range(4))
def test_no_class_is_left_without_a_clip_to_train_on(seed):
    rows = rows_of(("x.mp4", 0, 0.0), ("x.mp4", 2, 1.0), ("y.mp4", 0, 0.0), ("y.mp4", 1, 1.0), ("z.mp4", 0, 0.0))
    train, held = hold_out(rows, 0.4, seed)
    assert set(train["label"]) == {0, 1, 2} and set(paths(held)) <= {"z.mp4"}


@pytest.fixture
def folder(tmp_path):
    def make(*names):
        for name in names:
            for clip in range(5):
                path = tmp_path / "videos" / name / f"{clip}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"never opened here")
        return str(tmp_path / "videos")

    return make


def test_a_folder_without_a_validation_split_has_some_held_out(folder):
    data = folder("red", "blue")
    train, held, said = load_train_and_validation(data, seed=3)
    assert (len(train), len(held)) == (8, 2) and said == "held out of videos at random"
    train, held, said = load_train_and_validation(data, validation_split="none")
    assert len(train) == 10 and held is None and said == ""
    with pytest.raises(ValueError, match="has no split validation, so it would be validated on the training clips"):
        load_train_and_validation(data, validation_split="validation")


def test_a_folder_with_splits_is_validated_on_its_own(folder):
    train, validation, said = load_train_and_validation(folder("train/red", "train/blue", "validation/red"))
    assert (len(train), len(validation)) == (10, 5) and said == "of the split validation"


def test_a_folder_with_other_splits_only(folder):
    train, held, _ = load_train_and_validation(folder("train/red", "train/blue", "test/red"))
    assert (len(train), len(held)) == (8, 2)


def test_few_shot_repeats_what_it_draws():
    rows = rows_of(*[(f"{label}{n}.mp4", label, None) for label in (0, 1) for n in range(5)])
    few, table = few_shot(rows, 2, seed=0)
    assert len(few) == 10 and len(set(paths(few))) == 4 and sorted(set(few["label"])) == [0, 1]
    assert table.splitlines()[0] == "path,label,start,end" and len(table.splitlines()) == 5
    assert list_sha256(few) == list_sha256(few_shot(rows, 2, seed=0)[0])
    with pytest.raises(ValueError, match="shots is 6, but class 'a' has only 5 training clips"):
        few_shot(rows, 6)
