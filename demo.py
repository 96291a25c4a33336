"""MER beside online SGD, EWC and ER on 20 rotations of MNIST: a table, and a picture of the forgetting."""

import argparse
import sys
import time
from pathlib import Path

import main as program
from disk.atomic import writing
from report import figures, read, tables

ROOT = Path(__file__).resolve().parent
COMMON = "--data_file mnist_rotations.pt --samples_per_task 1000 --log_every 100 --keep_state no"
RUNS = (
    "--model online --lr 0.0003",
    "--model ewc --lr 0.001 --n_memories 10 --memory_strength 100",
    "--model eralg4 --lr 0.1 --memories 5120 --replay_batch_size 25",
    "--model meralg1 --lr 0.03 --beta 0.03 --gamma 1 --memories 5120 --replay_batch_size 100 --batches_per_example 10",
)


def demo(seed):
    """Runs the learners, prints the table, writes the picture; returns the exit code."""
    folder = ROOT / "results" / "demo" / time.strftime("%Y-%m-%d_%H%M%S")
    for number, flags in enumerate(RUNS, 1):
        print(f"\n[{number}/{len(RUNS)}] python main.py {flags} {COMMON} --seed {seed}", flush=True)
        code = program.main([*flags.split(), *COMMON.split(), "--seed", str(seed), "--save_path", str(folder)])
        if code:
            return code
    runs, _ = read.read_results(folder)
    found, _ = tables.experiments(runs)
    print(f"\n{'learner':10} {'memories':>8} {'RA':>7} {'LA':>7} {'BTI':>7} {'seconds':>8}")
    for it in found:
        run = it.runs[0]
        print(f"{it.label:10} {it.memory or '-':>8} {run.RA:7.3f} {run.LA:7.3f} {run.BTI:+7.3f} {run.seconds:8.1f}")
    print(
        "RA: accuracy kept on all tasks at the end. LA: accuracy right after learning. BTI: what later tasks did to it."
    )
    drawing = figures.draw((figures.task_curves, None, found, figures.looks(found)))
    picture = folder / "forgetting.png"
    with writing(picture) as file:
        file.write(drawing.png)
    print(f"picture: {picture.relative_to(ROOT)}\n{drawing.title}. {drawing.caption}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(demo(parser.parse_args().seed))
