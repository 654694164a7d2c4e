"""The builders, on miniature trees in the layouts in which people have the benchmarks, out of real encoded clips."""

import csv
import os
import pickle
import re
import shutil
import warnings
from pathlib import Path

import av
import datasets
import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from modeling_mote.processing.builders import (
    BUILDERS,
    HMDB51,
    UCF101,
    Kinetics,
    list_sha256,
    load_videos,
    video_builder,
)
from modeling_mote.processing.label_sets import load_label_set
from modeling_mote.processing.sources import BENCHMARKS

K600_UNION = sorted({name for k in (1, 2, 3) for name in load_label_set(f"kinetics600_split{k}").classes})


@pytest.fixture(scope="module")
def clip(tmp_path_factory, write_video):
    """A function that puts a real encoded clip at a path; clips of one suffix are copies of one file."""
    folder = tmp_path_factory.mktemp("clips")

    def put(path: Path) -> Path:
        original = folder / f"clip{path.suffix}"
        if not original.exists():
            write_video(original, num_frames=4, codec="libvpx" if path.suffix == ".webm" else "mpeg4")
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(original, path)
        return path

    return put


@pytest.fixture
def copy(tmp_path):
    """A function that copies a tree, so that a test can spoil it."""
    return lambda tree: Path(shutil.copytree(tree, tmp_path / "copy", copy_function=os.link))


def raw_ucf_names() -> list[str]:
    return [name.replace(" ", "") for name in load_label_set("ucf101").classes]


@pytest.fixture(scope="module")
def ucf(tmp_path_factory, clip):
    """Official lists, and 2 + 1 clips a class (first split), under the names of folders that the archives have."""
    root = tmp_path_factory.mktemp("ucf")
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    names = raw_ucf_names()
    lines = [f"{number} {name}" for number, name in enumerate(names, start=1)]
    (lists / "classInd.txt").write_text("\r\n".join(lines) + "\r\n")
    for fold in (1, 2, 3):
        train, test = [], []
        for number, name in enumerate(names, start=1):
            # The files of this one class are spelt otherwise than its folder.
            stem = "v_" + ("HandStandPushups" if name == "HandstandPushups" else name)
            groups = {group: f"{name}/{stem}_g{group:02d}_c01.avi" for group in (1, 2, 3)}
            test.append(groups.pop(fold))
            train += [f"{path} {number}" for path in groups.values()]
            if fold == 1:
                for group in (1, 2, 3):
                    clip(root / "UCF-101" / f"{name}/{stem}_g{group:02d}_c01.avi")
        (lists / f"trainlist0{fold}.txt").write_text("\n".join(train) + "\n")
        (lists / f"testlist0{fold}.txt").write_text("\n".join(test) + "\n")
    return root


