"""Which files make a pair, and what is said about those that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ics_apps.tasks.segmentation.data.checks import Problems
from ics_apps.tasks.segmentation.data.pairing import Layout, find_images, find_pairs


def find(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    problems = Problems(root)
    return [pair.name for pair in find_pairs(root, Layout(), problems)], problems.found


def test_pairs_share_a_stem_and_may_differ_in_suffix(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(["b", "a"])
    (root / "masks" / "a.png").rename(root / "masks" / "a.nii.gz")
    assert find(root) == (["a", "b"], [])


def test_hidden_and_other_files_are_passed_over(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(["a"])
    for name in (".DS_Store", "._a.png", "Thumbs.db", "notes.txt"):
        (root / "images" / name).write_text("x")
    assert find(root) == (["a"], [])


def test_image_without_mask_and_mask_without_image_are_named(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(["a", "b"])
    (root / "masks" / "a.png").unlink()
    (root / "images" / "b.png").rename(root / "images" / "q.png")
    assert find(root) == (
        [],
        [
            ("images/a.png", "no mask with the stem 'a' in masks/"),
            ("images/q.png", "no mask with the stem 'q' in masks/"),
            ("masks/b.png", "no image with the stem 'b' in images/"),
        ],
    )


def test_a_name_that_differs_only_in_case_is_hinted_at(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(["Cell_1"])
    (root / "masks" / "Cell_1.png").rename(root / "masks" / "cell_1.png")
    assert find(root)[1] == [
        (
            "images/Cell_1.png",
            "no mask with the stem 'Cell_1' in masks/; nearest is cell_1.png, which differs only in case",
        ),
        (
            "masks/cell_1.png",
            "no image with the stem 'cell_1' in images/; nearest is Cell_1.png, which differs only in case",
        ),
    ]


def test_a_longer_name_is_hinted_at_before_one_of_like_letters(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(["t2", "t2s"])
    for stem in ("t2", "t2s"):
        (root / "masks" / f"{stem}.png").rename(root / "masks" / f"{stem}_mask.png")
    assert find(root)[1][:2] == [
        ("images/t2.png", "no mask with the stem 't2' in masks/; nearest is t2_mask.png"),
        ("images/t2s.png", "no mask with the stem 't2s' in masks/; nearest is t2s_mask.png"),
    ]


def test_two_files_with_one_stem_are_refused(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(["a"])
    (root / "images" / "a.tif").write_bytes((root / "images" / "a.png").read_bytes())
    assert find(root)[1] == [("images/a.tif", "has the same stem as a.png; keep one of the two")]


def test_missing_folder_tells_what_is_there(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(["a"])
    (root / "masks").rename(root / "Masks")
    reason = "no such folder; cells/ holds Masks/, images/ (did you mean Masks/?)"
    assert find(root) == ([], [("masks", reason)])


def test_empty_folder_tells_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    problems = Problems(tmp_path)
    assert find_images(tmp_path / "images", problems) is None
    (tmp_path / "images" / "a.bmp").write_text("x")
    assert find_images(tmp_path / "images", problems) is None
    allowed = ".png, .jpg, .jpeg, .tif, .tiff, .nii.gz, .nii, .npz, .npy, .dcm"
    assert problems.found == [
        ("images", f"no image in this folder ({allowed}); it is empty"),
        ("images", f"no image in this folder ({allowed}); it holds a.bmp"),
    ]
