"""Shards in a store that speaks S3: made on machines that share no folder, joined on another, and never wrong rows.

A machine is a folder of its own here.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import s3fs
from extracting import SMALL_BLOCKS, datasets
from extracting import settings as settings_of
from headstart.cache.errors import DamagedError, FormatError, OutputExistsError, SettingsError, StorageError
from headstart.cache.hashing import hash_texts
from headstart.cache.reader import open_cache
from headstart.cache.siblings import shards_path
from headstart.stages.extract import extract
from headstart.stages.extraction import shard_store
from headstart.stages.extraction.shard_store import ShardStore
from headstart.stages.extraction.shards import ShardJob
from headstart.stages.join import join
from headstart.stages.progress import Action, Event, Note, Outcome
from processes import PATIENCE_SECONDS, blocks_of, command_here, finish, kill_at_batch, start
from tiny import tiny_rows

Rows = list[tuple[str, str]]
Contents = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """60 rows, of which 18 are copies, in all parts of the table."""
    rows = tiny_rows(42)
    rows += [*rows[3:20], rows[3]]
    random.Random(0).shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def table(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(rows, tmp_path_factory.mktemp("table") / "t.csv")


@pytest.fixture(scope="module")
def local(table: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The joined cache of a run without a store."""
    out = tmp_path_factory.mktemp("local") / "c.h5"
    return extract(table, out, settings_of(tiny, **SMALL_BLOCKS), shards=3)


@pytest.fixture
def url(bucket: Any, tmp_path: Path) -> Iterator[str]:
    """A folder of the store."""
    yield f"s3://reviews/{tmp_path.name}"
    bucket.invalidate_cache()


def written(rows: Rows, path: Path) -> Path:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


def distinct(rows: Rows) -> int:
    return len({text for text, _ in rows})


class Machine:
    """A folder of its own, what its runs said, and what they did."""

    def __init__(self, folder: Path, encoder: Path, url: str) -> None:
        folder.mkdir()
        self.out, self.url, self._encoder = folder / "c.h5", url, encoder
        self.events: list[Event] = []

    def extract(self, table: Path, **options: Any) -> Path:
        settings = settings_of(self._encoder, **SMALL_BLOCKS)
        return extract(table, self.out, settings, store=self.url, report=self.events.append, **options)

    @property
    def notes(self) -> str:
        return "\n".join(event.text for event in self.events if isinstance(event, Note))

    @property
    def action(self) -> Action:
        return [event for event in self.events if isinstance(event, Outcome)][-1].action


@pytest.fixture
def machine(tmp_path: Path, tiny: Path, url: str) -> Callable[[str], Machine]:
    return lambda name: Machine(tmp_path / name, tiny, url)


def contents(out: Path) -> Contents:
    return {path.name: datasets(path) for path in sorted(shards_path(out).iterdir())}


def stored(bucket: Any, url: str) -> list[str]:
    bucket.invalidate_cache()
    return sorted(path.rpartition("/")[2] for path in bucket.ls(url, detail=False)) if bucket.exists(url) else []


def stored_contents(bucket: Any, url: str, folder: Path) -> Contents:
    """What the store holds, as `contents` of a local folder."""
    folder.mkdir()
    for name in stored(bucket, url):
        bucket.get_file(f"{url}/{name}", str(folder / name))
    return {path.name: datasets(path) for path in sorted(folder.iterdir())}


def test_machines_without_a_common_folder_make_shards_that_another_joins(
    bucket: Any,
    machine: Callable[[str], Machine],
    rows: Rows,
    table: Path,
    local: Path,
    encoded: list[list[int]],
    tmp_path: Path,
) -> None:
    """With the bytes of a run without a store. Each text is encoded once, also where two machines need it."""
    a, b, c = map(machine, "abc")
    a.extract(table, shard="3/3")
    b.extract(table, shard="1/3")
    assert b.action is Action.MADE and not b.out.exists()
    a.extract(table, shard="2/3")
    assert len(encoded) == distinct(rows)
    assert stored(bucket, a.url) == sorted(contents(local))  # common texts are gone, and so are temporary names
    join(c.out, store=c.url)
    assert contents(c.out) == contents(local)
    open_cache(c.out).check()
    for out in (c.out, local):
        join(out, copy=tmp_path / f"{out.parent.name}.one.h5")
    assert datasets(tmp_path / "c.one.h5") == datasets(tmp_path / f"{local.parent.name}.one.h5")
    join(tmp_path / "d.h5", store=c.url, copy=tmp_path / "two.h5")
    assert datasets(tmp_path / "two.h5") == datasets(tmp_path / "c.one.h5")


