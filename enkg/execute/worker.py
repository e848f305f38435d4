"""Workers: programs that stay up and are handed one call after another.

A call costs some 50 to 150 microseconds instead of the start of a program. `enkg.execute.frames`
says how the two sides speak; ready-made loops for the program's side are in enkg/stubs.
"""

import dataclasses
import threading
import time

import numpy as np
from numpy import ndarray

from enkg.errors import InputError
from enkg.execute import launcher
from enkg.execute.channel import NOTHING, Channel, NoAnswerError
from enkg.execute.environment import environment
from enkg.execute.frames import BadFrameError, Frame, Kind, code, output_offset
from enkg.execute.manifest import Manifest
from enkg.execute.process import Process, Wake
from enkg.execute.slots import Job
from enkg.execute.template import fill
from enkg.execute.verdict import last_line
from enkg.failure import Cause, MemberFailed

FAREWELL = 2.0
"""Seconds that a program gets to end after BYE."""
LONGEST_DETAIL = 500
"""Characters of an error text that are kept."""


class ReportedError(MemberFailed):
    """The program says itself that it failed for this call, and goes on."""


class WorkerDriver:
    """Runs the `worker` program of a manifest. See `enkg.execute.slots.Driver`.

    The program starts at the first call, and again after it has ended, hung or broken the protocol.
    Numbers travel as float32 only if input and output both are. named: the program is reached
    by named pipes; None, only if it is behind a launcher.
    """

    def __init__(self, manifest: Manifest, named: bool | None = None) -> None:
        if manifest.worker is None:
            raise InputError(f"the manifest of {manifest.name} has no [worker]")
        self.manifest, self.worker, self.named = manifest, manifest.worker, named
        self._in, self._out = manifest.input, manifest.output
        self._dtype = np.result_type(self._in.numpy, self._out.numpy)
        self._code = code(self._dtype)
        self._n_in, self._n_out = self._in.count, self._out.count
        self._process: Process | None = None
        self._channel: Channel | None = None
        self._shared: ndarray | None = None  # bytes
        self.since: float | None = None
        """When the program was handed the call that it works on, by time.monotonic."""
        self._seq = 0
        self._lock = threading.Lock()  # held while these two, or the process, change
        self._calling = self._interrupted = False

    def call(self, x: ndarray, job: Job, timeout: float | None) -> ndarray:
        """x: (B, *X), B at most worker.batch, to (B, *Y). Raises MemberFailed.

        timeout: seconds from the moment when the ready program is handed the members; None takes
        the manifest's. Raises InputError for members of another shape.
        """
        if x.shape[1:] != self._in.shape or len(x) > self.worker.batch:
            raise InputError(
                f"{self.manifest.name} was handed members of shape {x.shape}; expected at most "
                f"{self.worker.batch} of shape {self._in.shape}"
            )
        if len(x) == 0:
            return np.empty((0, *self._out.shape), self._out.numpy)
        with self._lock:
            self._calling, self._interrupted = True, False
        in_step = False
        try:
            self._ready()
            y = self._ask(x, job, self.manifest.timeout if timeout is None else timeout)
            in_step = True
            return y
        except ReportedError:
            in_step = True
            raise
        finally:
            self.since = None
            with self._lock:
                self._calling = False
                keep = in_step and not self._interrupted
            if not keep:  # out of step, or dead, or about to be woken in the next call
                self._stop()

    def interrupt(self) -> None:
        """Called from another thread: ends the call now being made, which raises MemberFailed."""
        with self._lock:
            if self._calling:
                self._interrupted = True
                if self._process is not None:
                    self._process.interrupt()

    def close(self) -> None:
        """Asks the program to end, and kills it if it does not."""
        if self._channel is not None:
            self._channel.goodbye()
        if self._process is not None:
            self._process.wait(FAREWELL)
        self._stop()

    def _ready(self) -> None:
        """Starts the program unless it is there."""
        if self._channel is not None:
            if self._channel.quiet():
                return
            self._stop()  # it ended after its last answer, or sent more than that
        try:
            self._start(time.monotonic() + self.worker.startup)
        except NoAnswerError as error:
            raise MemberFailed(*self._not_ready(error.wake)) from None
        except BadFrameError as error:
            raise MemberFailed(Cause.PROTOCOL, f"at the start, {error}") from None

    def _start(self, deadline: float) -> None:
        m = self.manifest
        values = {"folder": m.folder, "threads": m.threads, "ranks": m.mpi.ranks}
        prefix = launcher.prefix(m.mpi, m.threads)
        argv = [*prefix, *(fill(argument, values) for argument in self.worker.command)]
        set_ = {name: fill(text, values) for name, text in m.environment.set.items()}
        size_in, size_out = (
            n * self.worker.batch * self._dtype.itemsize for n in (self._n_in, self._n_out)
        )
        shared = output_offset(size_in) + size_out if self.worker.memory == "shared" else 0
        named = bool(prefix) if self.named is None else self.named
        channel = self._channel = Channel(named, max(size_in, size_out), shared)
        own = {"ENKG_FOLDER": str(m.folder), "ENKG_RANKS": str(m.mpi.ranks)}
        process = Process(
            argv,
            cwd=m.folder,
            env=environment(
                dataclasses.replace(m.environment, set=set_), channel.variables | own, m.threads
            ),
            pass_fds=channel.pass_fds,
            memory=m.memory,
            grace=m.grace,
        )
        with self._lock:
            self._process = process
            if self._interrupted:
                process.interrupt()
        channel.connect(process, deadline)
        hello = Frame(
            Kind.HELLO,
            dtype=self._code,
            batch=self._n_in,
            n=self._n_out,
            member0=self.worker.batch,
            reserved=0 if channel.memory is None else shared,
        )
        channel.send(process, deadline, hello)
        ready, text = channel.receive(process, deadline, NOTHING, _check_ready)
        if ready.kind == Kind.ERROR:
            raise MemberFailed(Cause.REPORTED, _line(text))
        self._check_world(ready, argv[0])
        self._check_sizes(ready)
        channel.settle(shared=ready.reserved == 1)
        memory = channel.memory
        self._shared = None if memory is None else np.frombuffer(memory, np.uint8)

    def _ask(self, x: ndarray, job: Job, timeout: float) -> ndarray:
        """The answer. Raises ReportedError if there is none and yet all is in order."""
        process, channel = self._process, self._channel
        assert process is not None
        assert channel is not None
        deadline = time.monotonic() + timeout
        self._seq += 1
        rows, n_in, n_out = len(x), self._n_in, self._n_out
        want = Frame(Kind.RESULT, self._seq, self._code, 0, rows, n_out)
        shape = (rows, *(self._out.shape[::-1] if self._out.order == "F" else self._out.shape))
        given = _turned(x, self._in.order).astype(self._in.numpy, copy=False)
        if self._shared is None:
            y = np.empty(shape, self._dtype)
            given = np.ascontiguousarray(given, self._dtype)
            payload, into = given.data.cast("B"), y.data.cast("B")
        else:
            size = rows * n_in * self._dtype.itemsize
            at = output_offset(size)
            self._shared[:size].view(self._dtype).reshape(given.shape)[...] = given
            y = self._shared[at : at + rows * n_out * self._dtype.itemsize]
            y = y.view(self._dtype).reshape(shape)
            payload = into = NOTHING
        call = want._replace(kind=Kind.EVAL, n=n_in, nbytes=len(payload), member0=job.member)
        process.forget()
        self.since = time.monotonic()
        try:
            channel.send(process, deadline, call, payload)
            frame, text = channel.receive(process, deadline, into, lambda f: _check(f, want))
        except NoAnswerError as error:
            raise MemberFailed(*self._no_answer(error, timeout)) from None
        except BadFrameError as error:
            raise MemberFailed(Cause.PROTOCOL, str(error)) from None
        if frame.kind == Kind.ERROR:
            if frame.seq != self._seq:
                raise MemberFailed(Cause.PROTOCOL, f"an error of another call: {_line(text)}")
            raise ReportedError(Cause.EXCEPTION if frame.status else Cause.REPORTED, _line(text))
        if rows == 1 and np.isnan(y).all():
            self._failed(process)
        y = _turned(y, self._out.order)
        if self._shared is None:
            return np.ascontiguousarray(y, self._out.numpy)
        return np.array(y, self._out.numpy, order="C")  # the next call writes over the memory

    def _failed(self, process: Process) -> None:
        """Raises ReportedError if the program has written why."""
        behind_launcher = launcher.prefix(self.manifest.mpi, self.manifest.threads)
        process.wait(0.1 if behind_launcher else 0.0)  # which hands the words on when it likes
        if process.stderr.strip():
            words = _line(last_line(process.stderr))
            raise ReportedError(
                Cause.NONFINITE, f"all values are NaN; the program's last words: {words}"
            )

    def _stop(self) -> None:
        """Ends the program, and leaves nothing of it."""
        with self._lock:
            process, self._process = self._process, None
        try:
            if process is not None:
                process.kill()
        finally:
            self._shared = None
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def _check_world(self, ready: Frame, first: str) -> None:
        ranks = self.manifest.mpi.ranks
        if ranks in (1, ready.status):
            return
        if ready.status == 0:
            raise MemberFailed(
                Cause.WORLD,
                f"mpi.ranks is {ranks}, but the program knows of no MPI; let it serve on all "
                "ranks, with enkg_serve_mpi or its like",
            )
        launcher.check_world(ready.status, ranks, first)

    def _check_sizes(self, ready: Frame) -> None:
        have, want = (ready.batch, ready.n), (self._n_in, self._n_out)
        if have not in (want, (0, 0)):
            raise MemberFailed(
                Cause.SHAPE,
                f"the program takes {have[0]} numbers and answers {have[1]}; by simulator.toml it "
                f"should take {want[0]} and answer {want[1]}",
            )

    def _not_ready(self, wake: Wake) -> tuple[Cause, str]:
        if wake is Wake.INTERRUPT:
            return Cause.CUT, "interrupted"
        process = self._process
        assert process is not None
        if wake is Wake.EXIT:
            failure = process.failure()
            if failure is not None and failure.cause in (Cause.MEMORY, Cause.LAUNCH):
                return failure.cause, failure.detail
            how = failure or f"{Cause.EXIT}: 0: {last_line(process.stderr)}".rstrip(": ")
            return Cause.LAUNCH, f"the worker ended before it was ready ({how})"
        said = _said(process)
        return Cause.LAUNCH, f"the worker was not ready after {self.worker.startup:g} s{said}"

    def _no_answer(self, error: NoAnswerError, timeout: float) -> tuple[Cause, str]:
        if error.wake is Wake.INTERRUPT:
            return Cause.CUT, "interrupted"
        process = self._process
        assert process is not None
        if error.wake is Wake.TIMEOUT:
            return Cause.TIMEOUT, f"no answer within {timeout:g} s{_said(process)}"
        failure = process.failure()
        if failure is not None:
            return failure.cause, failure.detail
        if error.received:
            return Cause.TRUNCATED, f"the worker ended after {error.received} bytes of its answer"
        return Cause.EXIT, f"0, in the middle of a call{_said(process)}"


