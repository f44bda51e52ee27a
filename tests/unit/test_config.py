"""What a Config is made of: which source wins, and the sentence for each mistake."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluicefs.config import MiB, load, memory_limit, parse_duration, parse_mount_options, parse_size, split_target
from sluicefs.errors import InvalidMountConfigError

ACCOUNT = "0123456789abcdef" * 2
R2 = f"https://{ACCOUNT}.r2.cloudflarestorage.com"


def make(
    target: str = "bucket", flags: dict[str, Any] | None = None, environment: dict[str, str] | None = None, **more: Any
) -> Any:
    environment = {"R2_ACCOUNT_ID": ACCOUNT, "SLUICEFS_CONFIG": os.devnull, **(environment or {})}
    return load(target, "/mnt", flags, environment=environment, **more)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "sluicefs.toml"
        path.write_text(text)
        return str(path)

    return write


def fails(*args: Any, **more: Any) -> str:
    with pytest.raises(InvalidMountConfigError) as caught:
        make(*args, **more)
    text = str(caught.value)
    assert text.endswith((".", "?")) and "\n" not in text, "a sentence"
    return text


def test_an_account_id_gives_the_endpoint_provider_and_region() -> None:
    config = make()
    assert (config.endpoint, config.provider, config.region) == (R2, "r2", "auto")
    assert make(environment={"R2_ACCOUNT_ID": "", "CLOUDFLARE_ACCOUNT_ID": ACCOUNT}).endpoint == R2


def test_later_sources_win(write: Any) -> None:
    general = 'attr_ttl = 2\nmemory = "100M"\npart-size = "8M"\numask = "077"\n'
    file = write(general + '[buckets.DATA]\nbucket = "data"\nmemory = "200M"\numask = 0o027\n')
    assert make("DATA", file=file).memory == 200 * MiB
    assert make("DATA", file=file).umask == 0o027
    assert make("DATA", file=file).part_size == 8 * MiB
    assert make("DATA", file=file, environment={"SLUICEFS_MEMORY": "300M"}).memory == 300 * MiB
    assert make("DATA", {"memory": "400M"}, file=file, environment={"SLUICEFS_MEMORY": "300M"}).memory == 400 * MiB
    assert make("other", file=file).memory == 100 * MiB
    assert make("other", file=file).umask == 0o077
    assert make("DATA", file=file).bucket == "data"


def test_an_account_named_for_this_mount_beats_a_general_endpoint(write: Any) -> None:
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}
    assert make(environment=environment).endpoint == "http://127.0.0.1:9000"
    assert make(flags={"account_id": ACCOUNT}, environment=environment).endpoint == R2
    file = write(f'endpoint = "http://127.0.0.1:9000"\n[buckets.A]\nbucket = "abc"\naccount_id = "{ACCOUNT}"\n')
    assert make("A", file=file).endpoint == R2


def test_an_empty_environment_variable_is_as_good_as_none() -> None:
    assert make(environment={"AWS_ENDPOINT_URL": "", "AWS_REGION": ""}).endpoint == R2


@pytest.mark.parametrize(
    ("endpoint", "provider", "region"),
    [
        (f"https://{ACCOUNT}.eu.r2.cloudflarestorage.com/", "r2", "auto"),
        (f"https://{ACCOUNT}.r2.cloudflarestorage.com/bucket", "r2", "auto"),
        ("https://s3.eu-west-1.amazonaws.com", "s3", "eu-west-1"),
        ("https://s3.dualstack.eu-west-1.amazonaws.com", "s3", "eu-west-1"),
        ("https://storage.googleapis.com", "gcs", "auto"),
        ("http://127.0.0.1:9000", "other", "us-east-1"),
    ],
)
def test_the_endpoint_tells_provider_and_region(endpoint: str, provider: str, region: str) -> None:
    config = make(flags={"endpoint": endpoint})
    assert (config.provider, config.region) == (provider, region)
    assert config.endpoint == endpoint.rstrip("/").removesuffix("/bucket")


def test_a_region_alone_means_amazon() -> None:
    config = load("bucket", "/mnt", environment={"AWS_REGION": "eu-west-1", "SLUICEFS_CONFIG": os.devnull})
    assert (config.endpoint, config.provider, config.region) == ("https://s3.eu-west-1.amazonaws.com", "s3", "eu-west-1")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("bucket", ("bucket", "")),
        ("bucket:/users/1", ("bucket", "/users/1")),
        ("bucket:users/1/", ("bucket", "users/1/")),
        ("s3://bucket/a/b", ("bucket", "a/b")),
        ("r2://bucket", ("bucket", "")),
    ],
)
def test_targets(target: str, expected: tuple[str, str]) -> None:
    assert split_target(target) == expected


def test_prefixes_add_up_and_end_in_a_slash(write: Any) -> None:
    file = write('[buckets.DATA]\nbucket = "data"\nprefix = "/team"\n')
    assert make("DATA:/users", {"prefix": "/1/"}, file=file).prefix == "team/users/1/"
    assert make("DATA:/users", environment={"SLUICEFS_PREFIX": "of"}, file=file).prefix == "team/of/users/"
    assert make("bucket:/").prefix == ""


def test_memory_is_bounded_by_the_machine() -> None:
    memory = make().memory
    assert memory == max(64 * MiB, min(512 * MiB, memory_limit() // 4))
    assert memory_limit() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_cache_folder_and_a_cache_size_each_bring_the_other() -> None:
    assert make().cache_dir is None and make().cache_size is None
    assert make(flags={"cache_dir": "/var/cache/x"}).cache_size == 10 * 1024 * MiB
    assert make(flags={"cache_size": "1G"}).cache_dir.endswith("/sluicefs")


def test_the_mountpoint_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("bucket", "m", {"account_id": ACCOUNT}, environment={}).mountpoint == os.path.realpath(tmp_path / "m")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("512M", 512 * MiB),
        ("16MiB", 16 * MiB),
        ("16mb", 16 * MiB),
        ("1.5 g", 1536 * MiB),
        ("2T", 2 * 1024**4),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.integers(0, 2**50))
def test_a_plain_number_is_its_own_size(number: int) -> None:
    assert parse_size(str(number)) == number


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1 2", "0x10", "1e3", "١"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1", 1), ("1.5s", 1.5), ("200ms", 0.2), ("5min", 300), ("5m", 300), ("1h", 3600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


def test_options_in_fstab_form() -> None:
    tolerated = "rw,noauto,_netdev,nofail,user,x-systemd.automount,x-systemd.requires=net,comment=a"
    assert parse_mount_options(f"{tolerated},allow_other,cache-size=20G,umask=022") == {
        "allow_other": True,
        "cache_size": 20 * 1024 * MiB,
        "umask": 0o022,
    }
    assert parse_mount_options("ro") == {"read_only": True}
    assert parse_mount_options("") == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("cache_sizes=1G", "did you mean cache_size"),
        ("frobnicate", "no such option"),
        ("uid=me", "whole number"),
        ("uid", "needs a value"),
    ],
)
def test_wrong_options_in_fstab_form(words: str, says: str) -> None:
    with pytest.raises(InvalidMountConfigError, match=says):
        parse_mount_options(words)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"memory": "lots"}, "--memory must be a size such as 512M"),
        ({"memory": "1M"}, "--memory must be at least 64 MiB"),
        ({"part_size": "1M"}, "--part-size must be between 5 MiB and 4 GiB"),
        ({"file_mode": "rw-r--r--"}, "--file-mode must be an octal mode"),
        ({"file_mode": "0999"}, "--file-mode must be an octal mode"),
        ({"umask": "01777"}, "--umask must be an octal mask"),
        ({"uid": "root"}, "--uid must be a whole number"),
        ({"uid": "-1"}, "--uid must be a whole number"),
        ({"attr_ttl": "soon"}, "--attr-ttl must be a time"),
        ({"attr_ttl": "nan"}, "--attr-ttl must be a time"),
        ({"attr_ttl": float("nan")}, "--attr-ttl must be between"),
        ({"attrs": "some"}, "--attrs must be one of auto, listing, full"),
        ({"cache_dir": ""}, "--cache-dir must not be empty"),
        ({"write_mode": "fast"}, "--write-mode must be one of sync, back"),
        ({"read_only": "maybe"}, "--read-only must be true or false"),
        ({"region": 7}, "--region must be text"),
        ({"timeout": "0"}, "--timeout must be between 1 and 3600"),
        ({"endpoint": "example.com"}, "no URL"),
        ({"endpoint": "ftp://example.com"}, "no URL"),
        ({"endpoint": "https://"}, "no URL"),
        ({"endpoint": "https://host:port"}, "no URL"),
        ({"endpoint": "https://me:secret@example.com"}, "a name or a password"),
        ({"account_id": "my-account"}, "not a Cloudflare account's"),
        ({"prefix": "a/../b"}, "'..'"),
        ({"prefix": "a//b"}, "an empty part"),
    ],
)
def test_wrong_values_are_sentences(flags: dict[str, Any], says: str) -> None:
    text = fails(flags=flags)
    assert says in text
    assert "secret" not in text


@pytest.mark.parametrize("name", ["", "a", "UPPER", "under score", "../x", "a" * 64, "-a", ":/p"])
def test_names_that_are_no_buckets(name: str) -> None:
    fails(name)


def test_without_an_endpoint_it_says_what_to_give() -> None:
    with pytest.raises(InvalidMountConfigError, match=r"R2_ACCOUNT_ID.*AWS_REGION.*--endpoint"):
        load("bucket", "/mnt", environment={"SLUICEFS_CONFIG": os.devnull})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memroy = 1\n", "did you mean memory"),
        ("[buckets.A]\nbukket = 'x'\n", "[buckets.A]"),
        ("[buckets.A]\nsecret_access_key = 'x'\n", "may not hold secrets"),
        ("access_key_id = 'x'\n", "may not hold secrets"),
        ("memory = true\n[buckets.A]\nbucket = 'abc'\n", "needs a value"),
        ("buckets = 1\n", "bindings are tables"),
        ("[buckets.A]\nbucket = 7\n", "not a bucket's name"),
        ("[buckets.A]\nbucket = 'abc'\nread_only = 'yes please'\n", "must be true or false"),
        ("[buckets.A]\nbucket = 'abc'\nattr_ttl = [1]\n", "attr_ttl must be a number"),
        ("[buckets.A]\nread_only = true\n", "does not name its bucket"),
        ("= 1\n", "is not TOML"),
    ],
)
def test_mistakes_in_the_file_name_the_file(write: Any, text: str, says: str) -> None:
    file = write(text)
    message = fails("A", file=file)
    assert says in message
    assert says == "not a bucket's name" or file in message


def test_a_named_file_must_exist() -> None:
    assert "/nowhere.toml does not exist" in fails(file="/nowhere.toml")
    assert "/nowhere.toml does not exist" in fails(environment={"SLUICEFS_CONFIG": "/nowhere.toml"})


def test_the_file_in_this_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sluicefs.toml").write_text('[buckets.HERE]\nbucket = "here"\nread_only = true\n')
    config = load("HERE", "/mnt", environment={"R2_ACCOUNT_ID": ACCOUNT})
    assert (config.bucket, config.read_only) == ("here", True)
    with pytest.raises(InvalidMountConfigError, match="HERE"):
        load("THERE", "/mnt", environment={"R2_ACCOUNT_ID": ACCOUNT})


def test_an_unknown_variable_is_a_mistake() -> None:
    assert "did you mean SLUICEFS_MEMORY" in fails(environment={"SLUICEFS_MEMROY": "1G"})


def test_no_field_can_hold_a_secret() -> None:
    assert not [name for name in type(make()).__dataclass_fields__ if "secret" in name or "key" in name or "token" in name]
