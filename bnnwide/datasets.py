"""Real data without a network: scikit-learn's bundled digits, and a user's own .npz or .csv."""

import csv
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bnnwide.checks import check_array, check_count

TEST_FRACTION = 0.2
DEFAULT_NUM_TRAIN = 128


class Dataset(NamedTuple):
    """Inputs and targets of a supervised problem, ready for a network whose prior expects numbers of order one.

    Attributes:
      x: training inputs (n, d), standardised.
      y: training targets (n, k): one-hot − 1/k for classes, the file's own unit for real targets.
      x_test: test inputs (n_test, d), standardised by the training statistics.
      y_test: test targets (n_test, k).
      name: what the data are called in tables and figures.
      labels: class of each training input, 0..k−1, or None for real targets.
      labels_test: class of each test input, or None.
    """

    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, "n k"]
    x_test: Float[np.ndarray, "n_test d"]
    y_test: Float[np.ndarray, "n_test k"]
    name: str
    labels: Int[np.ndarray, " n"] | None = None
    labels_test: Int[np.ndarray, " n_test"] | None = None


class _Split(NamedTuple):
    """Arrays as a source holds them: unscaled, targets as classes or real numbers."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(spec: str | Path, num_train: int | None = None) -> Dataset:
    """Load data by one word or a path, as the command line names them.

    Args:
      spec: "digits", or a path that ends in .npz or .csv.
      num_train: number of training rows; None means 128, or all of a file that has fewer.

    Raises:
      ValueError: if `spec` is neither, or the file's content is not usable.
      FileNotFoundError: if there is no such file.
    """
    if str(spec) == "digits":
        return load_digits(DEFAULT_NUM_TRAIN if num_train is None else num_train)
    path = Path(spec)
    if path.suffix == ".npz":
        split = _read_npz("load_npz", path)
    elif path.suffix == ".csv":
        split = _read_csv("load_csv", path)
    else:
        raise ValueError(f"`load`: data must be 'digits' or a path that ends in .npz or .csv; got {str(spec)!r}")
    if num_train is None:
        num_train = min(DEFAULT_NUM_TRAIN, len(split.x))
    return _dataset(f"load_{path.suffix[1:]}", path.stem, split, num_train, None)


def load_digits(num_train: int = DEFAULT_NUM_TRAIN, num_test: int = 500) -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits: the first images train, the last ones test.

    Pixels are flattened to d = 64 and standardised by the one mean and standard deviation of all training pixels, and
    targets are one-hot − 0.1, as in the experiments of Hron et al. (2022).

    Args:
      num_train: number of training images.
      num_test: number of test images.

    Raises:
      ValueError: if there are not so many images.
    """
    from sklearn.datasets import load_digits as bundled_digits

    check_count("load_digits", "num_train", num_train)
    check_count("load_digits", "num_test", num_test)
    images, labels = (np.asarray(part) for part in bundled_digits(return_X_y=True))
    if num_train + num_test > len(images):
        raise ValueError(
            f"`load_digits`: num_train + num_test must be at most {len(images)}; got {num_train} + {num_test}; "
            "ask for fewer images"
        )
    images = images.reshape(-1, 8, 8)
    split = _Split(images[:-num_test], labels[:-num_test], images[-num_test:], labels[-num_test:])
    return _dataset("load_digits", "digits", split, num_train, num_test)


def load_npz(path: str | Path, num_train: int | None = None, *, num_test: int | None = None) -> Dataset:
    """Load a NumPy archive with x and y, or with x_train, y_train, x_test and y_test.

    Whole-number targets (n,) are classes, encoded one-hot − 1/k; real targets (n,) or (n, k) keep their unit. Images
    (more than two axes, or uint8) are flattened and standardised by one mean and standard deviation, tables column by
    column, both over the training rows. Without a test split a seeded fifth of the shuffled rows is held out.
    Other arrays in the file are left alone.

    Args:
      path: the .npz file.
      num_train: number of training rows, the first ones; None means all.
      num_test: number of test rows, the first ones; None means all.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is no NumPy archive, lacks an array, or holds a wrong shape, NaN or an infinity.
    """
    path = Path(path)
    return _dataset("load_npz", path.stem, _read_npz("load_npz", path), num_train, num_test)


def load_csv(path: str | Path, num_train: int | None = None, *, num_test: int | None = None) -> Dataset:
    """Load a table of comma-separated numbers whose last column is the target.

    A first line without any number is taken as a header. Targets written as whole numbers that are exactly 0..k−1 are
    classes; any other target is real (write 0.0 instead of 0 to make such targets real). Inputs are standardised
    column by column over the training rows; a seeded fifth of the shuffled rows is held out.

    Args:
      path: the .csv file.
      num_train: number of training rows; None means all that are not held out.
      num_test: number of test rows; None means all that are held out.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is empty or ragged, or a cell is not a finite number.
    """
    path = Path(path)
    return _dataset("load_csv", path.stem, _read_csv("load_csv", path), num_train, num_test)