def _turned(a: ndarray, order: str) -> ndarray:
    """Members (B, ...) with their axes reversed, if the program stores arrays by columns."""
    return a.transpose(0, *range(a.ndim - 1, 0, -1)) if order == "F" and a.ndim > 2 else a


def _check_ready(frame: Frame) -> None:
    if frame.kind != Kind.READY or frame.seq != 0:
        raise BadFrameError(f"the worker sent {_name(frame)}; expected READY to call 0")


def _check(frame: Frame, want: Frame) -> None:
    if (frame.kind, frame.seq, frame.dtype) != (want.kind, want.seq, want.dtype):
        raise BadFrameError(
            f"the worker sent {_name(frame)} in dtype {frame.dtype}; expected {_name(want)} in "
            f"dtype {want.dtype}"
        )
    if (frame.batch, frame.n) != (want.batch, want.n):
        raise MemberFailed(
            Cause.SHAPE,
            f"the worker answered with {frame.batch} members of {frame.n} numbers; expected "
            f"{want.batch} of {want.n}",
        )


def _name(frame: Frame) -> str:
    known = frame.kind in list(Kind)
    return f"{Kind(frame.kind).name if known else f'kind {frame.kind}'} to call {frame.seq}"


def _said(process: Process) -> str:
    line = last_line(process.stderr)
    return f"; its last message: {line}" if line else ""


def _line(text: str) -> str:
    return " ".join(text.split())[:LONGEST_DETAIL] or "without a message"
