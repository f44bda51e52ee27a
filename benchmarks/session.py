"""One run of the benchmarks from start to end: servers, data, rounds, clearing up.

Contestants take turns (A B C, A B C, …). A round 0 through the counting door verifies what is read and stored; the rounds
after it are timed, without that door. Rows with a delay go through the door in any case, so their first round counts, verifies
and is timed. Whoever is wrong, dies or hangs is reported and left out of that workload, and the run goes on. Whatever happens,
no mount, server, process or file in memory is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contestants import Contestant, Fault, Mount, Place, fusermount3
from benchmarks.data import Dataset, File, MiB, upload
from benchmarks.plan import Plan, first_round, is_verified, takers, turn
from benchmarks.processes import CommandError, Meter, Usage, drop_caches, module_command, run_command
from benchmarks.proxy import Proxy
from benchmarks.results import REFERENCES, Run, Session
from benchmarks.stage import Stage
from benchmarks.workload import REGION, Outcome, Scene, Sizes, Workload
from sluicefs.devserver import DevServer
from sluicefs.store.s3 import S3Store

CEILING, SECOND, FLOOR = REFERENCES
_SECOND_SIZE = 512 * MiB  # bytes; the second server keeps them in memory, more than once
_DELAY = 30


@dataclass
class Options:
    """What was asked for. `minutes`: after which rounds are cut short, 0 for never; everyone gets one round at least.

    `brief`: files whose size says nothing are smaller. `limit`: seconds after which a series of small files or reads may stop.
    `references`: ceiling and floor too. `thorough`: the machine's caches are emptied before every round, and a second server is
    asked. Every run has a fresh mount with an empty cache folder anyway, and the server's data is in memory: what a drop makes
    cold are programs, of the first in a round, so that each round begins with another one.
    """

    workloads: list[Workload]
    contestants: list[Contestant]
    rounds: int = 5
    minutes: float = 14.0
    scale: float = 1.0
    brief: bool = False
    limit: float = 20.0
    references: bool = True
    thorough: bool = True
    folder: str | None = None


class Reporter:
    """Told of the progress; does nothing by itself."""

    def start(self, total: int) -> None: ...

    def step(self, text: str) -> None: ...

    def ended(self, run: Run) -> None: ...


@dataclass
class _Bucket:
    """A bucket, the folders of those who mounted it, and which of them have their own form of the data in it."""

    name: str
    dataset: Dataset | None
    states: dict[str, Path] = field(default_factory=dict)


class Bench:
    """Runs `options`; `session` holds what came of it, and is complete up to the last run at any time."""

    def __init__(self, options: Options, output: Path, reporter: Reporter | None = None) -> None:
        self._options = options
        self._output = output
        self._reporter = reporter or Reporter()
        self._sizes = Sizes(options.scale, options.brief)
        self._serial = 0
        self._buckets: dict[str, _Bucket] = {}
        self._setting_up = 0.0  # seconds spent on data, which nobody is charged for
        self._ministack: DevServer | None = None
        left_out = {one.name: f"{one.program} is not installed" for one in options.contestants if not one.is_installed}
        self._contestants = [one for one in options.contestants if one.name not in left_out]
        self.session = Session(
            machine.describe(),
            {name: getattr(options, name) for name in ("rounds", "minutes", "scale", "brief", "limit")},
            plain={one.name: one.plain for one in self._contestants},
            left_out=left_out,
            known={one.name: dict(one.known) for one in options.contestants if one.known},
            units={one.name: one.unit for one in options.workloads},
            titles={one.name: self._title(one) for one in options.workloads},
            targets={one.name: [asdict(target) for target in one.targets] for one in options.workloads},
        )

    def run(self) -> Session:
        """Everything. Raises OSError, DevServerError or ProxyError when the harness itself cannot work."""
        with contextlib.ExitStack() as stack:
            self._stack = stack
            stack.enter_context(_sigterm_raises())
            begin = time.monotonic()
            self._folder = Path(stack.enter_context(_work_folder(self._options.folder)))
            stack.enter_context(fusermount3(self._folder))
            self._stage = stack.enter_context(Stage())
            self._server = stack.enter_context(DevServer("seaweedfs", in_memory=True))
            self._proxy = stack.enter_context(Proxy(self._server.endpoint, self._folder, _DELAY))
            seconds = self._options.minutes * 60 - (time.monotonic() - begin) if self._options.minutes else float("inf")
            plan = Plan(self._options.workloads, seconds, self._options.rounds)
            self._reporter.start(len(plan.rows))
            try:
                for index, (workload, delay) in enumerate(plan.rows):
                    self._row(workload, delay, plan.share(index), index)
                    self.session.seconds = time.monotonic() - begin
                    self.session.save(self._output)
                    self._forget([coming for coming, _ in plan.rows[index + 1 :]])
                self.session.finished = True
            finally:
                self.session.seconds = time.monotonic() - begin
                self.session.save(self._output)
        return self.session

    def _title(self, workload: Workload) -> str:
        made = workload.data or workload.makes
        dataset = made(self._sizes) if made is not None else Dataset("", ())
        size = dataset.size / 2**30
        words = f"{size:.3g} GiB" if size >= 1 else f"{dataset.size / 2**20:.0f} MiB"
        return workload.title.format(files=f"{len(dataset.files):,}", size=words)

    # --- rounds

    def _row(self, workload: Workload, delay: int, share: float, index: int) -> None:
        """Round 0 where there is one, and round 1; then rounds until they are enough or `share` seconds are used up."""
        begin = time.monotonic()
        field_ = self._field(workload, delay)
        firm = {self.session.subject, *REFERENCES}
        took: dict[str, float] = {}
        for number in range(first_round(workload, delay), self._options.rounds + 1):
            part = set(field_) if number < 2 else takers(took, firm, share - (time.monotonic() - begin))
            if not part:
                break
            if self._options.thorough and workload.cold:
                drop_caches()
            for name in turn(field_, index, number):
                out = any(self.session.fault(workload.name, one, name) for one in workload.delays)
                if out:
                    took.pop(name, None)
                if out or name not in part or (number == 0 and name in REFERENCES):
                    continue
                self._reporter.step(f"{workload.title}, {delay} ms, round {number}: {name}")
                start, before = time.monotonic(), self._setting_up
                run = self._run(workload, delay, number, name)
                run.took = took[name] = time.monotonic() - start - (self._setting_up - before)
                self.session.runs.append(run)
                self._reporter.ended(run)

    def _field(self, workload: Workload, delay: int) -> list[str]:
        fit = [one for one in self._contestants if workload.extra in ("", *one.extra) or not workload.extra_needed]
        names = [one.name for one in fit if not one.only or workload.name in one.only]
        if self._options.references:  # the floor asks no server, so a delay says nothing of it
            names += [CEILING] * (workload.bare is not None)
            if not delay:
                names += [SECOND] * (workload.second and self._options.thorough) + [FLOOR] * workload.floor
        return names

    # --- one run

    def _run(self, workload: Workload, delay: int, number: int, name: str) -> Run:
        run = Run(workload.name, delay, name, number)
        self._serial += 1
        door = self._proxy.endpoints[delay] if delay or number == 0 else self._server.endpoint
        bucket = None
        try:
            if name == SECOND:
                self._second(workload, run)
            elif workload.data is not None:
                bucket = self._dataset(workload.data(self._sizes), name)
            else:
                bucket = self._new_bucket(f"bench-run-{self._serial}", None)
            if bucket is not None and name == CEILING:
                self._bare(workload, run, bucket, door)
            elif bucket is not None:
                self._mounted(workload, run, bucket, door)
        except (Fault, CommandError) as error:
            run.fault = str(error)
            if workload.changes and bucket is not None:
                self._drop(bucket)  # nobody knows what is in it now
        finally:
            if workload.data is None and bucket is not None:
                self._drop(bucket)
        return run

    def _scene(self, run: Run, bucket: _Bucket, door: str, root: Path | None = None) -> Scene:
        dataset = bucket.dataset
        return Scene(
            root=str(root or ""),
            bucket=bucket.name,
            endpoint=door,
            direct=self._server.endpoint,
            files=[(file.key, file.size) for file in dataset.files] if dataset else [],
            scale=self._options.scale,
            brief=self._options.brief,
            serial=self._serial,
            delay=run.delay,
            limit=self._options.limit,
            verify=is_verified(run.delay, run.round),
            plain=self.session.plain.get(run.contestant, True),
        )

    def _bare(self, workload: Workload, run: Run, bucket: _Bucket, door: str) -> None:
        self._proxy.take()
        self._fill(run, workload, self._act(workload, "bare", self._scene(run, bucket, door)))
        run.counts = self._proxy.take().as_json() if run.delay else None

    def _second(self, workload: Workload, run: Run) -> None:
        """The ceiling again, with data of its own on MiniStack, which is started for the first such run."""
        file = File("second.bin", self._sizes.bytes(_SECOND_SIZE))
        if self._ministack is None:
            begin = time.monotonic()
            self._ministack = self._stack.enter_context(DevServer("ministack"))
            self._ministack.create_bucket(SECOND)
            keys = (self._ministack.access_key, self._ministack.secret_key)
            store = S3Store(SECOND, endpoint=self._ministack.endpoint, region=REGION, credentials=keys, timeout=120)
            try:
                upload(store, [file])
            finally:
                store.close()
            self._setting_up += time.monotonic() - begin
        where = self._ministack.endpoint
        scene = Scene("", SECOND, where, where, [(file.key, file.size)], limit=self._options.limit)
        self._fill(run, workload, self._act(workload, "bare", scene, self._ministack))

    def _mounted(self, workload: Workload, run: Run, bucket: _Bucket, door: str) -> None:
        """Cold mount, the work, unmount; measured from outside."""
        with self._placed(run, bucket, door) as (contestant, place):
            extra = workload.extra if workload.extra in contestant.extra else ""
            mount = Mount(contestant, place, extra)
            if run.contestant == FLOOR:
                listing = place.state / "files.json"
                listing.write_text(json.dumps(self._scene(run, bucket, door).files))
            self._prepared(mount, contestant, bucket, place)
            scene = self._scene(run, bucket, door, place.mountpoint)
            if workload.prime is not None:
                mount.start()
                try:
                    self._act(workload, "prime", scene)
                finally:
                    mount.stop()
                mount = Mount(contestant, place, extra)
            self._proxy.take()
            mount.start()
            ended = False
            try:
                run.mount_seconds = scene.mount_seconds = mount.seconds
                mounted = self._proxy.take()
                meter = Meter(mount.pids())
                meter.start()
                try:
                    outcome = self._act(workload, "act", scene)
                finally:
                    usage = meter.stop()
                mount.pids()
                ended = True
            finally:
                note = _stopped(mount, quiet=not ended)
            counts = self._proxy.take()
            run.note = note
            self._fill(run, workload, outcome, usage, checked=run.contestant != FLOOR)
            if door != self._server.endpoint:
                run.counts, run.mount_counts = counts.as_json(), mounted.as_json()

    def _fill(self, run: Run, workload: Workload, outcome: Outcome, usage: Usage | None = None, checked: bool = True) -> None:
        usage = usage or Usage()
        run.seconds, run.operations, run.bytes = outcome.seconds, outcome.operations, outcome.bytes
        run.cpu, run.rss_idle, run.rss_peak = usage.cpu, usage.rss_idle, usage.rss_peak
        run.extra = outcome.extra
        if outcome.wrong and checked:
            raise Fault("wrong: " + "; ".join(outcome.wrong[:3]))
        run.value = outcome.value(workload.unit)

    def _act(self, workload: Workload, part: str, scene: Scene, server: DevServer | None = None) -> Outcome:
        server = server or self._server
        keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        given = {"workload": workload.name, "part": part, "scene": scene.as_json(), "environment": keys}
        return Outcome(**self._stage.run(given, workload.timeout))

    # --- places and buckets

    @contextlib.contextmanager
    def _placed(self, run: Run, bucket: _Bucket, door: str) -> Iterator[tuple[Contestant, Place]]:
        """The contestant and fresh folders for one run; `state` is the contestant's own for this bucket."""
        name = run.contestant
        contestant = _floor() if name == FLOOR else next(one for one in self._contestants if one.name == name)
        state = bucket.states.setdefault(name, self._folder / bucket.name / name)
        here = self._folder / f"run-{self._serial}"
        for folder in (state, here / "mnt", here / "cache"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = (self._server.access_key, self._server.secret_key)
        try:
            yield contestant, Place(door, bucket.name, REGION, *keys, here / "mnt", here / "cache", state)
        finally:
            with contextlib.suppress(OSError):
                (here / "mnt").rmdir()  # never rmtree: a mount that is still there would be emptied
                shutil.rmtree(here, ignore_errors=True)

    def _prepared(self, mount: Mount, contestant: Contestant, bucket: _Bucket, place: Place) -> None:
        """What is run once a bucket; data written through the mount where the contestant has its own form of it."""
        first = not (place.state / ".prepared").exists()
        try:
            mount.prepare()
        except CommandError as error:
            raise Fault(f"preparation failed: {error}") from None
        if first and not contestant.plain and bucket.dataset is not None:
            begin = time.monotonic()
            direct = replace(place, endpoint=self._server.endpoint)
            writing = Mount(contestant, direct)
            try:
                writing.start()
                try:
                    files = [(file.key, file.size) for file in bucket.dataset.files]
                    scene = Scene(str(place.mountpoint), bucket.name, direct.endpoint, direct.endpoint, files, plain=False)
                    self._act(self._options.workloads[0], "populate", scene)
                finally:
                    writing.stop()
            except BaseException:
                (place.state / ".prepared").unlink(missing_ok=True)
                raise
            for leftover in place.cache.iterdir():
                shutil.rmtree(leftover, ignore_errors=True)
            self._setting_up += time.monotonic() - begin

    def _dataset(self, dataset: Dataset, contestant: str) -> _Bucket:
        """The bucket with this data; one of its own, and empty, for who will write it in its own form."""
        plain = self.session.plain.get(contestant, True)
        name = f"bench-{dataset.name}" if plain else f"bench-{dataset.name}-{contestant}"
        if name not in self._buckets:
            begin = time.monotonic()
            self._new_bucket(name, dataset)
            if plain:
                self._reporter.step(f"storing {len(dataset.files)} objects, {dataset.size / 1e6:.0f} MB")
                store = self._store(name)
                try:
                    upload(store, dataset.files)
                finally:
                    store.close()
            self._setting_up += time.monotonic() - begin
        return self._buckets[name]

    def _new_bucket(self, name: str, dataset: Dataset | None) -> _Bucket:
        self._server.create_bucket(name)
        bucket = self._buckets[name] = _Bucket(name, dataset)
        store = self._store(name)
        try:  # the first object makes SeaweedFS set up the bucket's volumes, which takes it a second
            store.put("first", bytearray(1))
            store.delete("first")
        finally:
            store.close()
        return bucket

    def _drop(self, bucket: _Bucket) -> None:
        """SeaweedFS gives the memory of a bucket back when it goes, not when its objects do."""
        self._buckets.pop(bucket.name, None)
        self._server.delete_bucket(bucket.name)
        shutil.rmtree(self._folder / bucket.name, ignore_errors=True)

    def _forget(self, coming: list[Workload]) -> None:
        """Drops the data no coming workload needs."""
        needed = {workload.data(self._sizes).name for workload in coming if workload.data is not None}
        for bucket in list(self._buckets.values()):
            if bucket.dataset is None or bucket.dataset.name not in needed:
                self._drop(bucket)

    def _store(self, bucket: str) -> S3Store:
        keys = (self._server.access_key, self._server.secret_key)
        return S3Store(bucket, endpoint=self._server.endpoint, region=REGION, credentials=keys, timeout=120)


def _floor() -> Contestant:
    folder = str(Path(__file__).resolve().parents[1])
    mount = module_command("floor", "{mountpoint}", "{state}/files.json")
    return Contestant(FLOOR, mount[0], mount, ["fusermount", "-u", "{mountpoint}"], environment={"PYTHONPATH": folder})


def _stopped(mount: Mount, quiet: bool) -> str:
    """What went wrong at the unmount; `quiet`: the run has failed already, so that is the news."""
    try:
        mount.stop()
    except Fault as fault:
        return "" if quiet else str(fault)
    return ""


@contextlib.contextmanager
def _work_folder(parent: str | None) -> Iterator[str]:
    """A private folder, in memory where the machine has such."""
    memory: Any = parent or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    folder = tempfile.mkdtemp(prefix=f"sluicefs-bench-{os.getpid()}-", dir=memory)
    try:
        yield folder
    finally:
        _clear_mounts(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _clear_mounts(folder: str) -> None:
    """No mount may be below a folder that is about to be deleted."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        where = line.split(" ")[1]
        if where.startswith(folder + "/"):
            with contextlib.suppress(CommandError):
                run_command(["umount", "-l", where], timeout=20)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that everything is cleared up."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