def test_what_the_store_holds_is_not_made_again(
    bucket: Any,
    machine: Callable[[str], Machine],
    table: Path,
    local: Path,
    encoded: list[list[int]],
) -> None:
    a, b, c = map(machine, "abc")
    a.extract(table, shards=3)
    assert contents(a.out) == contents(local) and stored(bucket, a.url) == sorted(contents(local))
    encoded.clear()
    before = bucket.info(f"{a.url}/{stored(bucket, a.url)[1]}")
    path = b.extract(table, shard="2/3")
    assert not encoded and not path.exists() and b.action is Action.CURRENT
    assert f"{a.url}/{path.name} is there already; nothing to encode" in b.notes
    c.extract(table, shards=3)  # a run that makes all takes all
    assert not encoded and contents(c.out) == contents(local)
    c.extract(table)  # and so many as the joined cache has
    assert "is current" in c.notes
    bucket.invalidate_cache()
    assert bucket.info(f"{a.url}/{path.name}")["LastModified"] == before["LastModified"]


def test_a_run_of_all_shards_makes_what_is_missing_in_the_store(
    bucket: Any,
    machine: Callable[[str], Machine],
    rows: Rows,
    table: Path,
    local: Path,
    encoded: list[list[int]],
) -> None:
    a, b = map(machine, "ab")
    a.extract(table, shard="1/3")
    before = len(encoded)
    b.extract(table, shards=3)
    assert 0 < before < len(encoded) == distinct(rows)
    assert contents(b.out) == contents(local) and stored(bucket, a.url) == sorted(contents(local))
    open_cache(b.out).check()


def test_shards_that_were_made_without_a_store_are_uploaded(
    bucket: Any, machine: Callable[[str], Machine], table: Path, local: Path, tiny: Path, encoded: list[list[int]]
) -> None:
    a = machine("a")
    extract(table, a.out, settings_of(tiny, **SMALL_BLOCKS), shards=3)
    encoded.clear()
    a.extract(table, shards=3)
    assert not encoded and "is current" in a.notes
    assert stored(bucket, a.url) == sorted(contents(local))


def cut_short(bucket: Any, name: str, others: list[str]) -> None:
    bucket.pipe_file(name, bucket.cat_file(name)[:-1])


def swap(bucket: Any, name: str, others: list[str]) -> None:
    bucket.pipe_file(name, bucket.cat_file(others[0]))


