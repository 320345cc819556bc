"""Tasks in worker processes of which any may be killed without the others' results being lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from runtime.errors import UserError


class Lost(NamedTuple):
    """The result of a task whose process ended twice before it did; `reason` says how."""

    reason: str


def run_in_workers(
    work: Callable[..., Any],
    tasks: Sequence[tuple],
    workers: int,
    preload: Sequence[str] = (),
) -> Iterator[tuple[tuple, Any]]:
    """Yield each task and `work(*task)`, in the order in which they end.

    A process that ends on its own (killed for want of memory, crashed in a library) is replaced;
    its task is done once more after all others, with no process beside it. Processes end when this
    one does, however it ends.

    Args:
        work: a function of a module.
        tasks: its arguments, each a tuple of plain values.
        workers: processes, 1 or more.
        preload: modules that new processes have loaded already.

    Raises:
        UserError: as raised by `work`; the tasks then running are given up.
    """
    # Not fork: the libraries have threads by now, which do not survive it.
    server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if server else "spawn")
    if server:
        context.set_forkserver_preload(list(preload))
    lost: list[tuple] = []
    for task, result in _crew(context, work, deque(tasks), workers):
        if isinstance(result, Lost):
            lost.append(task)
        else:
            yield task, result
    yield from _crew(context, work, deque(lost), 1)


def _crew(
    context: Any, work: Callable[..., Any], tasks: deque[tuple], workers: int
) -> Iterator[tuple[tuple, Any]]:
    """Yield each task and its result, a Lost where the process ended."""
    crew: dict[Connection, tuple[BaseProcess, tuple]] = {}
    try:
        while tasks or crew:
            while tasks and len(crew) < workers:
                connection, process = _start(context, work)
                crew[connection] = (process, tasks.popleft())
                connection.send(crew[connection][1])
            for connection in wait(list(crew)):
                process, task = crew[connection]
                try:
                    error, result = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    connection.close()
                    del crew[connection]
                    yield task, Lost(_end_of(process.exitcode))
                    continue
                if error:
                    raise UserError(result)
                if tasks:
                    crew[connection] = (process, tasks.popleft())
                    connection.send(crew[connection][1])
                else:
                    connection.close()
                    process.join()
                    del crew[connection]
                yield task, result
    finally:
        for connection, (process, _) in crew.items():
            process.terminate()
            process.join()
            connection.close()


def _start(context: Any, work: Callable[..., Any]) -> tuple[Connection, BaseProcess]:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, work), daemon=True)
    process.start()
    there.close()
    return here, process


def _serve(connection: Connection, work: Callable[..., Any]) -> None:
    """Answer tasks until the other end closes."""
    # Control-C reaches all processes of a terminal; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = (False, work(*task))
        except UserError as error:
            answer = (True, str(error))
        connection.send(answer)


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _end_of(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory? fewer --workers may help" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}"
