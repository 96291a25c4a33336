"""The one table of everything: its cells and stars against numpy and scipy."""

import statistics

import pytest
import result_factory as factory
from scipy import stats

from report import __main__ as command_line
from report import read

WHO = [("online", 0, 3), ("ewc", 10, 3), ("gem", 200, 3), ("eralg4", 200, 4), ("meralg1", 200, 4), ("meralg1", 500, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for model, memory, n_seeds in WHO:
        for data in ("mnist_rotations.pt", "mnist_permutations.pt")[: 1 + (model != "gem")]:
            for seed in range(n_seeds):
                saved = factory.result(model, n_tasks=4, examples=300, seed=seed, memory=memory, data_file=data)
                factory.write_json(folder, saved)
    return folder


def table_of(folder, capsys, *words):
    assert command_line.main(["table", str(folder), *words]) == 0
    caption, empty, *table = capsys.readouterr().out.splitlines()
    assert (
        f"over {'3' if 'gem' in words else '3 to 4'} seeds." in caption
        and ("differs from eralg4's" in caption) == ("--than" in words)
        and not empty
    )
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert all(set(cell) == {"-"} for cell in lines[1])
    return lines[0], {tuple(line[:2]): line[2:] for line in lines[2:]}


def values(folder, metric):
    """{(data, model, memory): {seed: value}}"""
    found = {}
    for run in read.read_results(folder)[0]:
        found.setdefault((run.data_file, run.model, run.memory), {})[run.seed] = 100 * getattr(run, metric)
    return found


def test_cells(folder, capsys):
    columns, rows = table_of(folder, capsys)
    assert columns == ["learner", "memories", "rotations", "permutations"] or columns[2:] == [
        "permutations",
        "rotations",
    ]
    assert list(rows)[:2] == [("online", "–"), ("ewc", "–")]  # the paper's order, largest memory first
    assert list(rows)[2:] == [("meralg1", "500"), ("gem", "200"), ("eralg4", "200"), ("meralg1", "200")]
    retained, interference = values(folder, "RA"), values(folder, "BTI")
    n_cells = 0
    for data, model, memory in retained:
        cell = rows[model, str(memory or "–")][columns.index(data[6:-3]) - 2]
        both = [list(found[data, model, memory].values()) for found in (retained, interference)]
        assert cell == " / ".join(f"{statistics.mean(it):.2f} ± {statistics.stdev(it):.2f}" for it in both)
        n_cells += 1
    assert n_cells == sum(cell != "" for row in rows.values() for cell in row) == 11


def test_stars(folder, capsys):
    columns, rows = table_of(folder, capsys, "--than", "eralg4")
    retained = values(folder, "RA")
    for data in ("mnist_rotations.pt", "mnist_permutations.pt"):
        here = {key[1:]: by_seed for key, by_seed in retained.items() if key[0] == data}
        table = [key for key in here if key[1] in (None, 200)]
        pairs = [(a, b) for i, a in enumerate(table) for b in table[i + 1 :] if a[1] or b[1]]
        p = [stats.ttest_rel([here[a][s] for s in range(3)], [here[b][s] for s in range(3)]).pvalue for a, b in pairs]
        if ("eralg4", 200) in here and ("meralg1", 200) in here:  # these have a fourth seed in common
            place = pairs.index((("eralg4", 200), ("meralg1", 200)))
            p[place] = stats.ttest_rel(*(list(here[who].values()) for who in pairs[place])).pvalue
        different = {}
        largest = 0
        for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            largest = max(largest, p[place] * (len(p) - rank))
            different[pairs[place]] = largest < 0.05
        for who in table:
            expected = any(different.get(pair) for pair in ((who, ("eralg4", 200)), (("eralg4", 200), who)))
            cell = rows[who[0], str(who[1] or "–")][columns.index(data[6:-3]) - 2]
            assert ("*" in cell) == expected, (who, data)
        assert "*" not in rows["meralg1", "500"][0]  # there is no eralg4 of that size


def test_filters(folder, capsys):
    _, rows = table_of(folder, capsys, "--learner", "online,meralg1", "--memories", "200", "--data", "rotations")
    assert list(rows) == [("online", "–"), ("meralg1", "200")] and all(len(row) == 1 for row in rows.values())
    _, rows = table_of(folder, capsys, "--learner", "gem", "--learner", "ewc", "--data", "mnist_rotations.pt")
    assert list(rows) == [("ewc", "–"), ("gem", "200")]
    for wrong in (["--learner", "gem,nobody"], ["--memories", "300"], ["--data", "cifar"]):
        assert command_line.main(["table", str(folder), *wrong]) == 2
        assert f"{wrong[0]} {wrong[1].split(',')[-1]}: no run has it; choose from" in capsys.readouterr().err


def test_bad_input(folder, tmp_path, capsys):
    assert command_line.main(["table", str(folder), "--than", "nobody"]) == 2
    assert "choose from online" in capsys.readouterr().err
    assert command_line.main(["table", str(tmp_path)]) == 2
    assert "holds no finished runs" in capsys.readouterr().err
