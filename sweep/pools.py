"""Where jobs are performed: by threads here, each waiting for a process, or by the tasks of a Ray cluster."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from errors import UserError
from run.settings import n_usable_cores
from sweep.work import GRACE, POLL, ROOT, perform

MOST_SHOWN = 16  # runs of a cluster that have a line on the terminal


class Places:
    """The cores and cards of this machine, which runs take and give back, first come, first served.

    cores   None: any number
    cards   numbers or names of GPUs as CUDA_VISIBLE_DEVICES has them
    """

    def __init__(self, cores, cards):
        self.cores, self.cards = cores, list(cards)
        self._free_cores, self._free_cards = cores, list(cards)
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def taken(self, job, stop):
        """Holds a core for each of the job's threads (all cores, where it has more) and a card if it needs one.

        Gives the environment variables that tell it which; None where `stop` was set first.
        """
        n = min(job.threads, self.cores) if self.cores else 0
        use_card, card = job.gpu and self.cards, None
        with self._turn, self._changed:  # one waits at a time: small jobs do not overtake a large one for ever
            while not stop.is_set() and (n and self._free_cores < n or use_card and not self._free_cards):
                self._changed.wait(POLL)
            stopped = stop.is_set()
            if not stopped:
                self._free_cores = self._free_cores and self._free_cores - n
                card = self._free_cards.pop(0) if use_card else None
        if stopped:
            yield None
            return
        try:
            yield {} if card is None else {"CUDA_VISIBLE_DEVICES": card}
        finally:
            with self._changed:
                if n:
                    self._free_cores += n
                if card is not None:
                    self._free_cards.append(card)
                self._changed.notify()


def cards():
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    n = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:n] if named else [str(i) for i in range(n)]


class LocalPool:
    """width   runs side by side at most

    jobs   how many, whatever they need; None: as many as have a core for each of their threads. A run on a GPU has a
           card to itself either way.
    """

    def __init__(self, jobs=None):
        self.width = jobs or n_usable_cores()
        self._places = Places(None if jobs else self.width, cards())
        self._stop, self._executor = threading.Event(), ThreadPoolExecutor(self.width)

    def __str__(self):
        return f"{self.width} side by side" if not self._places.cores else f"on {self.width} cores"

    def submit(self, job, site, wait):
        """A concurrent.futures.Future of the job's Outcome."""
        place = self._places.taken(job, self._stop)
        return self._executor.submit(perform, job, site, wait, self._stop, place)

    def close(self):
        """Ends what still runs, with a checkpoint; returns when all is still."""
        self._stop.set()
        self._executor.shutdown(cancel_futures=True)


class RayPool:
    """address   of the cluster; "auto": the one that this machine belongs to

    The cluster's machines see this folder, the data and the results under the same paths. Ray runs a task again whose
    machine or worker died; the job's lock keeps a second one from starting while the first still ends.
    """

    def __init__(self, address):
        try:
            import ray
        except ImportError as error:
            raise UserError("--ray needs a package: pip install -r requirements-cluster.txt") from error
        self.width = MOST_SHOWN
        self._ray, self._references = ray, []
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))}}
        try:
            ray.init(address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--ray {address}: no cluster answers ({error}); start one: ray start --head") from error

    def __str__(self):
        return f"on Ray with {self._ray.cluster_resources().get('CPU', 0):.0f} cores"

    def submit(self, job, site, wait):
        """A concurrent.futures.Future of the job's Outcome."""
        needs = {"num_cpus": job.threads, "num_gpus": int(job.gpu)}
        task = self._ray.remote(max_retries=site.tries - 1, **needs)(perform)
        reference = task.remote(job, site, wait)
        self._references.append(reference)
        return reference.future()

    def close(self):
        """Ends what still runs, with a checkpoint; returns when all is still."""
        references, self._references = self._references, []
        for reference in references:
            self._ray.cancel(reference)
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=GRACE)
        self._ray.shutdown()