def alter(bucket: Any, name: str, others: list[str]) -> None:
    """Change a byte in the middle, which is of features or hashes."""
    content = bytearray(bucket.cat_file(name))
    content[len(content) // 2] ^= 1
    bucket.pipe_file(name, bytes(content))


def empty(bucket: Any, name: str, others: list[str]) -> None:
    bucket.pipe_file(name, b"")


def delete(bucket: Any, name: str, others: list[str]) -> None:
    bucket.rm_file(name)


HARM = [cut_short, swap, alter, empty, delete]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("number", [2, 3])
def test_a_damaged_object_is_an_error_or_is_made_again(
    harm: Callable[[Any, str, list[str]], None],
    number: int,
    bucket: Any,
    machine: Callable[[str], Machine],
    rows: Rows,
    table: Path,
    local: Path,
    encoded: list[list[int]],
    tmp_path: Path,
) -> None:
    a, b, c = map(machine, "abc")
    a.extract(table, shards=3)
    names = [f"{a.url}/{name}" for name in stored(bucket, a.url)]
    harm(bucket, names[number - 1], [name for name in names if name != names[number - 1]])
    said = f"{a.url} lacks shard {number}" if harm is delete else rf"{names[number - 1]} is damaged, or is another"
    with pytest.raises(DamagedError, match=said):
        join(b.out, store=a.url)
    assert not b.out.exists() and not list(shards_path(b.out).glob(f"{number:05}*"))
    encoded.clear()
    if harm in (cut_short, empty, delete):  # which its beginning and its length tell
        c.extract(table, shard=f"{number}/3")
        assert c.action is Action.MADE
    else:
        c.extract(table, shards=3)
        assert f"{names[number - 1]} is damaged" in c.notes and "it is made again" in c.notes
        assert contents(c.out) == contents(local)
    assert 0 < len(encoded) < distinct(rows)
    assert stored_contents(bucket, a.url, tmp_path / "stored") == contents(local)
    join(b.out, store=a.url)
    assert contents(b.out) == contents(local)


def test_a_local_shard_that_was_cut_short_is_taken_from_the_store(
    machine: Callable[[str], Machine], table: Path, local: Path, encoded: list[list[int]]
) -> None:
    a = machine("a")
    a.extract(table, shards=3)
    path = shards_path(a.out) / sorted(contents(local))[1]
    encoded.clear()
    for again in (lambda: join(a.out, store=a.url), lambda: a.extract(table, shards=3)):
        os.truncate(path, path.stat().st_size - 1)
        again()
        assert contents(a.out) == contents(local)
    assert not encoded


def kill_in_upload(call: str, before: bool, environment: dict[str, str]) -> None:
    """Kill the process, with SIGKILL, around a call of the first upload of a shard: in the middle of its bytes, say."""
    os.environ.update(environment)
    original = getattr(s3fs.S3FileSystem, call)

    async def called(self: Any, *arguments: Any, **options: Any) -> Any:
        if "probe" in str(arguments):
            return await original(self, *arguments, **options)
        if call == "_put_file" and before:  # a store that shows what has arrived so far
            content = Path(arguments[0]).read_bytes()
            await self._pipe_file(arguments[1], content[: len(content) // 2])
        elif not before:
            await original(self, *arguments, **options)
        return os.kill(os.getpid(), signal.SIGKILL)

    setattr(s3fs.S3FileSystem, call, called)


def take_environment(variables: dict[str, str]) -> None:
    """Lead a process to the store: its server was started before there was one."""
    os.environ.update(variables)


def environment_of() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


KILLS = [("_put_file", True), ("_put_file", False), ("_cp_file", False), ("_rm_file", False)]


@pytest.mark.parametrize(("call", "before"), KILLS)
def test_a_run_that_was_killed_while_it_uploads_is_carried_on_without_encoding(
    call: str, before: bool, bucket: Any, tiny: Path, tmp_path: Path, url: str
) -> None:
    alone = list(dict(tiny_rows(30)).items())  # no text is common, so the first file is the shard
    table = written(alone, tmp_path / "t.csv")
    arguments = ["extract", table, "--encoder", tiny, "--precision", "float32", "--out", tmp_path / "c.h5"]
    arguments += ["--shard", "1/2", "--store", url]
    eight, log = partial(blocks_of, 8), tmp_path / "log"
    code, said = finish(arguments, log, eight, partial(kill_in_upload, call, before, environment_of()))
    assert code == -signal.SIGKILL, said
    (path,) = shards_path(tmp_path / "c.h5").glob("*.h5")
    published = [name for name in stored(bucket, url) if ".headstart-" not in name]
    assert published == ([path.name] if call in ("_cp_file", "_rm_file") else [])
    left = [name for name in stored(bucket, url) if ".headstart-" in name]
    assert len(left) == (call != "_rm_file")
    code, said = finish(arguments, log, eight, partial(take_environment, environment_of()), partial(kill_at_batch, 1))
    assert code == 0, said
    assert [name for name in stored(bucket, url) if name not in left] == [path.name]
    bucket.get_file(f"{url}/{path.name}", str(tmp_path / "got.h5"))
    assert (tmp_path / "got.h5").read_bytes() == path.read_bytes()


class Proxy(socketserver.ThreadingTCPServer):
    """Leads to the server, and cuts every connection off once so many bytes were sent to it."""

    def __init__(self, port: int, most: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.to, self.left = port, most


class _Passing(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.to)) as server:
            back = threading.Thread(target=self._pass, args=(server, self.request))
            back.start()
            self._pass(self.request, server, counted=True)
            back.join()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                self.server.left -= len(data) if counted else 0
                if self.server.left < 0:
                    break
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(bucket: Any) -> Iterator[Proxy]:
    """Cuts off after 30,000 bytes: a shard has more."""
    with Proxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]), 30_000) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()
        server.left = -1
        server.shutdown()


