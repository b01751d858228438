"""What a model's name means: alias, hub id or folder, and what is said where it means nothing."""

import shutil

import hostile
import pytest

from mflux.errors import ModelError, UsageError
from mflux.weights import catalog
from mflux.weights.resolve import NETWORKS, SIDE_PARTS, resolve

BUILT_IN = ("schnell", "fill", "kontext", "depth", "canny", "controlnet", "upscaler", "redux", "in-context")
BUILT_IN += ("ic-edit", "try-on")


@pytest.mark.parametrize(
    ("alias", "row"),
    [
        ("schnell", "schnell"),
        ("dev", "dev"),
        ("krea", "krea-dev"),
        ("krea-dev", "krea-dev"),
        ("fill", "dev-fill"),
        ("dev-fill", "dev-fill"),
        ("kontext", "dev-kontext"),
        ("dev-kontext", "dev-kontext"),
        ("depth", "dev-depth"),
        ("canny", "dev-canny"),
        ("tiny", "tiny"),
        *((f"tiny/{name}", f"tiny/{name}") for name in BUILT_IN),
    ],
)
def test_aliases_name_their_rows(alias, row):
    assert catalog.find(alias).name == row


def test_the_bare_family_name_means_the_command_s_own_row():
    assert catalog.find("tiny", "fill").name == "tiny/fill"
    assert catalog.find("tiny", "base").name == "tiny"
    assert catalog.find("dev", "fill").name == "dev"


@pytest.mark.parametrize(
    ("name", "steps", "guidance", "tokens"),
    [
        ("schnell", 4, None, 256),
        ("dev", 25, 3.5, 512),
        ("krea", 25, 3.5, 512),
        ("fill", 25, 30.0, 512),
        ("kontext", 28, 2.5, 512),
        ("redux", 25, 3.5, 512),
        ("in-context", 25, 3.5, 512),
        ("ic-edit", 25, 30.0, 512),
        ("try-on", 25, 30.0, 512),
        ("depth", 25, 10.0, 512),
        ("canny", 25, 30.0, 512),
    ],
)
def test_defaults_are_the_contract_s(name, steps, guidance, tokens):
    row = catalog.find(name)
    assert (row.steps, row.guidance, row.text_tokens) == (steps, guidance, tokens)


@pytest.mark.parametrize("name", ["tiny", "tiny/fill"])
def test_the_built_in_models_draw_128_px_in_8_steps(name):
    row = catalog.find(name)
    assert (row.steps, row.text_tokens, row.side) == (8, 32, 128)


@pytest.mark.parametrize(
    ("name", "near"), [("schnel", "schnell"), ("Dev", "dev"), ("kontex", "kontext"), ("filll", "fill"), ("tiy", "tiny")]
)
def test_a_wrong_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(UsageError) as error:
        resolve(name)
    assert error.value.problem == f"unknown model `{name}`"
    assert f"`{near}`" in error.value.hint and error.value.field == "model"


@pytest.mark.parametrize("name", ["tiny/fil", "tiny/no-such", "tiny/"])
def test_the_built_in_family_is_never_looked_for_on_the_hub(name):
    with pytest.raises(UsageError) as error:
        resolve(name)
    assert "`tiny/" in error.value.hint


def test_an_unknown_base_model_is_refused(oracle_model):
    with pytest.raises(UsageError) as error:
        resolve(str(oracle_model("dev")), base_model="dve")
    assert error.value.field == "base_model" and "`dev`" in error.value.hint


@pytest.mark.parametrize(("name", "row"), [("dev", "dev"), ("schnell", "schnell"), ("fill", "dev-fill")])
def test_a_folder_s_row_is_read_from_its_transformer(oracle_model, name, row):
    source = resolve(str(oracle_model(name)))
    assert source.row.name == row
    assert all(source.folders[part] == oracle_model(name) / part for part in NETWORKS)


def test_a_base_model_gives_a_folder_its_defaults(oracle_model):
    assert resolve(str(oracle_model("dev")), base_model="krea").row.name == "krea-dev"


@pytest.mark.parametrize("part", NETWORKS)
def test_a_folder_that_lacks_a_part_is_no_model(oracle_model, tmp_path, part):
    model = hostile.copy_model(oracle_model("dev"), tmp_path / "model")
    shutil.rmtree(model / part)
    with pytest.raises(UsageError, match=f"it has no folder `{part}`"):
        resolve(str(model))


def test_a_built_in_model_has_no_other_family():
    assert resolve("tiny", base_model="tiny").row.name == "tiny"
    with pytest.raises(UsageError) as error:
        resolve("tiny", base_model="dev")
    assert error.value.field == "base_model" and error.value.hint


def test_a_linked_folder_is_a_model(oracle_model, tmp_path):
    (tmp_path / "link").symlink_to(oracle_model("dev"))
    assert resolve(str(tmp_path / "link")).row.name == "dev"


def test_a_hub_id_that_is_not_here_says_so_offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as error:
        resolve("some-owner/some-model")
    assert error.value.exit_code == 1
    assert error.value.problem.startswith("`some-owner/some-model` is not on this machine and cannot be downloaded")
    assert "connect to the network" in error.value.hint


