"""The contract of listings."""

from __future__ import annotations

import pytest

from sluicefs.store.api import Store


def fill(store: Store, keys: list[str]) -> None:
    for key in keys:
        store.put(key, key.encode())


def everything(store: Store, prefix: str = "", delimiter: str = "", limit: int = 1000) -> tuple[list[str], list[str], int]:
    """Keys, prefixes, pages."""
    keys: list[str] = []
    prefixes: list[str] = []
    token = None
    for pages in range(1, 1000):
        page = store.list(prefix, delimiter=delimiter, token=token, limit=limit)
        assert len(page.objects) + len(page.prefixes) <= limit
        keys += [info.key for info in page.objects]
        prefixes += page.prefixes
        token = page.token
        if token is None:
            return keys, prefixes, pages
    raise AssertionError("the listing does not end")


def test_empty_bucket(store: Store) -> None:
    page = store.list("")
    assert (page.objects, page.prefixes, page.token) == ([], [], None)
    assert store.list("no/such/", delimiter="/").objects == []


def test_entries_are_complete(store: Store) -> None:
    etag = store.put("a/b", b"12345")
    [info] = store.list("a/").objects
    head = store.head("a/b")
    assert (info.key, info.size, info.etag) == ("a/b", 5, etag)
    assert info.metadata is None
    assert info.modified == head.modified
    assert info.storage_class == "STANDARD"


def test_delimiter_groups(store: Store) -> None:
    fill(store, ["a/1", "a/2/x", "a/2/y", "a/3/z", "a/b", "b/1", "top", "a"])
    assert everything(store, "", "/")[:2] == (["a", "top"], ["a/", "b/"])
    assert everything(store, "a/", "/")[:2] == (["a/1", "a/b"], ["a/2/", "a/3/"])
    assert everything(store, "a", "/")[:2] == (["a"], ["a/"])
    assert everything(store, "a/")[0] == ["a/1", "a/2/x", "a/2/y", "a/3/z", "a/b"]


def test_marker_of_a_directory_is_an_entry(store: Store) -> None:
    fill(store, ["d/", "d/x"])
    assert everything(store, "", "/")[:2] == ([], ["d/"])
    assert everything(store, "d/", "/")[:2] == (["d/", "d/x"], [])


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_paging(store: Store, limit: int) -> None:
    keys = [f"p/{number:02d}" for number in range(7)]
    fill(store, keys)
    found, prefixes, pages = everything(store, "p/", "", limit)
    assert (found, prefixes) == (keys, [])
    assert pages == -(-7 // limit)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_paging_with_groups(store: Store, limit: int) -> None:
    fill(store, ["p/a/1", "p/a/2", "p/b", "p/c/1", "p/c/2", "p/c/3", "p/d"])
    assert everything(store, "p/", "/", limit)[:2] == (["p/b", "p/d"], ["p/a/", "p/c/"])


def test_start_after(store: Store) -> None:
    fill(store, ["a", "b", "c", "d"])
    assert [info.key for info in store.list("", start_after="b").objects] == ["c", "d"]
    assert [info.key for info in store.list("", start_after="bb", limit=1).objects] == ["c"]
    assert store.list("", start_after="d").objects == []


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_a_page_from_a_name_on_shows_all_up_to_its_last(store: Store, limit: int) -> None:
    """What `fs/gaps.py` relies on, in the order of S3 and in that of a tree."""
    files, directories = ["a", "a-b", "a.txt", "b!", "c d", "n-2", "é"], ["a0", "b", "b-c", "c", "n", "n-1"]
    fill(store, [f"d/{name}" for name in files] + [f"d/{name}/x" for name in directories])
    names = sorted([*files, *directories])
    for start in ["!", "a", "a-\U0010ffff", "a\U0010ffff", "b", "b!\U0010ffff", "c", "n", "n-0\U0010ffff", "z"]:
        page = store.list("d/", delimiter="/", start_after=f"d/{start}", limit=limit)
        shown = {info.key[2:] for info in page.objects} | {prefix[2:-1] for prefix in page.prefixes}
        end = max(shown) if page.token is not None else "\U0010ffff"
        missed = {name for name in names if start < name and f"{name}_$folder$" <= end} - shown
        assert not missed, start


def test_utf8_byte_order(store: Store) -> None:
    keys = ["A", "Z", "a", "a-b", "a.b", "a0", "z", "é", "\ufb01", "\U0001f388"]
    fill(store, list(reversed(keys)))
    assert everything(store)[0] == keys


def test_flat_order_is_that_of_whole_keys(store: Store) -> None:
    keys = ["d-x", "d/a", "d0"]
    fill(store, keys)
    assert everything(store)[0] == keys


def test_empty_prefix_is_gone_with_its_last_object(store: Store) -> None:
    fill(store, ["d/x", "e"])
    store.delete("d/x")
    assert everything(store, "", "/")[:2] == (["e"], [])


def test_double_slash_is_a_prefix_of_its_own(store: Store) -> None:
    fill(store, ["a//b", "a/c"])
    assert everything(store, "a/", "/")[:2] == (["a/c"], ["a//"])
    assert everything(store, "a//", "/")[:2] == (["a//b"], [])
