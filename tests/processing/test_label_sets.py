"""The class lists that come with the package, and the user's own label files."""

import csv

import pytest

from modeling_mote.processing.label_sets import LABEL_SETS, LabelSet, load_label_set, read_label_file

SHARED_FILES = {
    "kinetics400": "kinetics_400_labels.csv",
    "ucf101": "ucf101_labels.csv",
    "hmdb51": "hmdb51_labels.csv",
    "kinetics600_split1": "kinetics_600_zero_shot_split1.csv",
    "kinetics600_split2": "kinetics_600_zero_shot_split2.csv",
    "kinetics600_split3": "kinetics_600_zero_shot_split3.csv",
}
SIZES = {"kinetics400": 400, "ucf101": 101, "hmdb51": 51} | {f"kinetics600_split{k}": 160 for k in (1, 2, 3)}
# A change of a list, be it one letter or the order, changes every number measured on it: it must change here too.
SHA256 = {
    "kinetics400": "a8dafb93a1204d4ecfa904f943ce5ee0c62ddeeb1df71aa1f96983fca17d777e",
    "ucf101": "bde940b5fbd4aaee86b0697dccade47ab01f2f406d9de5c623d04e9760283823",
    "hmdb51": "34fa74047875b6e32f859d9f827c4ff49f0fb1747b602378d1cd1aa9340f2a1e",
    "kinetics600_split1": "af31b25d446031c54b83a038439cef6d8fdb8423316cf77236ea4b3768357fe2",
    "kinetics600_split2": "c7dd90897fb1bcde2a36803ac8e976452f4c4cd8273be471e2e15af44cdf40ce",
    "kinetics600_split3": "08c0aa3eccfab8df040f0a07c8bade1bc29044f746f4cf9e1330662ca13d7de3",
}


@pytest.mark.parametrize("name", LABEL_SETS)
def test_sizes_and_hashes(name):
    label_set = load_label_set(name)
    assert (label_set.name, len(label_set), label_set.sha256) == (name, SIZES[name], SHA256[name])


@pytest.mark.parametrize("name", LABEL_SETS)
def test_names_and_order_are_the_authors(name, shared):
    with open(shared / "labels" / SHARED_FILES[name], newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert load_label_set(name).classes == tuple(row[-1] for row in rows)


def test_kinetics600_splits_share_no_class_with_kinetics400():
    seen = set(load_label_set("kinetics400").classes)
    splits = [set(load_label_set(f"kinetics600_split{k}").classes) for k in (1, 2, 3)]
    assert all(split.isdisjoint(seen) for split in splits)
    assert len(set.union(*splits)) == 217  # of the 220 classes new to Kinetics-600


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("ucf101", "ApplyEyeMakeup", "Apply Eye Makeup"),
        ("ucf101", "HandStandPushups", "Handstand Pushups"),
        ("ucf101", "YoYo", "YoYo"),
        ("hmdb51", "brush_hair", "brush hair"),
        ("kinetics400", "massaging_person's_head", "massaging person's head"),
        ("kinetics400", "passing_American_football_(not_in_game)", "passing American football (not in game)"),
    ],
)
def test_from_raw(name, raw, expected):
    label_set = load_label_set(name)
    assert label_set.from_raw(raw) == expected
    assert label_set.classes[label_set.index(raw)] == expected


@pytest.mark.parametrize("name", LABEL_SETS)
def test_every_name_survives_the_spellings_of_folders(name):
    label_set = load_label_set(name)
    for spell in (str, lambda n: n.replace(" ", "_"), lambda n: n.replace(" ", ""), str.lower):
        assert [label_set.index(spell(class_name)) for class_name in label_set.classes] == list(range(len(label_set)))


def test_names_of_folders_become_words_and_are_recorded():
    label_set = LabelSet.from_names("mine", ["GreenBarGrowing", "red_star_growing", "blue bar", "yoga"])
    assert label_set.classes == ("Green Bar Growing", "red star growing", "blue bar", "yoga")
    assert label_set.renamed == {
        "GreenBarGrowing": "Green Bar Growing",
        "red_star_growing": "red star growing",
    }
    assert [label_set.index(name) for name in ("GreenBarGrowing", "red_star_growing", "blue_bar")] == [0, 1, 2]
    assert LabelSet.from_names("mine", ["C++", "C#"]).index("C#") == 1


@pytest.mark.parametrize("names", [("red_star", "red star"), ("RedStar", "red_star")])
def test_two_names_of_one_class_are_refused(names):
    with pytest.raises(ValueError, match=f"'{names[0]}' and '{names[1]}' are both the class 'red star'"):
        LabelSet.from_names("mine", names)


def test_official_names_are_never_changed():
    assert "YoYo" in load_label_set("ucf101").classes and not load_label_set("ucf101").renamed


@pytest.mark.parametrize(
    ("file_name", "content"), [("mine.txt", "YoYo\nbrush_hair\n"), ("mine.csv", "name\nYoYo\nbrush_hair")]
)
def test_names_in_a_label_file_become_words(tmp_path, file_name, content):
    (tmp_path / file_name).write_text(content)
    label_set = read_label_file(tmp_path / file_name)
    assert label_set.classes == ("Yo Yo", "brush hair")
    assert label_set.renamed == {"YoYo": "Yo Yo", "brush_hair": "brush hair"}