def cached(hub, repo, source):
    """A finished download of a repository in a hub cache."""
    snapshot = hub / f"models--{repo.replace('/', '--')}" / "snapshots" / ("0" * 40)
    hostile.copy_model(source, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_a_finished_download_needs_no_network(monkeypatch, tmp_path, oracle_model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = cached(tmp_path, "some-owner/some-model", oracle_model("schnell"))
    source = resolve("some-owner/some-model", base_model="schnell")
    assert source.folders["vae"] == snapshot / "vae" and source.row.name == "schnell"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_redux_is_its_own_parts_and_dev_s(hub, oracle_model):
    dev = cached(hub, "black-forest-labs/FLUX.1-dev", oracle_model("dev"))
    own = cached(hub, "black-forest-labs/FLUX.1-Redux-dev", oracle_model("redux"))
    source = resolve("redux")
    assert source.row.name == resolve("black-forest-labs/FLUX.1-Redux-dev").row.name == "dev-redux"
    assert resolve("black-forest-labs/FLUX.1-Redux-dev").folders == source.folders
    assert {part: source.folders[part] for part in SIDE_PARTS} == {part: own / part for part in SIDE_PARTS}
    assert all(source.folders[part] == dev / part for part in NETWORKS)


def test_a_model_of_the_family_gets_redux_parts_where_the_task_asks_for_them(hub, oracle_model):
    own = cached(hub, "black-forest-labs/FLUX.1-Redux-dev", oracle_model("redux"))
    source = resolve(str(oracle_model("dev")), task="redux")
    assert source.folders["image_encoder"] == own / "image_encoder"
    assert "image_encoder" not in resolve(str(oracle_model("dev"))).folders
    assert "image_encoder" not in resolve(str(oracle_model("fill")), task="redux").folders


def test_try_on_is_its_own_transformer_and_fill_s_other_parts(hub, oracle_model):
    fill = cached(hub, "black-forest-labs/FLUX.1-Fill-dev", oracle_model("fill"))
    own = cached(hub, "xiaozaa/catvton-flux-beta", oracle_model("fill") / "transformer")
    source = resolve("try-on")
    assert (source.row.name, source.row.guidance) == ("dev-try-on", 30.0)
    assert source.folders["transformer"] == own
    assert all(source.folders[part] == fill / part for part in NETWORKS if part != "transformer")
    assert (
        resolve(str(oracle_model("fill")), task="try-on").folders["transformer"] == oracle_model("fill") / "transformer"
    )


def test_redux_without_its_parts_is_no_whole_download(hub, oracle_model):
    cached(hub, "black-forest-labs/FLUX.1-dev", oracle_model("dev"))
    own = cached(hub, "black-forest-labs/FLUX.1-Redux-dev", oracle_model("redux"))
    hostile.tensor_file(own / "image_embedder").unlink()
    with pytest.raises(ModelError, match=r"FLUX\.1-Redux-dev"):
        resolve("redux")


@pytest.mark.parametrize(("task", "row"), [("kontext", "dev-kontext"), ("redux", "dev-redux"), ("fill", "dev")])
def test_a_folder_s_row_is_that_of_the_task_where_its_channels_fit(hub, oracle_model, task, row):
    cached(hub, "black-forest-labs/FLUX.1-Redux-dev", oracle_model("redux"))
    assert resolve(str(oracle_model("dev")), task=task).row.name == row


def test_a_download_that_was_cut_off_is_not_taken_for_a_whole_one(monkeypatch, tmp_path, oracle_model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = cached(tmp_path, "some-owner/some-model", oracle_model("schnell"))
    hostile.tensor_file(snapshot / "vae").unlink()
    with pytest.raises(ModelError) as error:
        resolve("some-owner/some-model")
    assert "some-owner/some-model" in error.value.problem


def test_a_file_that_is_no_transformer_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(hostile.WHOLE)
    with pytest.raises(ModelError, match="is no FLUX"):
        resolve(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(UsageError, match=r"`.*model.ckpt` is no checkpoint"):
        resolve(str(tmp_path / "model.ckpt"))


def test_a_single_file_takes_its_other_parts_from_its_family(oracle_model, tmp_path):
    file = oracle_model("../cases/checkpoint-bfl/flux.safetensors")
    source = resolve(str(file), base_model="tiny")
    assert source.folders["transformer"] == file and source.row.name == "tiny"
    assert source.folders["vae"].parent == source.folders["text_encoder"].parent


@pytest.mark.parametrize("name", ["", " ", "n" * 300, "a/" + "n" * 300, "~no-such-user-here/model", "a\0b", "\udcff/x"])
def test_a_name_that_nothing_can_have_is_refused(name):
    with pytest.raises(UsageError):
        resolve(name)


@pytest.mark.parametrize("name", ["tiny/fill", "tiny/depth", "tiny/controlnet"])
def test_a_built_in_model_that_is_not_trained_yet_says_so(name, tmp_path, monkeypatch):
    monkeypatch.setattr("mflux.weights.resolve.BUILT_IN", tmp_path)
    with pytest.raises(ModelError, match=f"`{name}` is not trained yet"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "task", "row"),
    [
        ("dev", "upscaler", "dev-upscaler"),
        ("dev", "fill", "dev"),
        ("schnell", "upscaler", "schnell"),
        ("tiny", "fill", "tiny/fill"),
        ("tiny/schnell", "fill", "tiny/schnell"),
        ("tiny/schnell", "controlnet", "tiny/schnell"),
    ],
)
def test_a_bare_name_means_its_task_s_row_only_where_the_weights_are_the_same_or_built_in(name, task, row):
    assert catalog.find(name, task).name == row


def test_the_channels_of_every_task_are_known():
    assert {row.task for row in catalog.ROWS} == set(catalog.TASK_CHANNELS)