@pytest.fixture(scope="module")
def hmdb(tmp_path_factory, clip):
    """Official lists beside folders of classes; 3 clips a class in each list: train, test, unused."""
    root = tmp_path_factory.mktemp("hmdb")
    (root / "testTrainMulti_7030_splits").mkdir()
    for name in load_label_set("hmdb51").classes:
        raw = name.replace(" ", "_")
        files = [f"#{index}_April_({raw})_u_nm_np1_ba_goo_{index}.avi" for index in range(3)]
        for file in files:
            clip(root / raw / file)
        for fold in (1, 2, 3):
            uses = [(use + fold) % 3 for use in range(3)]
            lines = [f"{file} {use} " for file, use in zip(files, uses, strict=True)]
            (root / "testTrainMulti_7030_splits" / f"{raw}_test_split{fold}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_kinetics_csv(path: Path, rows: list[tuple[str, str, int]], split: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        writer.writerows([label, youtube_id, start, start + 10, split] for label, youtube_id, start in rows)


@pytest.fixture(scope="module")
def kinetics400(tmp_path_factory, clip):
    """Training clips in folders of classes with underscores, validation clips flat."""
    root = tmp_path_factory.mktemp("k400")
    names = load_label_set("kinetics400").classes
    for split, list_name in (("train", "train.csv"), ("val", "val.csv")):
        rows = [(name, f"{split}-_{index:08d}"[:11], index) for index, name in enumerate(names)]
        write_kinetics_csv(root / "annotations" / list_name, rows[::-1], split)
        for name, youtube_id, start in rows:
            folder = root / split / (name.replace(" ", "_") if split == "train" else "")
            clip(folder / f"{youtube_id}_{start:06d}_{start + 10:06d}.mp4")
    return root


@pytest.fixture(scope="module")
def kinetics600(tmp_path_factory, clip):
    """The test list alone, with the classes of all zero-shot sets and three others, in folders with spaces."""
    root = tmp_path_factory.mktemp("k600")
    rows = [(name, f"id{index:09d}", 7) for index, name in enumerate([*K600_UNION, "abseiling", "yoga", "zumba"])]
    write_kinetics_csv(root / "kinetics_600_test.csv", rows, "test")
    for name, youtube_id, _ in rows:
        clip(root / name / f"{youtube_id}_000007_000017.mp4")
    return root


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def prepared(builder, split):
    builder.download_and_prepare()
    return builder.as_dataset(split)


def decodable_frames(path: str) -> int:
    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


def test_ucf101(ucf, cache):
    builder = UCF101(data_dir=str(ucf), config_name="split2", cache_dir=cache)
    train, test = prepared(builder, "train"), prepared(builder, "test")
    assert (len(train), len(test)) == (202, 101)
    assert test.features["label"].names == list(load_label_set("ucf101").classes)
    assert test["label"][:] == list(range(101))
    row = test[36]
    assert row["path"] == "UCF-101/HandstandPushups/v_HandStandPushups_g02_c01.avi"
    assert row["video"] == {"path": str(ucf / row["path"]), "bytes": None}
    assert decodable_frames(row["video"]["path"]) == 4
    assert set(train["path"]).isdisjoint(test["path"]) and all(Path(v["path"]).is_file() for v in train["video"])


def test_official_names_are_no_warning(ucf, hmdb, cache):
    for name, root in (("ucf101", ucf), ("hmdb51", hmdb)):
        config = video_builder(name, cache_dir=cache, data_dir=str(root)).config
        assert config.renamed and config.notes == []  # recorded, as `ApplyEyeMakeup`, but nobody need act


def test_ucf101_says_where_its_names_differ(ucf, cache):
    builder = UCF101(data_dir=str(ucf), cache_dir=cache)
    assert builder.config.renamed["ApplyEyeMakeup"] == "Apply Eye Makeup"
    assert "Archery" not in builder.config.renamed
    assert "ApplyEyeMakeup is Apply Eye Makeup" in builder.info.description
    assert load_label_set("ucf101").sha256 in builder.info.description


def test_hmdb51(hmdb, cache):
    paths = {}
    for fold in (1, 2, 3):
        builder = HMDB51(data_dir=str(hmdb), config_name=f"split{fold}", cache_dir=cache)
        assert list(builder.config.clips) == ["train", "test"]
        test = prepared(builder, "test")
        assert test["label"][:] == list(range(51))
        paths[fold] = set(test["path"]), set(prepared(builder, "train")["path"])
        assert len(paths[fold][0]) == len(paths[fold][1]) == 51  # the third clip of a class is in neither
    assert paths[1] != paths[2] != paths[3]
    assert test[0]["path"].startswith("brush_hair/#") and Path(test[0]["video"]["path"]).is_file()
    assert builder.config.renamed["brush_hair"] == "brush hair"


def test_kinetics400_flat_and_in_class_folders(kinetics400, cache):
    builder = Kinetics(data_dir=str(kinetics400), cache_dir=cache)
    train, validation = prepared(builder, "train"), prepared(builder, "validation")
    assert len(train) == len(validation) == 400
    assert train["label"][:] == list(range(400))[::-1]  # in the order of the list
    assert train[399]["path"] == "train/abseiling/train-_0000_000000_000010.mp4"
    assert validation[0]["path"] == "val/val-_000003_000399_000409.mp4"
    assert "start" not in train.features  # the times are those of the video on the web, the files are cut already
    assert all(Path(video["path"]).is_file() for video in (*train["video"], *validation["video"]))


def test_kinetics400_with_one_list_of_all_splits(kinetics400, copy, cache):
    root = copy(kinetics400)
    lists = {split: root / "annotations" / f"{split}.csv" for split in ("train", "val")}
    header = "label,youtube_id,time_start,time_end,split\n"
    rows = [
        line.rsplit(",", 1)[0] + f",{split}\n" for split in lists for line in lists[split].open() if line != header
    ]
    for path in lists.values():
        path.unlink()
    (root / "annotations" / "all.csv").write_text(header + "".join(rows))
    builder = Kinetics(data_dir=str(root), cache_dir=cache)
    assert sorted(builder.config.clips) == ["train", "validation"]
    apart = Kinetics(data_dir=str(kinetics400), cache_dir=cache)
    assert builder.config.clips == apart.config.clips


@pytest.mark.parametrize("k", [1, 2, 3])
def test_kinetics600_zero_shot_sets(kinetics600, cache, k):
    name = f"kinetics600_split{k}"
    test = load_videos("kinetics", "test", name=name, data_dir=str(kinetics600), cache_dir=cache)
    assert test.features["label"].names == list(load_label_set(name).classes)
    assert sorted(test["label"]) == list(range(160))
    assert all(Path(row["path"]).parent.name == test.features["label"].int2str(row["label"]) for row in test)


def test_kinetics600_takes_all_classes_of_its_lists(kinetics600, cache):
    builder = Kinetics(data_dir=str(kinetics600), config_name="kinetics600", cache_dir=cache)
    assert builder.config.label_set.classes == tuple(sorted([*K600_UNION, "abseiling", "yoga", "zumba"]))
    assert len(prepared(builder, "test")) == len(K600_UNION) + 3


@pytest.fixture
def own(tmp_path, clip):
    """A folder a class, with a CSV list beside it that names its clips."""
    for path in ("yoga/a.mp4", "yoga/b.webm", "archery/c.avi", "archery/deep/d.mkv"):
        clip(tmp_path / "own" / path)
    (tmp_path / "own.csv").write_text(
        "path, label, start, end\nown/yoga/a.mp4,yoga,.1,.4\nown/archery/c.avi,archery,,\nown/yoga/b.webm,yoga,,.3\n"
    )
    return tmp_path


def test_video_list(own, cache):
    rows = load_videos(own / "own.csv", "validation", cache_dir=cache)
    assert rows.features["label"].names == ["archery", "yoga"]
    assert rows["path"][:] == ["own/yoga/a.mp4", "own/archery/c.avi", "own/yoga/b.webm"]
    assert rows["label"][:] == [1, 0, 1]
    assert rows["start"][:] == [0.1, None, None] and rows["end"][:] == [0.4, None, 0.3]
    assert all(decodable_frames(video["path"]) == 4 for video in rows["video"])


def test_video_list_with_label_file_and_data_dir(own, cache):
    (own / "labels.txt").write_text("yoga\narchery\nsleeping\n")
    (own / "lists").mkdir()
    for split, text in (("train", "a.mp4,yoga"), ("test", "a.mp4,Yoga")):
        (own / "lists" / f"{split}.csv").write_text(f"path,label\n{text}\n")
    rows = load_videos(
        {split: own / "lists" / f"{split}.csv" for split in ("train", "test")},
        data_dir=str(own / "own" / "yoga"),
        label_file=str(own / "labels.txt"),
        allow_empty_classes=True,
        cache_dir=cache,
    )
    assert rows["train"].features["label"].names == ["yoga", "archery", "sleeping"]
    assert rows["test"][0]["label"] == 0 and "start" not in rows["test"].features


def test_video_folder(own, cache):
    rows = load_videos(own / "own", "train", cache_dir=cache)
    assert rows["path"][:] == ["archery/c.avi", "archery/deep/d.mkv", "yoga/a.mp4", "yoga/b.webm"]
    assert rows["label"][:] == [0, 0, 1, 1] and rows.features["label"].names == ["archery", "yoga"]


def test_video_folder_with_folders_of_splits(tmp_path, clip, cache):
    for path in ("train/run/a.mp4", "train/walk/b.mp4", "val/run/c.mp4", "val/walk/d.mp4"):
        clip(tmp_path / "v" / path)
    rows = load_videos(tmp_path / "v", cache_dir=cache)
    assert {split: each["path"][:] for split, each in rows.items()} == {
        "train": ["train/run/a.mp4", "train/walk/b.mp4"],
        "val": ["val/run/c.mp4", "val/walk/d.mp4"],
    }
    with pytest.raises(ValueError, match="has no split 'test'; choose train or val"):
        load_videos(tmp_path / "v", "test", cache_dir=cache)


@pytest.mark.parametrize("source", ["ucf101", "folder"])
def test_streaming_gives_the_rows_of_the_prepared_data_set(ucf, own, cache, source):
    source, options = ("ucf101", {"data_dir": str(ucf)}) if source == "ucf101" else (own / "own", {})
    streamed = load_videos(source, "train", streaming=True, cache_dir=cache, **options)
    assert not [file for _, _, files in os.walk(cache) for file in files if file.endswith(".arrow")]
    rows = load_videos(source, "train", cache_dir=cache, **options)
    assert streamed.features == rows.features
    assert list(streamed) == list(rows)


def test_workers_and_machines_share_a_stream(ucf, cache):
    stream = load_videos("ucf101", "train", streaming=True, data_dir=str(ucf), num_shards=8, cache_dir=cache)
    assert stream.num_shards == 8
    seen = []
    for rank in range(2):
        part = split_dataset_by_node(stream, rank=rank, world_size=2)
        loader = DataLoader(part.select_columns(["path"]), num_workers=2, batch_size=None)
        seen.append([row["path"] for row in loader])
    assert all(seen)
    assert sorted(seen[0] + seen[1]) == sorted(row["path"] for row in stream)


def test_processes_share_the_preparation(ucf, cache):
    one = load_videos("ucf101", "train", data_dir=str(ucf), cache_dir=cache + "1")
    two = load_videos("ucf101", "train", data_dir=str(ucf), cache_dir=cache + "2", num_proc=2)
    assert one["path"][:] == two["path"][:]


def test_a_builder_survives_pickling(own, cache):
    builder = pickle.loads(pickle.dumps(video_builder(own / "own.csv", cache_dir=cache)))
    assert len(prepared(builder, "train")) == 3


def test_the_hash_of_a_list_is_that_of_its_clips_labels_and_times(ucf, copy, own, cache):
    rows = load_videos("ucf101", "test", data_dir=str(ucf), cache_dir=cache)
    root = copy(ucf)
    (root / "UCF-101").rename(root / "elsewhere")
    moved = load_videos("ucf101", "test", data_dir=str(root), cache_dir=cache)
    assert moved["path"][:] != rows["path"][:] and list_sha256(moved) == list_sha256(rows)
    others = [
        rows.select(range(100)),
        rows.select([1, 0, *range(2, 101)]),
        load_videos(own / "own.csv", "train", cache_dir=cache),
    ]
    (own / "own.csv").write_text((own / "own.csv").read_text().replace(".4", ".5"))
    others.append(load_videos(own / "own.csv", "train", cache_dir=cache))
    assert len({list_sha256(each) for each in (rows, *others)}) == 5


def test_links_to_folders_above_end(own, cache):
    (own / "own" / "yoga" / "self").symlink_to(own / "own" / "yoga")
    (own / "linked").symlink_to(own / "own")
    assert len(load_videos(own / "own", "train", cache_dir=cache)) == 4
    assert len(load_videos(own / "linked", "train", cache_dir=cache)) == 4


def test_slices_and_sums_of_splits(ucf, cache):
    options = {"data_dir": str(ucf), "cache_dir": cache}
    assert len(load_videos("ucf101", "test[:10]", **options)) == 10
    assert len(load_videos("ucf101", "train+test", **options)) == 303
    assert len(load_videos("ucf101", datasets.Split.TEST, **options)) == 101


def test_listed_clips_without_a_file_keep_their_rows(ucf, copy, cache):
    root = copy(ucf)
    gone = root / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi"
    gone.unlink()
    rows = load_videos("ucf101", "test", data_dir=str(root), cache_dir=cache)
    assert len(rows) == 101 and rows[2]["path"] == "Archery/v_Archery_g01_c01.avi"
    assert not Path(rows[2]["video"]["path"]).exists()


def test_reencoded_copies_and_other_nesting_are_found(ucf, copy, clip, cache):
    root = copy(ucf)
    original = root / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi"
    clip(root / "small" / "Archery" / "v_Archery_g01_c01.mp4")
    before = load_videos("ucf101", "test", data_dir=str(root), cache_dir=cache)[2]["path"]
    assert before == "UCF-101/Archery/v_Archery_g01_c01.avi"  # the listed suffix first
    original.unlink()
    assert load_videos("ucf101", "test", data_dir=str(root), cache_dir=cache)[2]["path"].endswith("c01.mp4")


def test_a_changed_list_never_finds_old_rows(own, cache):
    assert len(load_videos(own / "own.csv", "train", cache_dir=cache)) == 3
    times = os.stat(own / "own.csv")
    lines = (own / "own.csv").read_text().splitlines()
    (own / "own.csv").write_text("\n".join(lines[:3]) + "\n")
    os.utime(own / "own.csv", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(load_videos(own / "own.csv", "train", cache_dir=cache)) == 2
    (own / "labels.txt").write_text("yoga\narchery\n")
    options = {"label_file": str(own / "labels.txt"), "cache_dir": cache}
    assert load_videos(own / "own.csv", "train", **options)["label"][:] == [0, 1]
    (own / "labels.txt").write_text("archery\nyoga\n")
    assert load_videos(own / "own.csv", "train", **options)["label"][:] == [1, 0]


def test_new_videos_in_a_folder_are_found_and_unchanged_ones_are_not_read_again(own, cache, clip):
    first = load_videos(own / "own", "train", cache_dir=cache)
    assert load_videos(own / "own", "train", cache_dir=cache).cache_files == first.cache_files
    clip(own / "own" / "yoga" / "e.mp4")
    assert len(load_videos(own / "own", "train", cache_dir=cache)) == 5


# Bad input: what to spoil in a copy of a good tree, and what is said about it.


def edit(path: Path, pattern: str, replacement: str) -> None:
    text = path.read_bytes().decode()
    changed = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    assert changed != text
    path.unlink()  # it is a link to the good tree's
    path.write_text(changed)


@pytest.mark.parametrize(
    ("file", "pattern", "replacement", "message"),
    [
        (
            "testlist01.txt",
            r"^Archery/.*\n",
            "",
            "1 of 101 classes have no clip in split test .*UCF101 split1, 'Archery'",
        ),
        ("testlist01.txt", r"[\s\S]+", "", "Split test of UCF101 split1 lists no clip"),
        ("testlist01.txt", r"^Archery/", "Arching/", r"testlist01.txt, line 'Arching/.*: Unknown label 'Arching'"),
        ("classInd.txt", r"^3 Archery", "3 Arching", "classInd.txt: Unknown label 'Arching'"),
        ("trainlist01.txt", r"(Archery_g02_c01.avi) 3", r"\1 4", "trainlist01.txt, line .* its number another class"),
    ],
)
def test_bad_ucf_lists(ucf, copy, cache, file, pattern, replacement, message):
    root = copy(ucf)
    edit(root / "ucfTrainTestlist" / file, pattern, replacement)
    with pytest.raises(ValueError, match=message) as raised:
        UCF101(data_dir=str(root), cache_dir=cache)
    assert "\n" not in str(raised.value)
    assert not os.path.exists(cache) or not any(files for _, _, files in os.walk(cache))


@pytest.mark.parametrize("name", ["testlist01.txt", "trainlist01.txt", "classInd.txt"])
def test_missing_ucf_list(ucf, copy, cache, name):
    root = copy(ucf)
    (root / "ucfTrainTestlist" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"The list {name} is not under .*copy; put the official lists there"):
        UCF101(data_dir=str(root), cache_dir=cache)


def test_lists_may_lie_elsewhere(ucf, cache):
    options = {"data_dir": str(ucf / "UCF-101"), "cache_dir": cache}
    with pytest.raises(FileNotFoundError, match="The list classInd.txt is not under"):
        UCF101(**options)
    assert len(UCF101(list_dir=str(ucf / "ucfTrainTestlist"), **options).config.clips["test"]) == 101


def test_two_lists_that_differ(ucf, copy, cache):
    root = copy(ucf)
    (root / "old").mkdir()
    (root / "old" / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    with pytest.raises(ValueError, match="testlist01.txt and .*testlist01.txt differ; give the folder"):
        UCF101(data_dir=str(root), cache_dir=cache)


@pytest.mark.parametrize("source", ["ucf101", "hmdb51", "kinetics"])
def test_wrong_data_dir(tmp_path, cache, source):
    with pytest.raises(FileNotFoundError, match="data_dir .*nowhere is not a folder"):
        load_videos(source, data_dir=str(tmp_path / "nowhere"), cache_dir=cache)
    with pytest.raises(FileNotFoundError, match="[lL]ist .* is (not )?under"):
        load_videos(source, data_dir=str(tmp_path), cache_dir=cache)
    with pytest.raises(ValueError, match="`data_dir` is missing"):
        load_videos(source, cache_dir=cache)


def test_lists_without_their_videos(ucf, tmp_path, cache):
    shutil.copytree(ucf / "ucfTrainTestlist", tmp_path / "lists")
    with pytest.raises(FileNotFoundError, match="None of the 202 clips of split train of UCF101 split1 is under"):
        UCF101(data_dir=str(tmp_path), cache_dir=cache)


def test_unknown_split_and_configuration(ucf, cache):
    with pytest.raises(ValueError, match="UCF101 split1 has no split 'val'; choose train or test"):
        load_videos("ucf101", "val", data_dir=str(ucf), cache_dir=cache)
    with pytest.raises(ValueError, match="ucf101 has no configuration 'split4'; choose one of split1, split2, split3"):
        load_videos("ucf101", "test", name="split4", data_dir=str(ucf), cache_dir=cache)


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"_1.avi \d", "_1.avi 3", r"brush_hair_test_split1.txt, line .* expected a file name and 1"),
        (r"[\s\S]+", "", "1 of 51 classes have no clip in split train of HMDB51 split1, 'brush hair'"),
    ],
)
def test_bad_hmdb_lists(hmdb, copy, cache, pattern, replacement, message):
    root = copy(hmdb)
    edit(root / "testTrainMulti_7030_splits" / "brush_hair_test_split1.txt", pattern, replacement)
    with pytest.raises(ValueError, match=message):
        HMDB51(data_dir=str(root), cache_dir=cache)


