"""Work of a command on the workers of a Dask cluster. Knows no command and no arithmetic."""

import copy
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ..errors import CqError
from ..model import Transformer

Task = TypeVar("Task")
Result = TypeVar("Result")
_AHEAD = 2  # tasks under way for each thread of the cluster, which bounds the memory
_models: dict[str, Transformer] = {}  # in a worker: the model of the last run


def spread(
    address: str, model: Transformer, tasks: Iterable[Task], work: Callable[[Transformer, Task], Result]
) -> Iterator[tuple[Task, Result]]:
    """(task, work(model, task)) of each task in order, worked out on the cluster whose scheduler is at `address`. The
    model goes to each worker once; `work` must be importable there. Raises CqError where distributed is missing or no
    scheduler answers, and what `work` raises."""
    try:
        import distributed
    except ImportError:
        raise CqError("--dask needs the package distributed: pip install 'cquant[dask]'") from None
    try:
        connect: Any = distributed.Client
        client = connect(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CqError(f"--dask {address}: no scheduler answers there ({error})") from None
    with client:
        run, shared = uuid.uuid4().hex, client.scatter(model, broadcast=True)
        most = _AHEAD * max(1, sum(client.nthreads().values()))
        flying: deque[tuple[Task, Any]] = deque()
        for task in tasks:
            flying.append((task, client.submit(_run, run, shared, task, work, pure=False)))
            if len(flying) >= most:
                first, future = flying.popleft()
                yield first, future.result()
        for first, future in flying:
            yield first, future.result()


def _run(run: str, model: Transformer, task: Task, work: Callable[[Transformer, Task], Result]) -> Result:
    """In a worker."""
    if run not in _models:
        _models.clear()
        _models[run] = copy.deepcopy(model)  # Dask hands over views into its message, unaligned at times
    return work(_models[run], task)
