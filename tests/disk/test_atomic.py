"""Files that are written whole or not at all, through links too."""

import os

import pytest

from disk.atomic import remove_leftovers, writing


def write(path, text):
    with writing(path, "w") as file:
        file.write(text)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("n_links", [1, 2])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(is_there, n_links, absolute, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target"
    if is_there:
        target.write_text("old")
    links = [tmp_path / f"link{i}" for i in range(n_links)]
    for link, leads_to in zip(links, [target, *links], strict=False):
        link.symlink_to(leads_to if absolute else os.path.relpath(leads_to, tmp_path))
    write(links[-1], "new")
    assert all(link.is_symlink() for link in links) and target.read_text() == links[-1].read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", *(link.name for link in links)]
    assert os.listdir(target.parent) == ["target"]


def test_what_fails_leaves_the_link_and_what_it_leads_to(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "link", "w") as file:
        file.write("new")
        raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path)) == ["link", "target"] and (tmp_path / "link").read_text() == "old"


@pytest.mark.parametrize("leads_to", ["link", "other", "missing/target"])
def test_a_link_that_leads_nowhere_is_an_error(leads_to, tmp_path):
    (tmp_path / "link").symlink_to(leads_to)
    (tmp_path / "other").symlink_to("link")
    with pytest.raises(OSError):
        write(tmp_path / "link", "new")
    assert sorted(os.listdir(tmp_path)) == ["link", "other"] and (tmp_path / "link").is_symlink()


def test_leftovers_are_beside_what_a_link_leads_to(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/target")
    (tmp_path / "elsewhere" / ".target.12345678.tmp").touch()
    remove_leftovers(tmp_path / "link")
    assert os.listdir(tmp_path / "elsewhere") == []
