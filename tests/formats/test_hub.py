from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ModelError
from limbeck.formats.hub import commit_of, commits_of, resolve, resolve_tokenizer
from limbeck.formats.load import load_bundle
from tests.reference.checkpoints import save

ANSWER = SimpleNamespace(headers={}, request=None, status_code=404)


def refused(name, *words):
    with pytest.raises(ModelError) as caught:
        resolve(str(name))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_model_folder_and_a_run_folder(tmp_path):
    save("gpt2", tmp_path / "run" / "model")
    assert resolve(str(tmp_path / "run" / "model")) == tmp_path / "run" / "model"
    assert resolve(str(tmp_path / "run")) == tmp_path / "run" / "model"


def test_home_is_expanded(tmp_path, monkeypatch):
    save("gpt2", tmp_path / "m")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/m") == tmp_path / "m"


def test_a_folder_without_a_model(tmp_path):
    refused(tmp_path, "config.json", str(tmp_path))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    refused(tmp_path / "x.safetensors", "is a file")


def test_a_mistyped_path_offers_its_neighbour(tmp_path):
    (tmp_path / "teacher").mkdir()
    refused(tmp_path / "techer", "does not exist", f"did you mean '{tmp_path / 'teacher'}'")
    refused(tmp_path / "no" / "where", "does not exist")
    refused("./a folder", "does not exist")
    refused("nowhere.gguf", "there is no file nowhere.gguf here")
    (tmp_path / "small.gguf").touch()
    refused(tmp_path / "smal.gguf", "there is no file", f"did you mean '{tmp_path / 'small.gguf'}'")


def test_the_hub_is_asked_for_no_pickle(tmp_path, monkeypatch):
    save("gpt2", tmp_path)
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve("owner/name") == tmp_path
    assert asked["name"] == "owner/name"
    from fnmatch import fnmatch

    def fetched(file):
        kept = any(fnmatch(file, p) for p in asked["allow_patterns"])
        return kept and not any(fnmatch(file, p) for p in asked["ignore_patterns"])

    wanted = ["config.json", "model.safetensors", "model.safetensors.index.json", "merges.txt", "tokenizer.model"]
    unwanted = [
        "pytorch_model.bin",
        "model.pt",
        "x.pkl",
        "tf_model.h5",
        "onnx/config.json",
        "original/model.safetensors",
    ]
    assert all(map(fetched, wanted)) and not any(map(fetched, unwanted))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.RepositoryNotFoundError("no\nsuch", response=ANSWER), ["neither a folder here nor a model on the Hub"]),
        (errors.GatedRepoError("terms", response=ANSWER), ["gated", "hf auth login"]),
        (errors.LocalEntryNotFoundError("offline"), ["cache has no copy", "HF_HUB_OFFLINE"]),
        (errors.HfHubHTTPError("500\nserver", response=ANSWER), ["cannot be fetched: 500 server"]),
        (errors.OfflineModeIsEnabled("offline"), ["cannot be fetched: offline"]),
        (RuntimeError("transport broke"), ["cannot be fetched: transport broke"]),
        (OSError(28, "No space left on device"), ["cannot be fetched", "No space left"]),
    ],
)
def test_each_failure_of_the_hub_is_one_sentence(error, words, monkeypatch):
    def fail(name, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("owner/name", "owner/name", *words)


def test_a_hub_model_with_pickles_alone(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path))
    refused("owner/name", "no safetensors", "pickled")
    (tmp_path / "config.json").unlink()
    refused("owner/name", "no config.json")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hub cache as huggingface_hub lays it out, read offline (conftest sets HF_HUB_OFFLINE)."""
    home = tmp_path / "hub"
    snapshot = home / "models--owner--tiny" / "snapshots" / ("0" * 40)
    save("gpt2", snapshot)
    refs = home / "models--owner--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))
    assert huggingface_hub.constants.is_offline_mode()
    return snapshot


def test_offline_the_cache_is_read(cache):
    assert resolve("owner/tiny") == cache
    assert load_bundle("owner/tiny").model.config.layers == 2


def test_a_revision_is_pinned_by_name(cache):
    older = cache.parent / ("a" * 40)
    save("gpt2", older)
    (cache.parents[1] / "refs" / "v1").write_text("a" * 40)
    assert resolve("owner/tiny@v1") == older and resolve("owner/tiny@" + "a" * 40) == older
    assert resolve("owner/tiny@main") == cache == resolve("owner/tiny")
    refused("owner/tiny@v2", "owner/tiny@v2", "cache has no copy")
    assert commit_of(older) == "a" * 40 and commit_of(older / "config.json") == "a" * 40
    assert commit_of(cache.parents[2]) is None and commit_of(cache.parent / "main") is None


def test_the_commits_of_a_recipe_are_known_once_it_has_loaded(cache):
    resolve("owner/tiny@main")
    recipe = {"model": "owner/tiny@main", "teacher": {"models": ["owner/other", "owner/tiny@main"]}, "steps": 3}
    assert commits_of(recipe) == {"owner/tiny@main": "0" * 40}
    assert commits_of({"model": "no/such"}) == {}


def test_a_revision_that_the_hub_lacks(monkeypatch):
    def fail(name, **options):
        assert (name, options["revision"]) == ("owner/tiny", "v9")
        raise errors.RevisionNotFoundError("no", response=ANSWER)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("owner/tiny@v9", "owner/tiny has no branch, tag or commit 'v9'")


def test_offline_and_not_cached(cache):
    refused("owner/other", "owner/other", "cache has no copy")
    refused("gpt2", "gpt2", "cache has no copy")


def test_a_tokenizer_may_lie_alone_in_its_folder(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a quiet night, a quiet sea"], 260)
    tokenizer.save(tmp_path / "alone")
    assert resolve_tokenizer(str(tmp_path / "alone")) == tmp_path / "alone"
    with pytest.raises(ModelError, match="neither a model nor a run"):
        resolve(str(tmp_path / "alone"))
    pair = tmp_path / "pair"
    pair.mkdir()
    (pair / "encoder.json").write_text("{}")
    with pytest.raises(ModelError):
        resolve_tokenizer(str(pair))
    (pair / "vocab.bpe").write_text("")
    assert resolve_tokenizer(str(pair)) == pair


def test_the_current_folder_and_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("gpt2", tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert resolve(".") == Path(".") and resolve("../here").name == "here"
    refused("/", "neither a model nor a run")
