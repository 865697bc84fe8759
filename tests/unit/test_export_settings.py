from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from switchgear.collector import config
from switchgear.core.errors import Invalid


def load(folder: Path, text: str) -> config.CollectorConfig:
    file = folder / "collector.toml"
    file.write_text(text)
    return config.load(file)


def test_a_target_needs_no_more_than_its_url(tmp_path: Path) -> None:
    target = load(tmp_path, '[[remote_write]]\nurl = "https://tsdb:9090/api/v1/write"').remote_write[0]
    assert (target.label, target.interval_s, target.protocol) == ("tsdb:9090", 15.0, "1.0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[remote_write]]\nurl = "tsdb:9090"', "must begin with http://HOST or https://HOST"),
        ('[[remote_write]]\nurl = "http://tsdb:99999"', "must have a port from 0 to 65535"),
        ('[[remote_write]]\nurl = "http://user:secret@tsdb/"', "must have no user or password"),
        ('[[remote_write]]\nurl = "http://a b/"', "without spaces"),
        ('[[remote_write]]\nurl = "http://a/é"', "write other characters as %XX"),
        ('[[remote_write]]\nurl = "http://a/"\nheaders = {"a b" = "x"}', "'a b' cannot be the name of a header"),
        ('[[remote_write]]\nurl = "http://a/"\nheaders = {"a:" = "x"}', "'a:' cannot be the name of a header"),
        ('[[remote_write]]\nurl = "http://a/"\nheaders = {a = "x\\ny"}', "a must be one line of printable ASCII"),
        ('[[remote_write]]\nurl = "http://a/"\nheaders = {a = "€"}', "a must be one line of printable ASCII"),
        ('[[remote_write]]\nurl = "http://a/"\nexternal_labels = {__name__ = "x"}', "external_labels"),
        ('[[otlp_export]]\nurl = "http://a:4317/v1/metrics"', 'add protocol = "http"'),
        ('[[otlp_export]]\nurl = "http://a:4318/"\nprotocol = "http"', "/v1/metrics"),
        ('[[remote_write]]\nurl = "http://a/"\nkeep = "("', "no regular expression"),
        ('[[remote_write]]\nurl = "http://a/"\nheaders = {Authorization = "Bearer x"}', "bearer_token_file"),
        ('[[remote_write]]\nurl = "http://a/"\ncert_file = "x"', "cert_file and key_file belong together"),
        (
            '[[remote_write]]\nurl = "http://a/"\nbearer_token_file = "x"\nbasic_auth = {username = "u", password_file = "p"}',
            "not both",
        ),
        ('[[remote_write]]\nurl = "http://a/"\n[[remote_write]]\nurl = "http://a/b"', "give each a name of its own"),
        ('[[remote_write]]\nurl = "http://a/"\nexternal_labels = {"a.b" = "x"}', "external_labels"),
        ('[[remote_write]]\nurl = "http://a/"\nqueue_bytes_max = 3', "queue_bytes_max"),
        ('[[otlp_export]]\nurl = "http://a/"\nprotocol = "udp"', "protocol"),
    ],
)
def test_what_is_wrong_is_told_with_a_remedy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        load(tmp_path, text)


def test_a_password_in_a_url_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        load(tmp_path, '[[remote_write]]\nurl = "http://user:secret@tsdb/"')
    assert "secret" not in str(caught.value)


def test_the_examples_of_the_documentation_are_right(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "collector.md").read_text()
    blocks = re.findall(r"(?:^    .*\n)+", text.partition("\n## Export\n")[2].partition("\n## ")[0], re.MULTILINE)
    examples = [textwrap.dedent(block) for block in blocks if "[[" in block]
    loaded = [load(tmp_path, example) for example in examples if not example.startswith("python")]
    assert [len(one.remote_write) + len(one.otlp_export) for one in loaded] == [1] * 6
