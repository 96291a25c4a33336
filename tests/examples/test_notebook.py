"""The notebook runs from its first cell to its last, as it is, and what it shows is what it showed."""

import json
import re
import sys
from importlib.util import find_spec

import matplotlib
import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def code_cells():
    """(source, tags, printed) of each code cell."""
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
            yield "".join(cell["source"]), cell["metadata"].get("tags", []), printed


@pytest.mark.filterwarnings("ignore:Matplotlib is building the font cache", "ignore:FigureCanvasAgg is non-interactive")
def test_the_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    matplotlib.use("Agg")
    names, n_executed = {"__name__": "__main__"}, 0
    monkeypatch.setattr(sys, "path", [*sys.path])
    for source, tags, printed in code_cells():
        if "pandas" in tags and not find_spec("pandas"):
            continue
        exec(compile(source, str(NOTEBOOK), "exec"), names)
        n_executed += 1
        found = capsys.readouterr().out
        assert without_numbers(found) == without_numbers(printed)
    assert n_executed == (7 if find_spec("pandas") else 5) and len(names["runs"]) == 6
    from matplotlib import pyplot

    left, right = pyplot.gcf().axes
    assert [len(axes.lines) for axes in (left, right)] == [6, 6]
    pyplot.close("all")
    retained = {name: [run.RA for run in names["runs"] if run.args["model"] == name] for name in names["learners"]}
    assert max(retained["online"]) < min(retained["eralg4"] + retained["meralg1"]), "what the notebook is to show"


def without_numbers(text):
    """Seconds and last digits depend on the machine."""
    return re.sub(r"[-+]?\d+\.\d+", "#", text)
