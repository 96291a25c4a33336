"""Omniglot: the shipped drawings, the authors' archives from a server of ours and from strangers, runs of it."""

import hashlib
import io
import json
import os
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from data_helpers import Site, serving
from PIL import Image

import get_data
from errors import UserError
from tasks import archives, omniglot
from tasks.files import load_tasks

ALPHABETS = {"Balinese": 24, "Early_Aramaic": 22, "Greek": 24, "Korean": 40, "Latin": 26, "Japanese_(katakana)": 47}
ALPHABETS |= {"Sanskrit": 42, "Tagalog": 17}


def a_png(ink, size=105):
    """A white drawing with a black square of `ink` pixels a side in the corner, 1 bit a pixel as the authors'."""
    drawing = Image.new("1", (size, size), 1)
    drawing.paste(0, (0, 0, ink, ink))
    file = io.BytesIO()
    drawing.save(file, "PNG")
    return file.getvalue()


def an_archive(alphabets, drawers=range(1, 21), size=105):
    """The bytes of a zip like the authors': {name: characters}; drawer d's square has d pixels a side."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for alphabet, n in alphabets.items():
            archive.writestr(f"images_background/{alphabet}/", b"")
            for character in range(n, 0, -1):
                for drawer in drawers:
                    name = f"images_background/{alphabet}/character{character:02}/{100 + character:04}_{drawer:02}.png"
                    archive.writestr(name, a_png(drawer, size))
    return file.getvalue()


def test_the_shipped_drawings():
    tasks = load_tasks(None, "omniglot_small.pt")
    assert [task.descriptor for task in tasks.tasks] == list(ALPHABETS) and tasks.n_outputs == 242
    assert tasks.image_shape == (1, 28, 28) and tasks.n_inputs == 784
    start = 0
    for task, (a, b), n in zip(tasks.tasks, tasks.class_ranges, ALPHABETS.values(), strict=True):
        assert (a, b) == (start, start + n)
        assert np.array_equal(task.train.labels, np.repeat(np.arange(a, b), 15))
        assert np.array_equal(task.test.labels, np.repeat(np.arange(a, b), 5))
        images = np.concatenate([task.train.images, task.test.images])
        assert len(np.unique(images, axis=0)) == len(images), "no drawing is in both halves"
        assert (images.max(1) > 100).all() and (images.mean(1) < 100).all(), "ink on an empty ground"
        start += n
    assert "shipped Omniglot" in tasks.origin


def test_shipped_drawings_that_are_damaged(tmp_path):
    for name in ("drawings.npz", "SHA256SUMS"):
        (tmp_path / name).write_bytes((omniglot.FOLDER / name).read_bytes())
    path = tmp_path / "drawings.npz"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="drawings.npz is damaged .*restore data/omniglot"):
        omniglot.read_shipped(path)
    path.unlink()
    with pytest.raises(UserError, match="cannot read .*restore data/omniglot"):
        omniglot.read_shipped(path)


def test_a_drawing_becomes_small():
    """28x28 pixels, each the mean of the (first: 4 x 4) pixels with a centre in its part; ink is 255."""
    image = omniglot.small(a_png(15)).reshape(28, 28)
    assert (image[:4, :4] == 255).all() and image.sum() == 16 * 255
    image = omniglot.small(a_png(3)).reshape(28, 28)
    assert image[0, 0] == pytest.approx(255 * (3 / 4) ** 2, abs=1) and (image[1:] == 0).all()


@pytest.fixture
def fetch(tmp_path, capsys, monkeypatch):
    """fetch(first, second, *words): get_data.py omniglot with these archives, the second already in the folder."""
    monkeypatch.setattr(archives, "PAUSE_SECONDS", 0)
    monkeypatch.chdir(tmp_path)

    def run(first, second, *words):
        (tmp_path / "images_evaluation.zip").write_bytes(second)
        sums = [hashlib.md5(content).hexdigest() for content in (first, second)]
        known = [replace(a, md5=md5) for a, md5 in zip(get_data.OMNIGLOT, sums, strict=True)]
        monkeypatch.setattr(get_data, "OMNIGLOT", tuple(known))
        with serving(Site(first)) as url:
            code = get_data.main(["omniglot", "--data_path", str(tmp_path), "--url", url, *words])
        return code, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize("words,sizes", [((), (15, 5)), (("--train_drawings", "3", "--test_drawings", "2"), (3, 2))])
def test_fetching(words, sizes, fetch, tmp_path):
    code, said = fetch(an_archive({"B": 2, "A": 1}), an_archive({"C": 3}), *words)
    assert code == 0 and os.listdir(tmp_path) == ["omniglot.npz"], said
    tasks = load_tasks(tmp_path, "omniglot.pt")
    assert [task.descriptor for task in tasks.tasks] == ["A", "B", "C"]
    assert tasks.class_ranges == [(0, 1), (1, 3), (3, 6)] and tasks.image_shape == (1, 28, 28)
    n_train, n_test = sizes
    drawn = np.stack([omniglot.small(a_png(drawer)) for drawer in range(1, 21)])
    for task, (start, stop) in zip(tasks.tasks, tasks.class_ranges, strict=True):
        assert np.array_equal(task.train.images, np.tile(drawn[:n_train], (stop - start, 1)))
        assert np.array_equal(task.test.images, np.tile(drawn[n_train : n_train + n_test], (stop - start, 1)))


@pytest.mark.parametrize(
    "second,message",
    [
        (an_archive({"C": 1}, drawers=range(1, 20)), "a character of C has not 20 drawings"),
        (an_archive({"C": 1}, size=104), r"is damaged: a drawing has \(104, 104\) pixels, not 105x105"),
        (an_archive({}), "does not hold what Omniglot's archives do"),
        (an_archive({"C": 1})[:-300], "is damaged"),
        (b"no zip", "is damaged"),
    ],
)
def test_archives_from_strangers(second, message, fetch, tmp_path):
    code, said = fetch(an_archive({"A": 1}), second)
    assert code == 1 and re.search(message, said), said
    assert os.listdir(tmp_path) == ["images_evaluation.zip"], "what was fetched is gone, what was there is the user's"


def test_drawings_that_there_are_not(fetch, capsys):
    code, said = fetch(an_archive({"A": 1}), an_archive({"C": 1}), "--train_drawings", "16")
    assert code == 2 and "16 drawings to train and 5 to test" in said
    assert get_data.main(["omniglot", "--test_drawings", "6", "--url", "http://127.0.0.1:9"]) == 2, "before fetching"
    with pytest.raises(SystemExit):
        get_data.main(["rotations", "--train_drawings", "3"])
    assert "--train_drawings goes with omniglot" in capsys.readouterr().err


@pytest.mark.parametrize("network", ["cnn", "mlp"])
def test_a_run(network, run_main):
    words = ["--model", "meralg6", "--data_file", "omniglot_small.pt", "--samples_per_task", 3, "--memories", 5]
    words += ["--replay_batch_size", 1, "--threads", 1, "--log_every", 1000]
    words += ["--network", "cnn", "--cnn_filters", 2] if network == "cnn" else ["--n_hiddens", 5]
    found = run_main(*words)
    assert found.code == 0, found.err
    about = json.loads(found.files[".json"].read_text())
    assert about["args"]["network"] == network and about["data"]["n_tasks"] == 8
    assert ("--network cnn is made for images" in found.err) == (network == "mlp")