def _dataset(door: str, name: str, split: _Split, num_train: int | None, num_test: int | None) -> Dataset:
    """Cut the rows asked for, flatten and standardise inputs, encode targets."""
    classes = _classes(door, split.y, split.y_test)  # before the cut: a class may be absent from the first rows
    x, y = _first(door, "num_train", num_train, split.x, split.y)
    x_test, y_test = _first(door, "num_test", num_test, split.x_test, split.y_test)
    # Pixels share one unit, so they share one mean and scale; a table's columns each have their own.
    axes = None if x.ndim > 2 or x.dtype == np.uint8 else 0
    x, x_test = (part.reshape(len(part), -1).astype(float) for part in (x, x_test))
    mean, std = x.mean(axis=axes), x.std(axis=axes)
    std = np.where(std > 0, std, 1.0)  # a constant column carries nothing: centred only
    x, x_test = (x - mean) / std, (x_test - mean) / std
    if classes is None:
        y, y_test = (part.reshape(len(part), -1).astype(float) for part in (y, y_test))
        return Dataset(x, y, x_test, y_test, name)
    labels, labels_test = (np.searchsorted(classes, part.ravel()) for part in (y, y_test))
    one_hot = np.eye(len(classes)) - 1 / len(classes)
    return Dataset(x, one_hot[labels], x_test, one_hot[labels_test], name, labels, labels_test)


def _first(door: str, name: str, count: int | None, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if count is None:
        return x, y
    check_count(door, name, count)
    if count > len(x):
        raise ValueError(f"`{door}`: {name} must be at most the {len(x)} rows there are; got {count}; ask for fewer")
    return x[:count], y[:count]


def _classes(door: str, y: np.ndarray, y_test: np.ndarray) -> np.ndarray | None:
    """Distinct classes in order, or None where targets are real."""
    if not all(part.dtype.kind in "iub" and part.size == len(part) for part in (y, y_test)):
        return None
    classes = np.unique(np.concatenate([y.ravel(), y_test.ravel()]))
    if len(classes) < 2:
        raise ValueError(
            f"`{door}`: whole-number targets are classes and must have at least 2 distinct values; got only "
            f"{classes[0]}; store y as float if it is a real target"
        )
    return classes


def _hold_out(door: str, x: np.ndarray, y: np.ndarray) -> _Split:
    """Shuffle the rows and hold out a fifth of them, at least one, the same ones every time."""
    if len(x) < 2:
        raise ValueError(
            f"`{door}`: data without a test split must have at least 2 rows, to hold one out; got {len(x)}"
        )
    order = np.random.default_rng(0).permutation(len(x))
    num_test = max(1, round(TEST_FRACTION * len(x)))
    test, train = order[:num_test], order[num_test:]
    return _Split(x[train], y[train], x[test], y[test])


def _existing(door: str, path: Path) -> Path:
    if not path.is_file():
        came = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"`{door}`: path must name a file; got {str(path)!r}, {came}; check the path")
    return path


def _read_npz(door: str, path: Path) -> _Split:
    try:
        with np.load(_existing(door, path), allow_pickle=False) as archive:
            known = [key for key in archive.files if re.fullmatch("[xy](_train|_test)?", key)]
            arrays = {key: archive[key] for key in known}
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`{door}`: {path} must be a NumPy archive of numeric arrays; it cannot be read as one; "
            "write it with np.savez(path, x=x, y=y)"
        ) from error
    train = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    test = ("x_test", "y_test")
    split_stored = any(key in arrays for key in test) or "x_train" in arrays
    wanted = train + test if split_stored else train
    if missing := [key for key in wanted if key not in arrays]:
        raise ValueError(
            f"`{door}`: {path} must hold x and y, or x_train, y_train, x_test and y_test; "
            f"{', '.join(missing)} not found among {', '.join(sorted(arrays)) or 'its arrays'}; add what is missing"
        )
    arrays = {key: arrays[key][:, None] if key[0] == "x" and arrays[key].ndim == 1 else arrays[key] for key in wanted}
    row_shape = arrays[train[0]].shape[1:] or ("d",)
    num_outputs = arrays[train[1]].shape[1:2]
    for x_key, y_key in (train, test) if split_stored else (train,):
        check_array(door, x_key, arrays[x_key], ("n", *row_shape), hint=f"the row shape of {train[0]}")
        num_rows = len(arrays[x_key])
        check_array(door, y_key, arrays[y_key], (num_rows, *num_outputs), hint=f"n={num_rows} from {x_key}")
    if split_stored:
        return _Split(*(arrays[key] for key in wanted))
    return _hold_out(door, arrays["x"], arrays["y"])


def _read_csv(door: str, path: Path) -> _Split:
    try:
        with open(_existing(door, path), newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"`{door}`: {path} must be comma-separated text in UTF-8; it cannot be read as that; export it again"
        ) from error
    if rows and not any(map(_is_number, rows[0][1])):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"`{door}`: {path} must have at least 2 rows of numbers; got none")
    num_columns = len(rows[0][1])
    if num_columns < 2:
        raise ValueError(
            f"`{door}`: {path} must have at least 2 columns, inputs then target; got 1; separate columns by commas"
        )
    for line, row in rows:
        if len(row) != num_columns:
            raise ValueError(
                f"`{door}`: every row must have {num_columns} columns as row {rows[0][0]} has; got {len(row)} in row "
                f"{line}; fill or remove it"
            )
        for column, cell in enumerate(row, start=1):
            if not _is_number(cell):
                raise ValueError(
                    f"`{door}`: column {column} must be numeric; got {cell!r} in row {line}; remove or encode it"
                )
            if not np.isfinite(float(cell)):
                raise ValueError(
                    f"`{door}`: column {column} must be finite; got {cell!r} in row {line}; drop or impute that row"
                )
    table = np.array([[float(cell) for cell in row] for _, row in rows])
    written = [row[-1] for _, row in rows]
    target = table[:, -1]
    distinct = np.unique(target)
    whole = all(re.fullmatch(r"\d+", cell) for cell in written)
    if whole and len(distinct) > 1 and np.array_equal(distinct, np.arange(len(distinct))):
        target = target.astype(int)
    return _hold_out(door, table[:, :-1], target)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