def test_a_shard_whose_upload_failed_stays_here_and_is_uploaded_by_the_next_run(
    bucket: Any,
    machine: Callable[[str], Machine],
    table: Path,
    encoded: list[list[int]],
    monkeypatch: Any,
    proxy: Proxy,
    url: str,
) -> None:
    a = machine("a")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(StorageError, match=rf"^cannot write {url}/0000[13]-[^ ]+\.h5: [^\n]+$"):
            a.extract(table, shard="3/3")
    s3fs.S3FileSystem.clear_instance_cache()
    assert not [name for name in stored(bucket, url) if not name.endswith(".h5")]
    a.extract(table, shard="3/3")
    made, before = len(encoded), stored(bucket, url)
    assert [name for name in before if name.startswith("00003")]
    for name in before:
        bucket.rm_file(f"{url}/{name}")
    a.extract(table, shard="3/3")
    assert len(encoded) == made and set(stored(bucket, url)) <= set(before)
    assert [name for name in stored(bucket, url) if name.startswith("00003")]


def test_half_a_transfer_is_no_damage(
    bucket: Any, machine: Callable[[str], Machine], table: Path, local: Path, encoded: list[list[int]], monkeypatch: Any
) -> None:
    """A library that loses half a file without an error: nothing is published, nothing made again."""
    a, b = map(machine, "ab")

    async def put_half(self: Any, path: str, to: str, **options: Any) -> None:
        content = Path(path).read_bytes()
        await self._pipe_file(to, content[: len(content) // 2])

    async def get_half(self: Any, name: str, path: str, **options: Any) -> None:
        content = await self._cat_file(name)
        Path(path).write_bytes(content[: len(content) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_put_file", put_half)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(StorageError, match=r"^cannot write s3://reviews/[^ ]+: [\d,]+ of [\d,]+ bytes arrived$"):
            a.extract(table, shards=3)
    assert all(".h5.headstart-" in name for name in stored(bucket, a.url))
    s3fs.S3FileSystem.clear_instance_cache()
    a.extract(table, shards=3)
    encoded.clear()
    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_get_file", get_half)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(StorageError, match=r"^cannot download s3://reviews/[^ ]+: [\d,]+ of [\d,]+ bytes arrived$"):
            b.extract(table, shards=3)
    s3fs.S3FileSystem.clear_instance_cache()
    b.extract(table, shards=3)
    assert not encoded and contents(b.out) == contents(local)


def test_what_the_server_refuses_is_one_line_before_anything_is_encoded(
    bucket: Any, machine: Callable[[str], Machine], table: Path, encoded: list[list[int]], monkeypatch: Any
) -> None:
    a = machine("a")
    a.url = "s3://none/folder"
    with pytest.raises(StorageError, match=r"^cannot write s3://none/folder: The specified bucket does not exist$"):
        a.extract(table, shards=3)
    with pytest.raises(FormatError, match=r"^s3://none/folder holds no shards, or is not there"):
        join(a.out, store=a.url)
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        s3fs.S3FileSystem.clear_instance_cache()
        for attempt, verb in (
            (lambda: a.extract(table, shard="1/3"), "write"),
            (lambda: join(a.out, store=a.url), "read"),
        ):
            with pytest.raises(StorageError, match=rf"^cannot {verb} s3://none/folder: [^\n]*[Cc]redentials[^\n]*$"):
                attempt()
    s3fs.S3FileSystem.clear_instance_cache()
    assert not encoded


def test_overwrite_makes_and_uploads_anew(
    bucket: Any,
    machine: Callable[[str], Machine],
    rows: Rows,
    table: Path,
    local: Path,
    encoded: list[list[int]],
    tmp_path: Path,
) -> None:
    a, b = map(machine, "ab")
    a.extract(table, shards=3)
    names = stored(bucket, a.url)
    for name in names:
        alter(bucket, f"{a.url}/{name}", [])  # which only a download tells
    encoded.clear()
    b.extract(table, shards=3, overwrite=True)
    assert len(encoded) == distinct(rows)
    assert stored_contents(bucket, a.url, tmp_path / "stored") == contents(local) == contents(b.out)
    encoded.clear()
    alter(bucket, f"{a.url}/{names[0]}", [])
    b.extract(table, shard="1/3", overwrite=True)
    assert encoded and stored_contents(bucket, a.url, tmp_path / "again") == contents(local)


def test_an_update_copies_what_the_store_holds_of_other_rows(
    bucket: Any,
    machine: Callable[[str], Machine],
    rows: Rows,
    table: Path,
    encoded: list[list[int]],
    tmp_path: Path,
) -> None:
    a, b, c, d = map(machine, "abcd")
    a.extract(table, shards=3)
    old = stored(bucket, a.url)
    changed = [*rows[:30], ("a very fine plot", "class0"), *rows[33:]]
    other = written(changed, tmp_path / "other.csv")
    with pytest.raises(OutputExistsError, match=rf"^{a.url}/00001-[^ ]+ is a shard of other rows, labels or settings"):
        b.extract(other, shard="1/3")
    encoded.clear()
    for number, each in enumerate((b, c, b), 1):
        each.extract(other, shard=f"{number}/3", update=True)
    assert len(encoded) == 1
    assert len(stored(bucket, a.url)) == 3 and not set(stored(bucket, a.url)) & set(old)
    join(d.out, store=a.url)
    np.testing.assert_array_equal(open_cache(d.out).text_hashes, hash_texts(text for text, _ in changed))
    relabelled = written([(text, f"other {label}") for text, label in changed], tmp_path / "relabelled.csv")
    encoded.clear()
    a.extract(relabelled, shards=3, update=True)
    assert not encoded and len(stored(bucket, a.url)) == len(contents(a.out)) == 3
    assert open_cache(a.out).label_names == ("other class0", "other class1")


def test_one_shard_may_be_made_twice_at_once(
    bucket: Any, table: Path, tiny: Path, tmp_path: Path, url: str, local: Path
) -> None:
    """By machines of their own, and by processes of one machine."""
    outs = [tmp_path / name / "c.h5" for name in "aab"]
    options = ["--encoder", tiny, "--precision", "float32", "--batch-tokens", "64", "--features", "cls"]
    for out in outs:
        out.parent.mkdir(exist_ok=True)
    runs = [
        start(
            ["extract", table, *options, "--out", out, "--shard", "1/3", "--store", url],
            tmp_path / f"log{number}",
            partial(blocks_of, 8),
            partial(take_environment, environment_of()),
        )
        for number, out in enumerate(outs)
    ]
    for number, run in enumerate(runs):
        run.join(PATIENCE_SECONDS)
        assert run.exitcode == 0, (tmp_path / f"log{number}").read_text()
    first = sorted(contents(local))[0]
    names = stored(bucket, url)
    assert [name for name in names if ".common" not in name] == [first] and len(names) == 2
    assert stored_contents(bucket, url, tmp_path / "stored")[first] == contents(local)[first]


def test_what_killed_uploads_left_goes_when_it_is_old(
    bucket: Any, machine: Callable[[str], Machine], table: Path, local: Path, monkeypatch: Any
) -> None:
    a, b = map(machine, "ab")
    ours = ["00001-0123456789abcdef.h5.headstart-host-1-00ff", "probe.headstart-host-1-00ff"]
    others = ["notes.txt", "mine.headstart-x"]
    for name in (*ours, *others):
        bucket.pipe_file(f"{a.url}/{name}", b"x")
    a.extract(table, shards=3)
    shards = sorted(contents(local))
    assert stored(bucket, a.url) == sorted([*shards, *ours, *others])
    other = "00001-0123456789abcdef.h5"  # of a run on another table that began when there was nothing yet
    bucket.pipe_file(f"{a.url}/{other}", b"x")
    ShardStore(a.url).clean(set(shards), set(), others=False)
    assert other in stored(bucket, a.url)
    bucket.rm_file(f"{a.url}/{other}")
    monkeypatch.setattr(shard_store, "_MOST_AGE", shard_store._MOST_AGE * 0)
    b.extract(table, shard="2/3")
    assert stored(bucket, a.url) == sorted([*shards, *others])


def test_join_wants_all_shards_of_one_table(
    bucket: Any, machine: Callable[[str], Machine], table: Path, tmp_path: Path, rows: Rows
) -> None:
    a, b, c = map(machine, "abc")
    for number in (1, 2):
        a.extract(table, shard=f"{number}/3")
    with pytest.raises(DamagedError, match=rf"^{a.url} lacks shard 3: make it with headstart extract"):
        join(b.out, store=a.url)
    with pytest.raises(FormatError, match=rf"^{a.url}/none holds no shards"):
        join(c.out, store=f"{a.url}/none")
    a.extract(table, shard="3/3")
    name = stored(bucket, a.url)[2]
    bucket.cp_file(f"{a.url}/{name}", f"{a.url}/{name[:6]}0123456789abcdef.h5")
    with pytest.raises(DamagedError, match="holds shards of two tables"):
        join(b.out, store=a.url)


def test_the_command_line_takes_a_store(bucket: Any, table: Path, tiny: Path, tmp_path: Path, url: str) -> None:
    """In this process: the server of processes has no address of the store."""
    options = ["extract", table, "--encoder", tiny, "--precision", "float32"]
    for folder in "abc":
        (tmp_path / folder).mkdir()
    for number, folder in ((1, "a"), (3, "a"), (2, "b")):
        done = command_here(*options, "--out", tmp_path / folder / "c.h5", "--shard", f"{number}/3", "--store", url)
        assert done.returncode == 0 and "features" in done.stdout, done.stderr
    done = command_here(*options, "--out", tmp_path / "c" / "c.h5", "--shard", "2/3", "--store", url)
    assert done.returncode == 0, done.stderr
    assert "is there already; nothing to encode" in " ".join(done.stderr.split()) and "features" not in done.stdout
    done = command_here(*options, "--out", tmp_path / "c" / "c.h5", "--shards", "3", "--array", "--store", url)
    assert "#SBATCH --array=3\n" in done.stdout, done.stderr
    done = command_here("join", tmp_path / "d.h5", "--store", url, "--copy", tmp_path / "one.h5")
    assert done.returncode == 0 and "60" in done.stdout, done.stderr
    open_cache(tmp_path / "one.h5").check()


def test_a_worker_of_ray_uploads_what_it_makes(
    bucket: Any, machine: Callable[[str], Machine], table: Path, tiny: Path, local: Path, url: str
) -> None:
    """Here without Ray: the worker alone, which has the plan in a shared folder."""
    from headstart.stages.extraction.on_ray import _Work
    from headstart.stages.extraction.plan import load_plan
    from headstart.stages.tables.table import open_table

    a = machine("a")
    a.extract(table, shard="2/3")
    work = _Work(
        out=a.out,
        table=open_table(table, text_column="text", label_column="label"),
        url=None,
        settings=settings_of(tiny, **SMALL_BLOCKS),
        reuse=(),
        overwrite=False,
        store=url,
    )
    plan = load_plan(a.out)
    assert plan is not None
    work.open()(ShardJob(1))
    assert plan.shard(1).file in stored(bucket, url)


def test_another_file_system_serves(tiny: Path, table: Path, local: Path, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    a, b = (Machine(tmp_path / name, tiny, "memory://shards/large/") for name in "ab")
    a.extract(table, shards=3)
    assert sorted(path.rpartition("/")[2] for path in system.ls("/shards/large", detail=False)) == sorted(
        contents(local)
    )
    join(b.out, store="memory://shards/large")
    assert contents(b.out) == contents(local)
    system.store.clear()


def test_a_store_is_the_url_of_a_folder_of_shards(table: Path, tiny: Path, tmp_path: Path) -> None:
    for name, message in (
        ("folder", r"`store` is 'folder'; give the URL of a folder: s3://bucket/folder"),
        ("file:///folder", "a folder of this machine; let runs share that of `out`"),
        ("abc://folder", "`store` is 'abc://folder', which cannot be used: Protocol not known: abc"),
    ):
        with pytest.raises(SettingsError, match=message):
            ShardStore(name)
    settings = settings_of(tiny)
    with pytest.raises(SettingsError, match="`store` holds shards; say how many"):
        extract(table, tmp_path / "c.h5", settings, store="s3://a/b")
    with pytest.raises(SettingsError, match="`store` has no effect with `append=True`"):
        extract(table, tmp_path / "c.h5", settings, store="s3://a/b", append=True)