def test_missing_hmdb_list(hmdb, copy, cache):
    root = copy(hmdb)
    (root / "testTrainMulti_7030_splits" / "wave_test_split1.txt").unlink()
    with pytest.raises(FileNotFoundError, match="The list wave_test_split1.txt is not under"):
        HMDB51(data_dir=str(root), cache_dir=cache)


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        ("^abseiling,", "climbing down,", r"val.csv, line 401: Unknown label 'climbing down'"),
        ("time_start", "begin", "val.csv has no column time_start"),
        (r"^(abseiling,[^,]+),\d+", r"\1,soon", "val.csv, line 401: time_start and time_end must be numbers"),
        (r"^abseiling,.*\n", "", "1 of 400 classes have no clip in split validation of kinetics400, 'abseiling'"),
    ],
)
def test_bad_kinetics_lists(kinetics400, copy, cache, pattern, replacement, message):
    root = copy(kinetics400)
    edit(root / "annotations" / "val.csv", pattern, replacement)
    with pytest.raises(ValueError, match=message):
        load_videos("kinetics", "validation", data_dir=str(root), cache_dir=cache)
    assert len(load_videos("kinetics", "train", data_dir=str(root), cache_dir=cache)) == 400  # its list is good


def test_kinetics_lists_of_both_editions(kinetics400, copy, cache):
    root = copy(kinetics400)
    shutil.copy(root / "annotations" / "train.csv", root / "kinetics600_train.csv")
    assert len(load_videos("kinetics", "train", data_dir=str(root), cache_dir=cache)) == 400
    shutil.copy(root / "annotations" / "train.csv", root / "k400_train.csv")
    with pytest.raises(ValueError, match="k400_train.csv and train.csv may both be the train list"):
        load_videos("kinetics", "train", data_dir=str(root), cache_dir=cache)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with the line path,label"),
        ("a.mp4 0 yoga\n", "must begin with the line path,label"),
        ("path,label\n", "Label set bad has no class|lists no clip"),
        ("path,label\nown/yoga/a.mp4,\n", "label 1 of 1 is empty"),
        ("path,label\n\n,yoga\n", "bad.csv, line 3: the path is empty"),
        ("path,label\nown/yoga/a,b.mp4,yoga\n", "bad.csv, line 2 has more values than columns"),
        ("path,label\nown/yoga/a.mp4,yoga\nown/yoga/b.webm,Yoga\n", "labels 'Yoga' and 'yoga' are one"),
        ("path,label,start,end\nown/yoga/a.mp4,yoga,0.4,0.1\n", "bad.csv, line 2: start 0.4 and end 0.1"),
        ("path,label,start,end\nown/yoga/a.mp4,yoga,-1,\n", "bad.csv, line 2: start -1.0 and end None"),
        ("path,label,start,end\nown/yoga/a.mp4,yoga,nan,\n", "bad.csv, line 2: start nan and end None"),
        ("path,label,start,end\nown/yoga/a.mp4,yoga,soon,\n", "bad.csv, line 2: start and end must be numbers"),
        ("path,label\nown/yoga/a.mp4,caf\udce9\n", "bad.csv is not UTF-8"),
    ],
)
def test_bad_video_lists(own, cache, text, message):
    (own / "bad.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as raised:
        load_videos(own / "bad.csv", "train", cache_dir=cache)
    assert "\n" not in str(raised.value)


def test_video_lists_with_a_label_file(own, cache):
    (own / "labels.txt").write_text("yoga\nsleeping\n")
    options = {"label_file": str(own / "labels.txt"), "cache_dir": cache}
    with pytest.raises(ValueError, match="own.csv, line 3: Unknown label 'archery': .* 2 classes of labels"):
        load_videos(own / "own.csv", "train", **options)
    (own / "labels.txt").write_text("yoga\nsleeping\narchery\n")
    with pytest.raises(ValueError, match="1 of 3 classes have no clip in split train of .*own.csv, 'sleeping'"):
        load_videos(own / "own.csv", "train", **options)


def test_descriptions_in_a_label_file_are_said_to_be_left_out(own, cache):
    (own / "described.csv").write_text("name,description\nyoga,someone stretches\narchery,\n")
    with pytest.warns(UserWarning, match=r"descriptions of 1 class \(yoga\) left out: rows have names alone"):
        rows = load_videos(own / "own.csv", "train", label_file=str(own / "described.csv"), cache_dir=cache)
    assert rows.features["label"].names == ["yoga", "archery"]


def test_bad_video_folders(tmp_path, own, clip, cache):
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="bare has no folders of classes"):
        load_videos(tmp_path / "bare", cache_dir=cache)
    clip(own / "own" / "Yoga" / "a.mp4")
    with pytest.raises(ValueError, match="labels 'Yoga' and 'yoga' are one"):
        load_videos(own / "own", cache_dir=cache)
    (tmp_path / "other" / "run").mkdir(parents=True)
    (tmp_path / "other" / "run" / "notes.txt").write_text("not a video")
    with pytest.raises(ValueError, match="'run' to begin with, hold no file with the suffix of a video"):
        load_videos(tmp_path / "other", cache_dir=cache)
    (tmp_path / "other" / "run").rename(tmp_path / "other" / "a\nclass")
    clip(tmp_path / "other" / "a\nclass" / "a.mp4")
    with pytest.raises(ValueError, match="label 1 of 1, .* has a line break") as raised:
        load_videos(tmp_path / "other", cache_dir=cache)
    assert "\n" not in str(raised.value)


