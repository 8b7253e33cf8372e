"""Checkpoints in the layout of BlobGPT's public code, against that code's equations."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn.functional import batch_norm

from brainfast.blobgpt_import import import_blobgpt
from brainfast.data import Arrays, Group
from brainfast.errors import BrainfastError
from brainfast.files import load_tensors
from brainfast.group_encoder import GroupEncoder
from brainfast.vertex_space import VertexSpace
from command_line import brainfast

TRUNK, LAYERS = "eva02_tiny_patch14_224", (0, 2)
T, C, K, R, S = 257, 192, 8, 5, 3
OPTIONS = {"trunk": TRUNK, "layers": LAYERS}
LH, RH = [3, 5, 8, 10, 400], [2, 6, 7, 9]  # the union's vertices
V = len(LH) + len(RH)
VERTICES = {  # no subject has them all, and the order is not that of the maps
    "subj03": ([5, 8, 10, 400], [2, 6]),
    "subj01": ([3, 5, 10], [2, 6, 7, 9]),
}


def head_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """The head's arrays with the public names, with sizes of our own."""
    generator = torch.Generator().manual_seed(seed)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    state: dict[str, torch.Tensor] = {}
    for i in range(len(LAYERS)):
        norm = torch.nn.BatchNorm1d(K).state_dict()
        norm |= {"weight": new(K), "bias": new(K), "running_mean": new(K)}
        norm |= {"running_var": new(K).square() * 0.01, "num_batches_tracked": torch.tensor(77)}
        state |= {
            f"feat_projs.{i}.proj.weight1": new(K, T) / T,
            f"feat_projs.{i}.proj.weight2": new(K, C),
        }
        state |= {f"feat_projs.{i}.norm.{name}": value for name, value in norm.items()}
    return state | {
        "shared_proj.weight": new(R, K),
        "subj_proj.fc.weight": new(S * R, K),
        "subj_proj.fc.bias": new(S * R),
        "embed.weight": new(V, R),
        "embed.bias": new(V),
    }


@pytest.fixture(scope="module")
def tuned() -> torch.nn.Module:
    """A trunk whose weights nobody has published."""
    torch.manual_seed(5)
    model = timm.create_model(TRUNK, pretrained=False, num_classes=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "blocks" in name and parameter.ndim == 2:
                parameter.mul_(3)
    return model


@pytest.fixture
def write(tmp_path, tuned):
    """Writes a checkpoint as the public code does, with other contents where given."""

    def to(name: str = "ckpt.pt", **changes: object) -> Path:
        state = {
            "epoch": 4,
            "metric": np.float64(0.2087),
            "trunk": tuned.state_dict(),
            "encoder": head_state(),
        }
        torch.save(state | changes, tmp_path / name)
        return tmp_path / name

    return to


def pictures(count: int = 2, side: int = 224) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@torch.no_grad()
def public_responses(
    model: torch.nn.Module, state: dict[str, torch.Tensor], images: np.ndarray, subject: int | None
) -> np.ndarray:  # [B,V]
    """What the public code predicts: hooks on whole blocks, every token, the mean added twice."""
    pixels = torch.from_numpy(images).float().permute(0, 3, 1, 2) / 255
    mean, std = (
        torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std")
    )
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        model.blocks[layer].register_forward_hook(
            lambda _module, _inputs, output, layer=layer: seen.update({layer: output})
        )
        for layer in LAYERS
    ]
    model((pixels - mean) / std)
    for hook in hooks:
        hook.remove()
    state = {name: value.double() for name, value in state.items()}
    parts = []
    for i, layer in enumerate(LAYERS):
        assert seen[layer].shape == (len(images), T, C)
        maps, filters = (state[f"feat_projs.{i}.proj.weight{n}"] for n in (1, 2))
        projected = ((seen[layer].double() @ filters.T) * maps.T).sum(dim=1)
        statistics = [
            state[f"feat_projs.{i}.norm.{name}"]
            for name in ("running_mean", "running_var", "weight", "bias")
        ]
        parts.append(batch_norm(projected, *statistics, eps=1e-5))
    latent = torch.stack(parts).mean(dim=0)
    embed, centre = state["embed.weight"], state["embed.bias"]
    response = latent @ state["shared_proj.weight"].T @ embed.T + centre
    if subject is not None:
        own = latent @ state["subj_proj.fc.weight"].T + state["subj_proj.fc.bias"]
        response = response + own.view(-1, S, R)[:, subject] @ embed.T + centre
    return response.numpy()


