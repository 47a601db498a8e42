"""Data from the bundled digits and from files: what comes out, and what is refused in which words."""

import re

import numpy as np
import pytest

from bnnwide import datasets


@pytest.fixture
def table():
    rng = np.random.default_rng(1)
    x = rng.normal(3.0, 5.0, size=(20, 3))
    return x, x.sum(axis=1)


def write(path, text):
    path.write_text(text)
    return path


def test_digits_are_standardised_over_all_training_pixels():
    data = datasets.load_digits(num_train=64, num_test=100)
    assert data.x.shape == (64, 64) and data.y.shape == (64, 10)
    assert data.x_test.shape == (100, 64) and data.y_test.shape == (100, 10)
    assert data.name == "digits"
    np.testing.assert_allclose([data.x.mean(), data.x.std()], [0.0, 1.0], atol=1e-12)
    assert data.x.std(axis=0).std() > 0.1  # one scale for all pixels, not one per pixel
    np.testing.assert_array_equal(np.unique(data.y.round(12)), [-0.1, 0.9])
    np.testing.assert_array_equal(data.y.argmax(axis=1), data.labels)
    np.testing.assert_array_equal(data.y_test.argmax(axis=1), data.labels_test)


def test_digits_take_first_images_for_training_and_last_for_test():
    from sklearn.datasets import load_digits

    labels = load_digits().target
    data = datasets.load_digits(num_train=10, num_test=7)
    np.testing.assert_array_equal(data.labels, labels[:10])
    np.testing.assert_array_equal(data.labels_test, labels[-7:])


def test_digits_refuse_more_images_than_there_are():
    message = "`load_digits`: num_train + num_test must be at most 1797; got 1500 + 500; ask for fewer images"
    with pytest.raises(ValueError, match=re.escape(message)):
        datasets.load_digits(num_train=1500)
    with pytest.raises(ValueError, match="`load_digits`: num_train must be at least 1; got 0"):
        datasets.load_digits(num_train=0)


def test_npz_of_real_targets_holds_out_a_fifth(tmp_path, table):
    x, y = table
    path = tmp_path / "plane.npz"
    np.savez(path, x=x, y=y)
    data = datasets.load_npz(path)
    assert data.x.shape == (16, 3) and data.y.shape == (16, 1) and data.x_test.shape == (4, 3)
    assert data.labels is None and data.name == "plane"
    np.testing.assert_allclose(data.x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(data.x.std(axis=0), 1)
    # Every row is in exactly one part, and inputs still belong to their targets: y is linear in the scaled x.
    np.testing.assert_allclose(np.sort(np.r_[data.y, data.y_test].ravel()), np.sort(y))
    design = np.c_[data.x, np.ones(16)]
    weights = np.linalg.lstsq(design, data.y, rcond=None)[0]
    np.testing.assert_allclose(np.c_[data.x_test, np.ones(4)] @ weights, data.y_test)
    for again, first in zip(datasets.load_npz(path)[:4], data[:4], strict=True):
        np.testing.assert_array_equal(again, first)


def test_npz_in_the_cifar_subset_format(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "cifar10_subset.npz"
    images, test_images = (rng.integers(0, 256, size=(n, 32, 32, 3), dtype=np.uint8) for n in (30, 12))
    labels, test_labels = np.arange(30) % 10, np.arange(12) % 10
    extra = {"train_index": np.arange(30), "class_names": np.array(["airplane"] * 10)}
    np.savez(path, x_train=images, y_train=labels, x_test=test_images, y_test=test_labels, **extra)
    data = datasets.load_npz(path, num_train=5, num_test=10)
    assert data.x.shape == (5, 3072) and data.x_test.shape == (10, 3072)
    assert data.y.shape == (5, 10)  # all classes of the file, though the first rows hold five of them
    np.testing.assert_array_equal(data.labels, labels[:5])
    pixels = images[:5].reshape(5, -1).astype(float)
    np.testing.assert_allclose(data.x, (pixels - pixels.mean()) / pixels.std())
    scaled_test = (test_images[:10].reshape(10, -1) - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(data.x_test, scaled_test)


def test_class_labels_need_not_count_from_zero(tmp_path):
    path = tmp_path / "odd.npz"
    np.savez(path, x=np.arange(10.0), y=np.array([3, 7, 7, 3, 5, 3, 5, 7, 5, 3]))
    data = datasets.load_npz(path)
    assert data.x.shape == (8, 1)
    np.testing.assert_allclose(np.unique(data.y.round(12)), [-1 / 3, 2 / 3])
    assert set(data.labels) | set(data.labels_test) == {0, 1, 2}


def test_constant_column_is_centred_only(tmp_path):
    path = tmp_path / "constant.npz"
    np.savez(path, x=np.c_[np.full(10, 4.0), np.arange(10)], y=np.arange(10.0))
    data = datasets.load_npz(path)
    np.testing.assert_array_equal(data.x[:, 0], 0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((4, 2))}, "y not found among x; add what is missing"),
        ({"z": np.ones(3)}, "x, y not found among its arrays"),
        ({"x": np.ones((4, 2)), "y": np.ones(3)}, "`load_npz`: y must have shape (4,) with n=4 from x; got (3,)"),
        ({"x": np.full((4, 2), np.nan), "y": np.ones(4)}, "`load_npz`: x must be finite; got 8 NaN or infinite"),
        ({"x": np.ones((4, 2)), "y": np.array([1, np.inf, 1, 1])}, "`load_npz`: y must be finite"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "`load_npz`: x must hold at least one entry on every axis"),
        ({"x": np.ones((1, 2)), "y": np.ones(1)}, "must have at least 2 rows, to hold one out; got 1"),
        ({"x": np.ones((4, 2)), "y": np.ones(4, int)}, "must have at least 2 distinct values; got only 1"),
        ({"x_train": np.ones((4, 2)), "y_train": np.ones(4)}, "x_test, y_test not found among x_train, y_train"),
        (
            {"x": np.ones((4, 2)), "y": np.ones(4), "x_test": np.ones((2, 3)), "y_test": np.ones(2)},
            "`load_npz`: x_test must have shape (n, 2) with the row shape of x; got (2, 3)",
        ),
    ],
)
def test_npz_refusals(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=re.escape(message)):
        datasets.load_npz(path)


