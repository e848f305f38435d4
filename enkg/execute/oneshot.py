"""Programs that start anew for every member.

Each call has a run directory of its own: the files of the manifest and the input are put there, the
program runs in it, the answer is read, and it is deleted. A call succeeds only if the program ends
with status 0, wrote no error file, and left an output that is complete and of the right shape.
"""

import contextlib
import dataclasses
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from threading import Lock

from numpy import ndarray

from enkg.errors import InputError
from enkg.execute import exchange, launcher, template, verdict
from enkg.execute.environment import environment
from enkg.execute.files import FULL, free, no_room, one_line, open_below, read_all
from enkg.execute.manifest import SUFFIX, Manifest, OneShot, Port
from enkg.execute.process import Process, Wake
from enkg.execute.scratch import Scratch, keep, remove
from enkg.execute.slots import Job
from enkg.failure import Cause, Failure, MemberFailed

FULL_TEXTS = ("No space left on device", "Disk quota exceeded")
"""What programs print when there is no room for their files."""
_BY_FULL_DISK = {
    Cause.EXIT,
    Cause.SIGNAL,
    Cause.REPORTED,
    Cause.MISSING,
    Cause.TRUNCATED,
    Cause.MALFORMED,
}
"""What a full disk may look like."""
PAGE = 4096
"""A disk with fewer bytes free is full."""
_ABOUT_OUTPUT = {Cause.MISSING, Cause.TRUNCATED, Cause.MALFORMED, Cause.SHAPE}


def check(manifest: Manifest) -> None:
    """Raises InputError for files that are missing, in each other's way or outside the folder."""
    m, one = manifest, _table(manifest)
    own, brought = _file(m.input, "input"), (*one.templates, *one.copy, *one.link)
    output = _file(m.output, "output")
    for key, names in (
        ("input.file", (own,)),
        ("output.file", (output,)),
        ("oneshot.templates", one.templates),
        ("oneshot.copy", one.copy),
        ("oneshot.link", one.link),
        ("oneshot.stdin", (one.stdin,) if one.stdin else ()),
        ("oneshot.error_file", (one.error_file,) if one.error_file else ()),
    ):
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                raise InputError(
                    f"`{key}` is {name!r}; expected a path inside the folder, without .."
                )
    for name in brought:
        if not (m.folder / name).exists():
            raise InputError(f"there is no file {m.folder / name}, which `oneshot` names")
    for name in one.templates:
        if not (m.folder / name).is_file():
            raise InputError(f"the template {m.folder / name} is no file")
        template.check(template.load(m.folder / name), name, numbers=m.input.count)
    _distinct(own, output, one)


def _distinct(own: str, output: str, one: OneShot) -> None:
    """No file may take another's place, or lie where it would be written through a link."""
    brought = [PurePosixPath(name) for name in (*one.templates, *one.copy, *one.link)]
    made = [PurePosixPath(name) for name in (output, one.error_file) if name]
    places = [PurePosixPath(own), *brought, *made]
    for path in places:
        if places.count(path) > 1:
            raise InputError(f"two files of the run directory have the name {str(path)!r}")
        for parent in path.parents:
            if parent in (PurePosixPath(name) for name in (own, *one.templates, *one.link)):
                raise InputError(
                    f"{str(path)!r} would lie in {str(parent)!r}, which is a file or a link"
                )
    if one.stdin:
        stdin = PurePosixPath(one.stdin)
        if not {stdin, *stdin.parents} & {PurePosixPath(own), *brought}:
            raise InputError(
                f"`oneshot.stdin` is {one.stdin!r}; expected the input file or a file under "
                f"`templates`, `copy` or `link`"
            )


def _table(manifest: Manifest) -> OneShot:
    if manifest.oneshot is None:
        raise InputError(f"{manifest.name} has no table [oneshot]")
    return manifest.oneshot


def _file(port: Port, name: str) -> str:
    return port.file or name + SUFFIX[port.format]