@pytest.mark.parametrize("name", ["red\nstar", "red\tstar", "red\x00star", "x" * 1001, " ", ""])
def test_names_that_can_be_no_class(name):
    with pytest.raises(ValueError, match="Label set mine: label 2 of 2") as raised:
        LabelSet("mine", ("yoga", name))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


def test_classes_of_one_raw_key_need_their_exact_names():
    label_set = LabelSet("languages", ("C++", "C#", "Rust"))
    assert [label_set.index(name) for name in ("C++", "C#", "rust")] == [0, 1, 2]
    with pytest.raises(ValueError, match="Unknown label 'c'.*3 classes of languages"):
        label_set.from_raw("c")


def test_unknown_label_set_names_the_choices():
    with pytest.raises(ValueError, match="Unknown label set 'kinetics'; choose one of kinetics400, ucf101"):
        load_label_set("kinetics")


@pytest.mark.parametrize(
    ("file_name", "text"),
    [
        ("mine.txt", "flipping a pancake\nyoga, outdoors\n\narchery\n"),
        ("mine.csv", 'id,name\n0,flipping a pancake\n1,"yoga, outdoors"\n2,archery\n'),
        ("mine.csv", 'name\r\nflipping a pancake\r\n"yoga, outdoors"\r\narchery'),
    ],
)
def test_read_label_file(tmp_path, file_name, text):
    path = tmp_path / file_name
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as spreadsheets save it
    label_set = read_label_file(path)
    assert (label_set.name, label_set.classes) == ("mine", ("flipping a pancake", "yoga, outdoors", "archery"))


@pytest.mark.parametrize(
    ("file_name", "content", "message"),
    [
        ("empty.txt", b"\n \n", "empty.txt: it names no class"),
        ("empty.csv", b"", "empty.csv: it names no class"),
        ("header.csv", b"id,name\n", "header.csv: it names no class"),
        ("twice.txt", b"yoga\nrun\nYoga\n", "twice.txt: labels 'yoga' and 'Yoga' are one"),
        ("column.csv", b"id,label\n0,run\n", "column.csv: it has no column `name`"),
        ("order.csv", b"id,name\n1,run\n0,walk\n", "order.csv: the column `id` must count"),
        ("blank.csv", b"id,name\n0,run\n1,\n", "blank.csv: label 2 of 2 is empty"),
        ("comma.csv", b"name\nyoga, outdoors\n", "comma.csv: row 1 has more cells than the header"),
        ("quote.csv", b'name\n"yoga\nrun\n', "quote.csv: it has a quote that does not fit"),
        ("twice.csv", b"name,description\nyoga,\nyoga,\n", "twice.csv: label 'yoga' was given twice"),
        ("half.csv", b"name,description\nyoga,a mat\nyoga,\n", "half.csv: text 2 of 2 that describe label 'yoga' is"),
        ("column.csv", b"name,Descriptions\nyoga,a mat\n", "call its column `Descriptions` `description`"),
        ("ids.csv", b"id,name,description\n0,yoga,a\n1,yoga,b\n", "label 'yoga' has two ids"),
        ("end.txt", b"name,description\nyoga,a mat\n", "give it a name that ends in .csv"),
        ("latin.txt", "café".encode("latin-1"), "latin.txt: it is not UTF-8"),
    ],
)
def test_bad_label_files_get_one_sentence(tmp_path, file_name, content, message):
    path = tmp_path / file_name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_label_file(path)
    assert "\n" not in str(raised.value)


def test_missing_label_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.txt does not exist"):
        read_label_file(tmp_path / "gone.txt")


DESCRIBED = """name,description
leap_over,"a gymnast runs, and leaps over a vault"
yoga,
archery,an arrow
leap_over,"someone in the air
above  a vault"
"""


def test_a_label_file_describes_classes(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(DESCRIBED)
    label_set = read_label_file(path)
    texts = ("a gymnast runs, and leaps over a vault", "someone in the air above a vault")
    assert label_set.candidates == {"leap over": texts, "yoga": (), "archery": ("an arrow",)}
    assert (label_set.classes, label_set.renamed) == (("leap over", "yoga", "archery"), {"leap_over": "leap over"})


def test_a_hash_follows_the_descriptions(tmp_path):
    path = tmp_path / "mine.csv"
    hashes = []
    for content in ("name\nyoga\nrun", "name,description\nyoga,\nrun,", DESCRIBED, DESCRIBED.replace("air", "sky")):
        path.write_text(content)
        hashes.append(read_label_file(path).sha256)
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3
    assert hashes[0] == LabelSet("x", ("yoga", "run")).sha256


def test_ids_count_classes_not_rows(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("id,name,description\n0,yoga,a mat\n0,yoga,a pose\n1,run,a track\n")
    assert read_label_file(path).candidates == {"yoga": ("a mat", "a pose"), "run": ("a track",)}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["YoYo", "Tai Chi", "brush_hair"], ("YoYo", "Tai Chi", "brush hair")),  # written in words
        (["YoYo", "TaiChi", "brush_hair"], ("Yo Yo", "Tai Chi", "brush hair")),  # written as folders are
    ],
)
def test_capitals_separate_words_only_where_no_name_has_a_space(tmp_path, written, read):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(written))
    label_set = read_label_file(path)
    assert label_set.classes == read
    assert label_set.renamed == {raw: name for raw, name in zip(written, read, strict=True) if raw != name}