def test_npz_refuses_text_and_pickles(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, x=np.ones((2, 2)), y=np.array(["cat", "dog"]))
    with pytest.raises(TypeError, match="`load_npz`: y must be an array of real numbers; got dtype <U3"):
        datasets.load_npz(path)
    np.savez(path, x=np.ones((2, 2)), y=np.array([{}, None], dtype=object))
    with pytest.raises(ValueError, match="must be a NumPy archive of numeric arrays"):
        datasets.load_npz(path)
    with pytest.raises(ValueError, match="must be a NumPy archive of numeric arrays"):
        datasets.load_npz(write(path, "no archive"))


def test_csv_header_is_optional(tmp_path):
    lines = "".join(f"{i},{i * i},{i / 2}\n" for i in range(10))
    plain = datasets.load_csv(write(tmp_path / "plain.csv", lines))
    headed = datasets.load_csv(write(tmp_path / "headed.csv", "\ufeffa, b,target\n\n" + lines))
    assert plain.x.shape == (8, 2) and plain.y.shape == (8, 1) and plain.labels is None
    for one, other in zip(plain[:4], headed[:4], strict=True):
        np.testing.assert_array_equal(one, other)


def test_csv_targets_counting_from_zero_are_classes(tmp_path):
    rows = [(i / 7, i % 3) for i in range(12)]
    data = datasets.load_csv(write(tmp_path / "classes.csv", "".join(f"{a},{c}\n" for a, c in rows)))
    assert data.y.shape == (10, 3) and data.labels is not None
    real = datasets.load_csv(write(tmp_path / "real.csv", "".join(f"{a},{c}.0\n" for a, c in rows)))
    assert real.y.shape == (10, 1) and real.labels is None
    ages = datasets.load_csv(write(tmp_path / "ages.csv", "".join(f"{a},{c + 20}\n" for a, c in rows)))
    assert ages.labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1,2,3\n1,2,abc\n",
            "`load_csv`: column 3 must be numeric; got 'abc' in row 2; remove or encode it",
        ),
        ("a,b\n1,2\n\n1,\n", "`load_csv`: column 2 must be numeric; got '' in row 4; remove or encode it"),
        ("1,2\n1,nan\n", "`load_csv`: column 2 must be finite; got 'nan' in row 2; drop or impute that row"),
        ("1,2\n-inf,1\n", "`load_csv`: column 1 must be finite; got '-inf' in row 2"),
        ("1,2\n1,2,3\n", "every row must have 2 columns as row 1 has; got 3 in row 2; fill or remove it"),
        ("1\n2\n", "must have at least 2 columns, inputs then target; got 1; separate columns by commas"),
        ("1,2\n", "must have at least 2 rows, to hold one out; got 1"),
        ("", "must have at least 2 rows of numbers; got none"),
        ("a,b\n", "must have at least 2 rows of numbers; got none"),
    ],
)
def test_csv_refusals(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        datasets.load_csv(write(tmp_path / "bad.csv", text))


def test_csv_refuses_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(b"\xff\xfe\x00,1\n")
    with pytest.raises(ValueError, match="must be comma-separated text in UTF-8"):
        datasets.load_csv(path)


def test_load_names_digits_and_files(tmp_path, table):
    assert datasets.load("digits").x.shape == (128, 64)
    assert datasets.load("digits", 32).x.shape == (32, 64)
    path = tmp_path / "plane.npz"
    np.savez(path, x=table[0], y=table[1])
    assert datasets.load(str(path)).x.shape == (16, 3)  # fewer than the usual 128
    assert datasets.load(path, 5).x.shape == (5, 3)
    with pytest.raises(ValueError, match="`load_npz`: num_train must be at most the 16 rows there are; got 17; ask"):
        datasets.load(path, 17)
    with pytest.raises(ValueError, match="`load`: data must be 'digits' or a path that ends in .npz or .csv; got 'mn"):
        datasets.load("mnist")


def test_load_names_a_path_that_is_no_file(tmp_path):
    message = "nothing.npz', no such file; check the path"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        datasets.load(tmp_path / "nothing.npz")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileNotFoundError, match=re.escape("folder.csv', a folder; check the path")):
        datasets.load(tmp_path / "folder.csv")