class OneShotDriver:
    """One slot for a one-shot program; see `Driver`.

    folder: where run directories are kept, within the limits in `enkg.execute.scratch`; None keeps
    none. scratch: where they are made; see `Scratch`. All ranks of an MPI program must see it.
    nodes: where srun starts the program; see `launcher.prefix`.

    Raises InputError if the manifest does not pass `check`, or nothing can be made in scratch.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path | None,
        scratch: Path | None = None,
        nodes: Sequence[str] = (),
    ) -> None:
        check(manifest)
        self.manifest, self.folder, self.table = manifest, folder, _table(manifest)
        self.templates = {
            name: template.load(manifest.folder / name) for name in self.table.templates
        }
        texts = (*self.templates.values(), *self.table.command, *manifest.environment.set.values())
        words = set().union(*(template.placeholders(text) for text in texts))
        self.numbers = [n for word in words if (n := template.number_of(word)) is not None]
        self.prefix = launcher.prefix(manifest.mpi, manifest.threads, nodes)
        self.scratch = Scratch(scratch, self._needed())
        self._lock = Lock()
        self._process: Process | None = None
        self._calling = False
        self._cut = False

    def call(self, x: ndarray, job: Job, timeout: float | None) -> ndarray:
        """x: (1, *X) to (1, *Y), from one start of the program.

        timeout: None takes that of the manifest. Raises MemberFailed, with the folder where the
        files are kept, if they are.
        """
        if len(x) != 1:
            raise ValueError(f"{len(x)} rows; a one-shot program takes one member a call")
        limit = self.manifest.timeout if timeout is None else timeout
        run = self.scratch.path / str(job)
        y, failure, notes = None, None, {}
        with self._lock:
            self._calling, self._cut = True, False
        try:
            try:
                y = self._answer(run, x[0], job, limit, notes)
            except MemberFailed as error:
                failure = error.failure
            except OSError as error:
                failure = _unprepared(error, run)
            if failure is not None:
                failure = self._explained(failure, run, notes)
            kept = self._kept(run, failure, notes)
        finally:
            remove(run)
            with self._lock:
                self._calling, self._process = False, None
        if failure is not None:
            raise MemberFailed(failure.cause, failure.detail, kept)
        assert y is not None
        return y[None]

    def interrupt(self) -> None:
        """See `Driver`."""
        with self._lock:
            self._cut = self._calling
            if self._process is not None:
                self._process.interrupt()

    def close(self) -> None:
        """See `Driver`. Deletes all run directories that are not kept."""
        with self._lock:
            process = self._process
        if process is not None:
            process.kill()
        self.scratch.close()

    def _answer(
        self, run: Path, x: ndarray, job: Job, limit: float, notes: dict[str, str]
    ) -> ndarray:
        """One run of the program. Raises MemberFailed or OSError; notes: what to keep with it."""
        m, values = self.manifest, self._values(run, job)
        values |= {f"x{n}": repr(float(x.flat[n])) for n in self.numbers}
        self._prepare(run, x, values)
        with self._lock:
            if self._cut:
                raise MemberFailed(Cause.CUT, "ended on request")
        argv = [*self.prefix, *(template.fill(a, values) for a in self.table.command)]
        notes["command.txt"] = shlex.join(argv) + "\n"
        process = Process(
            argv,
            cwd=run,
            env=self._environment(values),
            stdin=run / self.table.stdin if self.table.stdin else None,
            memory=m.memory,
            grace=m.grace,
        )
        with process:  # ends it, whatever happens here
            with self._lock:
                self._process = process
                if self._cut:
                    process.interrupt()
            wake = process.wait(limit)
        notes["stdout.txt"], notes["stderr.txt"] = process.stdout, process.stderr
        if wake is Wake.INTERRUPT:
            raise MemberFailed(Cause.CUT, "ended on request")
        if wake is Wake.TIMEOUT:
            raise MemberFailed(Cause.TIMEOUT, f"ran longer than {limit:g} s")
        self._succeeded(process, run)
        output = run / _file(m.output, "output")
        return exchange.read(output, m.output, run)

    def _succeeded(self, process: Process, run: Path) -> None:
        """Raises MemberFailed for a bad status or an error file."""
        failure, reported = process.failure(), None
        if self.table.error_file:
            reported = _first_line(run / self.table.error_file, run)
        if failure is not None:
            status, detail = failure.detail.partition(": ")[0], failure.detail
            raise MemberFailed(failure.cause, f"{status}: {reported}" if reported else detail)
        if reported is not None:
            raise MemberFailed(Cause.REPORTED, reported)

    def _values(self, run: Path, job: Job) -> dict[str, object]:
        """Of the placeholders."""
        m = self.manifest
        return {
            "input": run / _file(m.input, "input"),
            "output": run / _file(m.output, "output"),
            "folder": m.folder,
            "run": run,
            "member": job.member,
            "batch": job.batch,
            "attempt": job.attempt,
            "threads": m.threads,
            "ranks": m.mpi.ranks,
        }

    def _environment(self, values: Mapping[str, object]) -> dict[str, str]:
        settings = self.manifest.environment
        filled = {k: template.fill(v, values) for k, v in settings.set.items()}
        names = ("member", "batch", "attempt", "run", "folder", "ranks")
        extra = {f"ENKG_{name.upper()}": str(values[name]) for name in names}
        settings = dataclasses.replace(settings, set=filled)
        return environment(settings, extra, self.manifest.threads)

    def _prepare(self, run: Path, x: ndarray, values: Mapping[str, object]) -> None:
        """Makes the run directory, with everything that the program finds in it."""
        one, m = self.table, self.manifest
        if run.exists():
            remove(run)
        run.mkdir(mode=0o700)
        own, output = _file(m.input, "input"), _file(m.output, "output")
        for name in (*one.templates, *one.copy, *one.link, own, output, one.error_file):
            if "/" in name:
                (run / name).parent.mkdir(parents=True, exist_ok=True)
        for name in one.copy:
            source = m.folder / name
            if source.is_dir():
                shutil.copytree(source, run / name, dirs_exist_ok=True)
            else:
                shutil.copy(source, run / name)
        for name in one.link:
            (run / name).symlink_to(m.folder / name)
        for name, text in self.templates.items():
            template.save(run / name, template.fill(text, values))
            shutil.copymode(m.folder / name, run / name)
        part = (run / own).with_name(f".{Path(own).name}.part")
        exchange.write(part, x, m.input)
        part.rename(run / own)  # never there by half

    def _explained(self, failure: Failure, run: Path, notes: Mapping[str, str]) -> Failure:
        """A full disk has many faces; and a missing output says less than the program does."""
        said = notes.get("stderr.txt", "")
        if failure.cause in _BY_FULL_DISK:
            full = [line for line in said.splitlines() if any(text in line for text in FULL_TEXTS)]
            needed = self.manifest.output.count * self.manifest.output.numpy.itemsize
            if full:
                detail = f"{no_room(run)}; the program says: {one_line(full[0])}"
                return Failure(Cause.DISK, detail)
            with contextlib.suppress(OSError):
                if free(run) < min(needed, PAGE):
                    return Failure(Cause.DISK, f"{no_room(run)}; {failure}")
        last = verdict.last_line(said)
        if failure.cause in _ABOUT_OUTPUT and last:
            return Failure(failure.cause, f"{failure.detail}; the program said last: {last}")
        return failure

    def _kept(self, run: Path, failure: Failure | None, notes: dict[str, str]) -> Path | None:
        wanted = self.table.keep == "all" or (self.table.keep == "failed" and failure is not None)
        cut = failure is not None and failure.cause is Cause.CUT
        if self.folder is None or not wanted or cut or not run.is_dir():
            return None
        if failure is not None:
            notes = {**notes, "failure.txt": f"{failure}\n"}
        return keep(run, self.folder, notes, failed=failure is not None)

    def _needed(self) -> int:
        """Bytes of one run directory, as far as they are known."""
        m, one = self.manifest, self.table
        size = 8 * (m.input.count + m.output.count)
        for name in (*one.templates, *one.copy):
            path = m.folder / name
            inner = path.rglob("*") if path.is_dir() else (path,)
            size += sum(p.stat().st_size for p in inner if p.is_file())
        return size


def _unprepared(error: OSError, run: Path) -> Failure:
    """What went wrong on our side, before the program began."""
    path = Path(os.fsdecode(error.filename)) if error.filename else run
    if error.errno in FULL or any(text in str(error) for text in FULL_TEXTS):
        return Failure(Cause.DISK, no_room(path))
    return Failure(Cause.LAUNCH, f"cannot prepare {path}: {error.strerror or one_line(error)}")


def _first_line(path: Path, run: Path) -> str | None:
    """The first line of a file, None if there is no file."""
    if not os.path.lexists(path):
        return None
    try:
        with open_below(path, run) as file:
            text = read_all(file, 4096).decode("utf-8", "replace")
    except MemberFailed as error:
        return error.failure.detail
    lines = text.split("\n", 1)
    return one_line(lines[0]) or f"{path.name} is there"
