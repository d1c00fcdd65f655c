"""The demo's job: what is listed, what is counted, and whose a file is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmstore import HashStore, PrefixStore, ShmStore
from shmstore.cli import count, tally
from shmstore.cli.count import Plan
from shmstore.cli.group import Notice
from shmstore.cli.tally import Tally


def listed(root: Path, *leave_out: bytes) -> list[bytes]:
    files, unreadable = tally.list_files(os.fsencode(root), leave_out)
    assert unreadable == 0
    return files


# -- files ------------------------------------------------------------------------------------------------------------


def test_regular_files_only_sorted_and_no_link_followed(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "f").touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    for odd in (b"a", b"\xff\n", b" "):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + odd)).touch()
    assert listed(tmp_path) == [b" ", b"a", b"b/deep/f", b"\xff\n"]
    assert listed(tmp_path, b"deep") == [b" ", b"a", b"\xff\n"]


def test_a_link_as_the_root_is_followed(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").touch()
    (tmp_path / "link").symlink_to("tree")
    assert listed(tmp_path / "link") == [b"f"]


def test_a_directory_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    assert tally.list_files(os.fsencode(tmp_path / "none")) == ([], 1)


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 1 << 20])
def test_words_lines_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
    monkeypatch.setattr(tally, "_READ_BYTES", read_bytes)
    text = b"  one two\tthree\r\nfour\x0b\x0c\n\nf\xffve\x00six \xa0 seven"
    (tmp_path / "f").write_bytes(text)
    (tmp_path / "empty").touch()
    expected = Tally(2, len(text.split()), 3, len(text))
    assert tally.count(os.fsencode(tmp_path), [b"f", b"empty"]) == expected


def test_what_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    assert tally.count(os.fsencode(tmp_path), [b"gone", b"folder", b"link", b"x" * 300]) == Tally(skipped=4)


@pytest.mark.parametrize("files", [[], [b"a"], [b"a/b", b"\xff", b"c" * 50]])
def test_the_list_goes_through_the_store(monkeypatch: pytest.MonkeyPatch, files: list[bytes]) -> None:
    monkeypatch.setattr(count, "_PIECE_BYTES", 8)
    with HashStore() as store:
        count.publish(store, files)
        assert count.published(store) == files


def test_a_tally_is_a_value() -> None:
    one = Tally(1, 2, 3, 4, 5)
    assert Tally.unpacked(one.packed()) == one
    assert one + one == Tally(2, 4, 6, 8, 10)


# -- claims -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[bytes]:
    for i in range(6):
        (tmp_path / f"{i}").write_text("word " * (i + 1))
    return listed(tmp_path)


def rank_of(store: ShmStore, tmp_path: Path, rank: int = 0, nproc: int = 1) -> count._Rank:
    return count._Rank(Plan(store.name, os.fsencode(tmp_path), nproc, 3, 5.0), rank, store, store)


def test_a_rank_alone_counts_all_and_leaves_the_keys_of_the_last_round_only(
    name: str, tmp_path: Path, files: list[bytes]
) -> None:
    with ShmStore(name, rank=0) as store:
        count.publish(store, files)
        report = rank_of(store, tmp_path).work()
        assert report.own == report.total == tally.count(os.fsencode(tmp_path), files)
        assert set(report.waited_s) == set(count.WAITS)
        assert {key[:8] for key in store.list_keys() if key.startswith("round/")} == {"round/2/"}
        told = [int(store.queue_pop(count.PROGRESS)) for _ in range(store.queue_len(count.PROGRESS))]
        assert sum(told) == 6, "the launcher's bar ends full"


def test_what_another_holds_or_has_finished_is_left_to_it(name: str, tmp_path: Path, files: list[bytes]) -> None:
    with ShmStore(name, rank=0) as store:
        part = PrefixStore("round/0", store)
        part.set("claim/1", b"1 4711")
        part.set("claim/2", b"1 4711: 1 3 0 15 0")
        part.set("claim/5", b"1 47")
        mine = rank_of(store, tmp_path)._walk(part, files, range(6))
        assert (mine.files, mine.words) == (3, 1 + 4 + 5)
        assert count.unfinished(store, 1, 4711) == [1]
        assert count.unfinished(store, 0, os.getpid()) == []


def test_a_claim_that_was_taken_over_is_not_counted_twice(
    name: str, tmp_path: Path, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who took this rank for dead takes file 3 while it is being counted."""
    with ShmStore(name, rank=0) as store:
        part = PrefixStore("round/0", store)
        really = count.count

        def slow(root: bytes, paths: list[bytes]) -> Tally:
            if paths == [files[3]]:
                held = part.get("claim/3")
                assert part.compare_set("claim/3", held, b"1 4711") == b"1 4711"
            return really(root, paths)

        monkeypatch.setattr(count, "count", slow)
        mine = rank_of(store, tmp_path)._walk(part, files, range(6))
        assert (mine.files, mine.words) == (5, 1 + 2 + 3 + 5 + 6)
        assert part.get("claim/3") == b"1 4711"


def test_what_the_dead_hold_is_taken_over_and_what_they_finished_stays(
    name: str, tmp_path: Path, files: list[bytes]
) -> None:
    with ShmStore(name, rank=0) as store:
        part = PrefixStore("round/0", store)
        part.set("claim/1", b"1 4711")
        part.set("claim/2", b"1 4711: 1 3 0 15 0")
        part.set("claim/4", b"2 4711")
        part.set("claim/5", b"1 471")
        rank = rank_of(store, tmp_path, nproc=3)
        rank.group.noticed[1] = Notice(1, 4711, 0.0, "here")
        mine = rank._walk(part, files, range(6))
        assert (mine.files, mine.words) == (3, 1 + 2 + 4)
        assert rank.taken == [(1, 1)]
        assert (part.get("claim/4"), part.get("claim/5")) == (b"2 4711", b"1 471")


def test_a_round_is_summed_by_who_finished_what(name: str, tmp_path: Path) -> None:
    with ShmStore(name, rank=0) as store:
        part = PrefixStore("round/0", store)
        part.multi_set(["claim/4", "claim/5", "claim/6"], ["1 7: 1 2 3 4 0", "0 6: 1 1 1 1 0", "1 7: 0 0 0 0 1"])
        rank = rank_of(store, tmp_path, nproc=3)
        assert rank._claimed(part, range(4, 7)) == [Tally(1, 1, 1, 1), Tally(1, 2, 3, 4, 1), Tally()]
        part.set("claim/4", "1 7")
        with pytest.raises(ValueError, match="not finished"):
            rank._claimed(part, range(4, 7))
