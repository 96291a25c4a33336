"""Where jobs are performed: by threads here, each waiting for a process, or by the tasks of a Ray cluster."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from errors import UserError
from sweep.work import GRACE, ROOT, perform

MOST_SHOWN = 16  # runs of a cluster that have a line on the terminal


class LocalPool:
    """jobs, width   runs side by side"""

    def __init__(self, jobs):
        self.width = jobs
        self._stop, self._executor = threading.Event(), ThreadPoolExecutor(jobs)

    def __str__(self):
        return f"{self.width} side by side"

    def submit(self, job, site, wait):
        """A concurrent.futures.Future of the job's Outcome."""
        return self._executor.submit(perform, job, site, wait, self._stop)

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