def subject_data(name: str) -> Arrays:
    lh, rh = (np.array(side) for side in VERTICES[name])
    random = np.random.default_rng(len(lh))
    return Arrays(
        list(pictures(12, 16)),
        random.standard_normal((12, lh.size + rh.size)).astype(np.float32),
        random.standard_normal((lh.size + rh.size, 3)),
        space=VertexSpace("fsaverage", lh, rh, subject=name),
        subject=name,
        visual_angle_deg=8.4,
    )


def columns(name: str) -> list[int]:
    lh, rh = VERTICES[name]
    return [LH.index(v) for v in lh] + [len(LH) + RH.index(v) for v in rh]


def data() -> list[Arrays]:
    return [subject_data(name) for name in VERTICES]


def refusal(*arguments: object, **options: object) -> str:
    with pytest.raises(BrainfastError) as caught:
        import_blobgpt(*arguments, **(OPTIONS | options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


def test_responses_are_those_of_the_public_code(write, tuned):
    encoder = import_blobgpt(write(), **OPTIONS)
    images, state = pictures(), head_state()
    assert encoder.subjects == ("subj01", "subj02", "subj03")
    assert encoder.space.name == "custom"
    assert not encoder.trunk.config.pretrained
    for index, subject in enumerate(encoder.subjects):
        expected = public_responses(tuned, state, images, index)
        assert expected.std() > 0.1
        assert_close(encoder.respond(list(images), subject).values, expected)
        assert_close(encoder.twin(list(images), subject), expected)
    assert_close(
        encoder.respond(list(images), "group").values, public_responses(tuned, state, images, None)
    )


def test_a_subject_answers_in_its_own_vertices(write, tuned):
    encoder = import_blobgpt(write(), data=data(), **OPTIONS)
    assert encoder.subjects == ("subj01", "subj03"), "in the order of the maps"
    assert encoder.space.lh.tolist() == LH
    assert encoder.space.rh.tolist() == RH
    assert encoder.card.space.visual_angle_deg == 8.4
    images = pictures()
    for index, name in ((0, "subj01"), (2, "subj03")):
        expected = public_responses(tuned, head_state(), images, index)[:, columns(name)]
        response = encoder.respond(list(images), name)
        assert_close(response.values, expected)
        assert response.space == subject_data(name).space
    same = import_blobgpt(write(), data=Group(data()), **OPTIONS)
    assert same.card.model_hash == encoder.card.model_hash


def test_names_may_be_given_in_the_order_of_the_maps(write, tuned):
    encoder = import_blobgpt(write(), subjects=["subj03", "x", "subj01"], data=data(), **OPTIONS)
    assert encoder.subjects == ("subj03", "subj01")
    expected = public_responses(tuned, head_state(), pictures(), 2)
    found = encoder.respond(list(pictures()), "subj01").values
    assert_close(found, expected[:, columns("subj01")])


def test_the_card_tells_where_it_came_from(write):
    encoder = import_blobgpt(write(), **OPTIONS)
    training = encoder.card.training
    assert (training.steps, training.best_step) == (4, 4)
    assert training.recipe["imported"] == "ckpt.pt"
    assert len(training.recipe["sha256"]) == 64
    assert encoder.card.head.options["pca_mean"] == "twice"
    assert "0.2087" not in encoder.card.model_dump_json()
    assert encoder.goldens["subj01"].images.shape == (4, 224, 224, 3)
    own = import_blobgpt(write(), images=list(pictures(1)), **OPTIONS)
    assert np.array_equal(own.goldens["group"].images, pictures(1))


def test_it_saves_and_loads(write, tmp_path):
    encoder = import_blobgpt(write(), data=data(), **OPTIONS)
    again = GroupEncoder.load(encoder.save(tmp_path / "model"))
    assert again.card == encoder.card
    for subject in (*encoder.subjects, "group"):
        found, expected = (
            model.respond(list(pictures()), subject).values for model in (again, encoder)
        )
        assert np.array_equal(found, expected)


def test_phase_1_checkpoints_have_no_trunk(write, tmp_path, tuned):
    weights = tmp_path / "trunk.pt"
    torch.save(tuned.state_dict(), weights)
    whole = import_blobgpt(write(), **OPTIONS)
    parts = import_blobgpt(write("one.pt", trunk=None), trunk_weights=weights, **OPTIONS)
    assert parts.trunk.config.weights_hash == whole.trunk.config.weights_hash
    assert "one trunk" in refusal(write(), trunk_weights=weights)


def test_prefixes_and_extra_parts_are_left_out(write, tuned):
    trunk = {f"module.model.{name}": value for name, value in tuned.state_dict().items()}
    head = {f"_orig_mod.module.{name}": value for name, value in head_state().items()}
    optimizer = torch.optim.AdamW([torch.ones(2, requires_grad=True)]).state_dict()
    path = write("other.pt", trunk=trunk, encoder=head, optimizer=optimizer, args=Path("x"))
    plain = import_blobgpt(write(), **OPTIONS)
    with pytest.raises(BrainfastError, match="Path"):
        import_blobgpt(path, **OPTIONS)
    path = write("other.pt", trunk=trunk, encoder=head, optimizer=optimizer)
    assert import_blobgpt(path, **OPTIONS).card.model_hash == plain.card.model_hash


@pytest.mark.parametrize("axes", [(K, T, 1), (K, 1, T), (K, T)])
def test_axes_of_length_one_do_not_matter(write, axes):
    head = head_state()
    head["feat_projs.0.proj.weight1"] = head["feat_projs.0.proj.weight1"].reshape(axes)
    head["feat_projs.1.proj.weight2"] = head["feat_projs.1.proj.weight2"].reshape(K, C, 1, 1)
    found = import_blobgpt(write("axes.pt", encoder=head), **OPTIONS)
    assert found.card.model_hash == import_blobgpt(write(), **OPTIONS).card.model_hash


def test_maps_of_a_trunk_without_class_token_may_be_images(write):
    name, side = "vit_wee_patch16_reg1_gap_256", 224 // 16
    state = timm.create_model(name, pretrained=False, num_classes=0, img_size=224).state_dict()
    head = head_state()
    for i in range(len(LAYERS)):
        head[f"feat_projs.{i}.proj.weight1"] = torch.randn(K, side, side)
        head[f"feat_projs.{i}.proj.weight2"] = torch.randn(K, state["reg_token"].shape[-1])
    path = write(trunk=state, encoder=head)
    encoder = import_blobgpt(path, trunk=name, layers=LAYERS)
    maps = head["feat_projs.1.proj.weight1"]
    assert torch.equal(encoder.head.maps[1].reshape(K, side, side), maps)


def test_the_embedding_may_lie_in_a_file_of_its_own(write, tmp_path):
    head = head_state()
    embedding = {name: head.pop(f"embed.{name}") for name in ("weight", "bias")}
    wide = torch.cat([embedding["weight"], torch.randn(V, 3)], dim=1)
    torch.save(embedding | {"weight": wide}, tmp_path / "pca.pt")
    whole = import_blobgpt(write(), **OPTIONS)
    path = write("head.pt", encoder=head)
    parts = import_blobgpt(path, pca=tmp_path / "pca.pt", **OPTIONS)
    assert parts.card.model_hash == whole.card.model_hash
    both = import_blobgpt(write(), pca=tmp_path / "pca.pt", **OPTIONS)
    assert both.card.model_hash == whole.card.model_hash
    assert "--pca" in refusal(path)
    embedding["weight"][2, 1] += 0.25
    torch.save(embedding, tmp_path / "pca.pt")
    assert "a difference of up to 0.25" in refusal(write(), pca=tmp_path / "pca.pt")
    torch.save({"weight": wide[:, :4], "bias": embedding["bias"]}, tmp_path / "pca.pt")
    assert f"{R} or more" in refusal(path, pca=tmp_path / "pca.pt")
    torch.save({"components": wide}, tmp_path / "pca.pt")
    assert "weight and bias" in refusal(path, pca=tmp_path / "pca.pt")


BAD_HEADS = {
    "feat_projs.1.norm.running_var": (None, "1 missing: feat_projs.1.norm.running_var"),
    "feat_projs.0.proj.bias": (torch.ones(K), "1 unknown: feat_projs.0.proj.bias"),
    "feat_projs.2.proj.weight1": (torch.ones(K, T), "1 unknown: feat_projs.2"),
    "feat_projs.0.proj.weight1": (torch.ones(K, 16, 16), r"[8, 257], got [8, 16, 16]"),
    "feat_projs.0.proj.weight2": (torch.ones(C, K), "[8, 192], got [192, 8]"),
    "shared_proj.weight": (torch.ones(K), "shared_proj.weight with 2 axes"),
    "subj_proj.fc.weight": (torch.ones(S * R - 1, K), "multiple of 5"),
    "subj_proj.fc.bias": (torch.full((S * R,), torch.nan), "finite"),
    "feat_projs.0.norm.running_var": (-torch.ones(K), "variances"),
    "embed.bias": (torch.ones(V + 1), "embedding weight"),
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_bad_heads_are_named(write, name):
    value, message = BAD_HEADS[name]
    head = {key: item for key, item in (head_state() | {name: value}).items() if item is not None}
    assert message in refusal(write(encoder=head))


def test_bad_trunks_are_named(write, tuned):
    state = tuned.state_dict()
    path = write(trunk={n: v for n, v in state.items() if n != "blocks.1.attn.proj.weight"})
    assert "1 missing: blocks.1.attn.proj.weight" in refusal(path)
    path = write(trunk=state | {"cls_token": torch.full_like(state["cls_token"], torch.inf)})
    assert "cls_token" in refusal(path)
    assert "a trunk int" in refusal(write(trunk=3))
    assert "layers" in refusal(write(), layers=(0, 2, 4))
    assert "did you mean" in refusal(write(), trunk="eva02_tini_patch14_224")


def test_names_and_vertices_that_do_not_fit(write):
    assert "3 different names" in refusal(write(), subjects=["a", "b"])
    assert "3 different names" in refusal(write(), subjects=["a", "b", "a"])
    message = refusal(write(), subjects=["a", "b", "c"], data=data())
    assert "subject subj03: expected one of the checkpoint's: a, b, c" in message
    message = refusal(write(), data=[subject_data("subj01")])
    assert "9 vertices of the checkpoint" in message
    assert "got 7 vertices of subj01" in message


def test_other_files_are_refused(write, tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "pca.pt")
    assert "epoch, trunk and encoder" in refusal(tmp_path / "pca.pt")
    assert "epoch float" in refusal(write(epoch=1.5))
    assert "nothing there" in refusal(tmp_path / "none.pt")

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    assert "system" in refusal(write(metric=Attack()))
    assert not (tmp_path / "ran").exists()


def write_algonauts(folder: Path, lh: list[int], rh: list[int]) -> Path:
    """As much of a subject's folder as is read."""
    training = folder / "training_split"
    images, fmri = training / "training_images", training / "training_fmri"
    for place in (images, fmri, folder / "roi_masks"):
        place.mkdir(parents=True)
    for row, picture in enumerate(pictures(12, 8)):
        Image.fromarray(picture).save(images / f"train-{row + 1:04d}_nsd-{row:05d}.png")
    for side, vertices in (("lh", lh), ("rh", rh)):
        mask = np.zeros(163842, dtype=int)
        mask[vertices] = 1
        np.save(folder / f"roi_masks/{side}.all-vertices_fsaverage_space.npy", mask)
        values = np.random.default_rng(0).standard_normal((12, len(vertices)))
        np.save(fmri / f"{side}_training_fmri.npy", values.astype(np.float32))
    return folder


def test_the_command_writes_a_model_and_says_so(write, tmp_path):
    subject = write_algonauts(tmp_path / "subj02", LH, RH)
    options = ("--trunk", TRUNK, "--layers", "0,2", "--out", tmp_path / "model")
    code, out, err = brainfast("import", write(), subject, *options)
    assert (code, err) == (0, "")
    assert out == f"imported subj02: 9 vertices on fsaverage, epoch 4; model: {tmp_path}/model\n"
    found = GroupEncoder.load(tmp_path / "model")
    assert found.card.space.visual_angle_deg == 8.4
    state = head_state()
    arrays = load_tensors(tmp_path / "model" / "model.safetensors")
    own = state["subj_proj.fc.weight"].view(S, R, K)[1:2]
    assert np.array_equal(arrays["subject_weight"], own)


def test_the_command_tells_mistakes_in_one_line(write, tmp_path):
    options = ("--trunk", TRUNK, "--layers", "0,2", "--out", tmp_path / "model")
    for arguments in (
        (write("empty.pt", encoder={}), *options),
        (write(), *options, "--subjects", "a,b"),
        (write(), tmp_path / "subj09", *options),
        (tmp_path / "none.pt", *options),
        (write(), *options[:-1], tmp_path),
    ):
        code, out, err = brainfast("import", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("brainfast: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "model").exists()