def test_what_a_folder_holds_besides_is_left_out_and_told_once(tmp_path, clip, cache):
    root = tmp_path / "mixed"
    for name in ("red_star/a.mp4", "BlueBar/b.mp4", "BlueBar/below/c.mp4"):
        clip(root / name)
    (root / "empty" / "deeper").mkdir(parents=True)
    (root / "empty" / "deeper" / "notes.txt").write_text("no video")
    (root / "red_star" / "a.txt").write_text("no video")
    clip(root / "loose.mp4")
    with pytest.warns(UserWarning) as caught:
        rows = load_videos(root, "train", cache_dir=cache)
    assert rows.features["label"].names == ["Blue Bar", "red star"] and rows["label"][:] == [0, 0, 1]
    assert [str(warning.message) for warning in caught] == [
        f"3 files (loose.mp4, empty/deeper/notes.txt, red_star/a.txt) of {root} without a video's suffix or a class "
        "left out",
        f"1 folder (empty) of {root} without a video left out: no class",
        "Class names are read as words: BlueBar → Blue Bar, red_star → red star.",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_videos(root, "train", cache_dir=cache)


def test_a_split_may_lack_a_class_of_the_folders(tmp_path, clip, cache):
    for name in ("train/run/a.mp4", "train/yoga/b.mp4", "val/run/c.mp4"):
        clip(tmp_path / "split" / name)
    with pytest.warns(UserWarning, match=r"1 class \(yoga\) without a clip in split val"):
        both = load_videos(tmp_path / "split", cache_dir=cache)
    assert both["train"]["label"][:] == [0, 1] and both["val"]["label"][:] == [0]


@pytest.mark.parametrize(("written", "read"), [("red_star_growing", "red star growing"), ("GreenBar", "Green Bar")])
def test_names_in_lists_and_folders_become_the_same_words(own, clip, cache, written, read):
    (own / "names.csv").write_text(f"path,label\nown/yoga/a.mp4,{written}\n")
    clip(own / "folder" / written / "a.mp4")
    for source in (own / "names.csv", own / "folder"):
        config = video_builder(source, cache_dir=cache).config
        assert config.label_set.classes == (read,) and config.renamed == {written: read}


def test_unknown_source(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match="is no folder, no CSV file and no known data set; known are kinetics"):
        load_videos("kinetcs", cache_dir=cache)
    with pytest.raises(FileNotFoundError, match="List .*gone.csv does not exist"):
        load_videos(tmp_path / "gone.csv", cache_dir=cache)


def test_moving_shapes_by_name(cache):
    options = {"train_videos_per_class": 1, "eval_videos_per_class": 1, "train_objects": 6, "motions_per_object": 2}
    rows = load_videos("moving_shapes", "test", cache_dir=cache, **options)
    assert len(rows) == 12 and rows[0]["video"]["bytes"]


def test_unknown_options(own, cache):
    with pytest.raises(ValueError, match="^A folder of videos takes no data_dir.$"):
        load_videos(own / "own", data_dir="elsewhere", cache_dir=cache)
    with pytest.raises(ValueError, match="num_shards is 0"):
        load_videos(own / "own", num_shards=0, cache_dir=cache)
    with pytest.raises(ValueError, match="^A list of videos takes no num_frame.$"):
        load_videos(own / "own.csv", num_frame=8, cache_dir=cache)


def test_rows_are_what_datasets_saves_and_loads(own, cache, tmp_path):
    rows = load_videos(own / "own.csv", "train", cache_dir=cache)
    rows.save_to_disk(tmp_path / "saved")
    again = datasets.load_from_disk(tmp_path / "saved")
    assert again.features == rows.features and again["label"][:] == rows["label"][:]
    assert again[0]["video"]["bytes"] == (own / "own/yoga/a.mp4").read_bytes()  # a saved data set holds its videos


# The official lists, where somebody gives them: MOTE_UCF101_LISTS and MOTE_HMDB51_LISTS are their folders.


def official_lists(variable: str, folder: str) -> Path:
    path = Path(os.environ.get(variable) or Path(__file__).resolve().parents[2] / ".." / "shared" / folder)
    if not path.is_dir():
        pytest.skip(f"the official lists are absent: set {variable} to their folder")
    return path


@pytest.mark.parametrize(("fold", "num_train", "num_test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_counts_of_the_official_ucf101_lists(tmp_path, cache, clip, fold, num_train, num_test):
    lists = official_lists("MOTE_UCF101_LISTS", "ucfTrainTestlist")
    for split in ("train", "test"):
        clip(tmp_path / (lists / f"{split}list0{fold}.txt").read_text().split()[0])
    builder = UCF101(data_dir=str(tmp_path), list_dir=str(lists), config_name=f"split{fold}", cache_dir=cache)
    assert {split: len(clips) for split, clips in builder.config.clips.items()} == {
        "train": num_train,
        "test": num_test,
    }


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_counts_of_the_official_hmdb51_lists(tmp_path, cache, clip, fold):
    lists = official_lists("MOTE_HMDB51_LISTS", "testTrainMulti_7030_splits")
    for line in (lists / f"brush_hair_test_split{fold}.txt").read_text().splitlines():
        clip(tmp_path / "brush_hair" / line.split()[0])
    builder = HMDB51(data_dir=str(tmp_path), list_dir=str(lists), config_name=f"split{fold}", cache_dir=cache)
    assert {split: len(clips) for split, clips in builder.config.clips.items()} == {"train": 3570, "test": 1530}


def test_commands_know_every_data_set_by_name():
    assert set(BENCHMARKS) == set(BUILDERS)
