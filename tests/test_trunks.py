from __future__ import annotations

import subprocess
import sys

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from brainfast.card import TrunkConfig
from brainfast.errors import BrainfastError
from brainfast.images import preprocess
from brainfast.preprocessing import Preprocessing
from brainfast.trunks import Trunk, strict_fp32

VIT = "vit_tiny_patch16_224"
FAMILIES = {  # name: (size, class token, prefix tokens)
    VIT: (64, True, 1),
    "eva02_tiny_patch14_224": (56, True, 1),
    "vit_small_patch14_reg4_dinov2": (56, True, 5),
    "vit_wee_patch16_reg1_gap_256": (64, False, 1),
    "deit_tiny_distilled_patch16_224": (64, True, 2),
    "vit_small_patch16_dinov3": (64, True, 5),
}


def random_trunk(name: str = VIT, size: int = 32, **options) -> Trunk:
    return Trunk.create(name, pretrained=False, size=size, **options)


def pixels_for(trunk: Trunk, images: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, 3, *trunk.config.size, generator=generator)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_the_residual_stream_that_hooks_see(name):
    size, has_class, prefix = FAMILIES[name]
    layers = (0, 2, 3)
    trunk = random_trunk(name, size, layers=layers)
    model = trunk.model
    if has_class:  # distinct prefix tokens, so that taking the wrong one shows
        with torch.no_grad():
            model.cls_token.normal_()
    seen: dict[int, torch.Tensor] = {}
    for layer in layers:
        model.blocks[layer].register_forward_hook(
            lambda _module, _inputs, output, layer=layer: seen.update({layer: output})
        )
    tokens = trunk(pixels_for(trunk))
    side = size // (14 if "patch14" in name else 16)
    assert tokens.layers == layers
    assert trunk.config.grid == (side, side)
    assert trunk.config.channels == tokens.channels
    for layer, local, global_ in zip(layers, tokens.local, tokens.global_, strict=True):
        stream = seen[layer]
        assert stream.shape[1] == prefix + side * side
        patches = stream[:, prefix:]
        grid = patches.reshape(2, side, side, -1).permute(0, 3, 1, 2)
        torch.testing.assert_close(local, grid, rtol=0, atol=0)
        expected = stream[:, 0] if has_class else patches.mean(1)
        torch.testing.assert_close(global_, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_models_without_class_token_give_the_mean_and_their_own_grids(name):
    trunk = random_trunk(name, 64, layers=(1, 2))
    tokens = trunk(pixels_for(trunk))
    assert trunk.config.channels == tokens.channels
    assert trunk.config.grid == tokens.grids[0]
    assert tokens.grids[0] != tokens.grids[1]
    for local, global_ in zip(tokens.local, tokens.global_, strict=True):
        torch.testing.assert_close(global_, local.mean((2, 3)))


def test_sam_blocks_give_the_mean_and_work_at_1024():
    trunk = random_trunk("samvit_base_patch16", layers=(0,), size=64)
    tokens = trunk(pixels_for(trunk))
    assert tokens.grids == ((4, 4),)
    torch.testing.assert_close(tokens.global_[0], tokens.local[0].mean((2, 3)))
    del trunk
    assert Trunk.create("samvit_base_patch16", layers=(0,), pretrained=False).config.size == (
        1024,
        1024,
    )


def test_only_blocks_up_to_the_deepest_layer_are_kept_and_run():
    shallow, deep = random_trunk(layers=(1, 3)), random_trunk(layers=(1, 3, 11))
    assert len(shallow.model.blocks) == 4
    pixels = pixels_for(shallow)
    torch.testing.assert_close(shallow(pixels).local[1], deep(pixels).local[1], rtol=0, atol=0)
    assert shallow.config.weights_hash != deep.config.weights_hash


def test_default_is_every_layer_at_224():
    config = Trunk.create(VIT, pretrained=False).config
    assert config.layers == tuple(range(12))
    assert config.size == (224, 224)
    assert config.grid == (14, 14)


def test_working_size_and_squash_do_not_follow_the_models_own():
    config = Trunk.create("vit_base_patch16_clip_224", layers=(0,), pretrained=False).config
    own = timm.get_pretrained_cfg("vit_base_patch16_clip_224")
    assert config.preprocessing == Preprocessing(
        size=(224, 224), interpolation="bicubic", mean=own.mean, std=own.std
    )
    wide = random_trunk(layers=(0,), size=(32, 64))
    assert wide.config.grid == (2, 4)
    assert wide.preprocessing.size == (32, 64)


def test_given_preprocessing_replaces_timms():
    given = Preprocessing(size=(32, 32), interpolation="bilinear", mean=(0.4,) * 3, std=(0.2,) * 3)
    trunk = Trunk.create(VIT, pretrained=False, layers=(0,), preprocessing=given)
    assert trunk.preprocessing == given
    assert Trunk.from_config(trunk.config).preprocessing == given
    with pytest.raises(BrainfastError, match="size"):
        Trunk.create(VIT, pretrained=False, size=64, preprocessing=given)


def test_random_weights_follow_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = random_trunk(layers=(0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert random_trunk(layers=(0, 1)).config == first.config
    assert random_trunk(layers=(0, 1), seed=1).config.weights_hash != first.config.weights_hash
    code = (
        "from brainfast.trunks import Trunk;"
        f"t = Trunk.create({VIT!r}, pretrained=False, size=32, layers=(0, 1));"
        "print(t.config.weights_hash)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == first.config.weights_hash


@pytest.mark.parametrize("name", [VIT, "eva02_tiny_patch14_224"])
def test_block_gain_scales_block_matrices_and_nothing_else(name):
    size = 32 if name == VIT else 28
    plain, scaled = (random_trunk(name, size, layers=(0, 1), block_gain=gain) for gain in (1, 5))
    linear = {
        f"{path}.weight"
        for path, module in plain.model.named_modules()
        if path.startswith("blocks.") and isinstance(module, torch.nn.Linear)
    }
    assert len(linear) >= 8
    ours, theirs = plain.model.state_dict(), scaled.model.state_dict()
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value * 5 if key in linear else value)
    assert scaled.config.block_gain == 5


def test_trunk_is_frozen_in_eval_mode_and_lets_gradients_reach_the_pixels():
    trunk = random_trunk(layers=(1,))
    assert not any(module.training for module in trunk.modules())
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    pixels = pixels_for(trunk).requires_grad_()
    trunk(pixels).local[0].sum().backward()
    assert pixels.grad is not None
    trunk.model.blocks[0].attn.qkv.weight.requires_grad_(True)
    assert trunk(pixels_for(trunk)).local[0].requires_grad
    image = np.zeros((8, 8, 3), np.uint8)
    assert not next(trunk.features(image)).local[0].requires_grad


def test_features_are_the_forward_pass_of_preprocessed_images(tmp_path):
    trunk = random_trunk(layers=(0, 2))
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (20 + i, 30, 3), np.uint8) for i in range(5)]
    Image.fromarray(images[3]).save(tmp_path / "d.png")
    given = [*images[:3], tmp_path / "d.png", Image.fromarray(images[4])]
    expected = trunk(torch.from_numpy(preprocess(images, trunk.preprocessing)))
    batches = list(trunk.features(given, 2))
    assert [batch.B for batch in batches] == [2, 2, 1]
    got = torch.cat([batch.local[1] for batch in batches])
    torch.testing.assert_close(got, expected.local[1], rtol=1e-4, atol=1e-5)
    tail = torch.cat([batch.global_[0] for batch in trunk.features(given, 2, start=3)])
    torch.testing.assert_close(tail, expected.global_[0][3:], rtol=1e-4, atol=1e-5)


def test_strict_fp32_holds_inside_and_is_undone():
    backends = (torch.backends.cudnn.conv, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]

    @strict_fp32()
    def fail():
        raise RuntimeError([backend.fp32_precision for backend in backends])

    with pytest.raises(RuntimeError, match="'ieee', 'ieee'"):
        fail()
    assert [backend.fp32_precision for backend in backends] == before


def test_save_and_from_config_give_the_same_trunk(tmp_path):
    trunk = random_trunk(layers=(0, 3), seed=3, block_gain=2.0)
    path = tmp_path / "trunk.safetensors"
    assert trunk.save(path) == trunk.config
    pixels = pixels_for(trunk)
    for again in (Trunk.from_config(trunk.config), Trunk.from_config(trunk.config, path)):
        assert again.config == trunk.config
        torch.testing.assert_close(again(pixels).local[1], trunk(pixels).local[1], rtol=0, atol=0)
    config = TrunkConfig.model_validate_json(trunk.config.model_dump_json())
    assert Trunk.from_config(config, path).config == trunk.config


def test_a_tuned_trunk_is_told_from_the_one_it_came_from(tmp_path):
    trunk = random_trunk(layers=(0,))
    with torch.no_grad():
        trunk.model.blocks[0].attn.qkv.weight[0, 0] += 1
    path = tmp_path / "trunk.safetensors"
    tuned = trunk.save(path)
    assert tuned.weights_hash != trunk.config.weights_hash
    assert Trunk.from_config(tuned, path).config == tuned
    with pytest.raises(BrainfastError, match=r"weights of trunk.*hash"):
        Trunk.from_config(trunk.config, path)
    with pytest.raises(BrainfastError, match=r"weights of trunk.*hash"):
        Trunk.from_config(tuned)


def test_timm_weights_of_another_size_are_resampled(tmp_path):
    reference = timm.create_model(VIT, num_classes=10, img_size=64).eval()
    path = tmp_path / "timm.safetensors"
    save_file(reference.state_dict(), path)
    trunk = Trunk.create(VIT, size=64, layers=(0, 11), weights=path)
    assert not trunk.config.pretrained
    pixels = pixels_for(trunk)
    expected = reference.forward_intermediates(pixels, indices=[11], intermediates_only=True)[0]
    torch.testing.assert_close(trunk(pixels).local[1], expected)
    assert Trunk.create(VIT, size=32, layers=(0,), weights=path).config.grid == (2, 2)
    torch.save({"state_dict": reference.state_dict(), "epoch": 3}, tmp_path / "timm.pt")
    again = Trunk.create(VIT, size=64, layers=(0, 11), weights=tmp_path / "timm.pt")
    assert again.config == trunk.config


def open_clip_state(width: int = 768, blocks: int = 2) -> dict[str, torch.Tensor]:
    """The names and shapes that open_clip gives its ViT-B-16, with two of the twelve blocks."""
    generator = torch.Generator().manual_seed(0)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.02

    state = {
        "visual.class_embedding": new(width),
        "visual.positional_embedding": new(197, width),
        "visual.proj": new(width, 512),
        "visual.conv1.weight": new(width, 3, 16, 16),
        "text_projection": new(4, 4),
        "logit_scale": torch.tensor(1.0),
    }
    for norm in ("ln_pre", "ln_post"):
        state |= {f"visual.{norm}.weight": new(width) + 1, f"visual.{norm}.bias": new(width)}
    for block in range(blocks):
        name = f"visual.transformer.resblocks.{block}"
        state |= {
            f"{name}.attn.in_proj_weight": new(3 * width, width),
            f"{name}.attn.in_proj_bias": new(3 * width),
            f"{name}.attn.out_proj.weight": new(width, width),
            f"{name}.attn.out_proj.bias": new(width),
            f"{name}.mlp.c_fc.weight": new(4 * width, width),
            f"{name}.mlp.c_fc.bias": new(4 * width),
            f"{name}.mlp.c_proj.weight": new(width, 4 * width),
            f"{name}.mlp.c_proj.bias": new(width),
        }
        for norm in ("ln_1", "ln_2"):
            state |= {f"{name}.{norm}.weight": new(width) + 1, f"{name}.{norm}.bias": new(width)}
    return state


def test_open_clip_weights_give_what_their_own_block_computes(tmp_path):
    state = open_clip_state()
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    trunk = Trunk.create(
        "vit_base_patch16_clip_224", layers=(0,), weights=tmp_path / "open_clip_pytorch_model.bin"
    )
    pixels = pixels_for(trunk, 1)
    visual = {name.removeprefix("visual."): value for name, value in state.items()}
    block = {
        name.removeprefix("transformer.resblocks.0."): value
        for name, value in visual.items()
        if "resblocks.0." in name
    }
    functional = torch.nn.functional

    def norm(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        return functional.layer_norm(x, (768,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    patches = functional.conv2d(pixels, visual["conv1.weight"], stride=16).flatten(2).mT
    stream = torch.cat([visual["class_embedding"].expand(1, 1, -1), patches], 1)
    stream = norm(stream + visual["positional_embedding"], visual, "ln_pre")
    attention = torch.nn.MultiheadAttention(768, 12, batch_first=True)
    attention.load_state_dict(
        {name.removeprefix("attn."): v for name, v in block.items() if name.startswith("attn.")}
    )
    normed = norm(stream, block, "ln_1")
    stream = stream + attention(normed, normed, normed, need_weights=False)[0]
    hidden = functional.linear(
        norm(stream, block, "ln_2"), block["mlp.c_fc.weight"], block["mlp.c_fc.bias"]
    )
    hidden = functional.gelu(hidden)
    stream = stream + functional.linear(
        hidden, block["mlp.c_proj.weight"], block["mlp.c_proj.bias"]
    )
    tokens = trunk(pixels)
    torch.testing.assert_close(tokens.global_[0], stream[:, 0], rtol=1e-4, atol=1e-4)
    grid = stream[:, 1:].reshape(1, 14, 14, 768).permute(0, 3, 1, 2)
    torch.testing.assert_close(tokens.local[0], grid, rtol=1e-4, atol=1e-4)


class Hostile:
    def __reduce__(self):
        return print, ("ran",)


def test_bad_weight_files_are_named(tmp_path, capsys):
    whole = random_trunk(layers=(0,)).save(tmp_path / "whole.safetensors")
    assert whole.layers == (0,)
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"x": Hostile()}, tmp_path / "hostile.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    names = ["cut.safetensors", "text.safetensors", "text.pt", "hostile.pt", "list.pt", "none.pt"]
    for name in names:
        with pytest.raises(BrainfastError) as caught:
            Trunk.create(VIT, size=32, layers=(0,), weights=tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out
    with pytest.raises(BrainfastError, match=r"whole.*12 missing: blocks\.1\."):
        Trunk.create(VIT, size=32, layers=(1,), weights=tmp_path / "whole.safetensors")
    with pytest.raises(BrainfastError, match=r"whole.*expected .*\[.*got \["):
        Trunk.create(
            "vit_small_patch16_224", size=32, layers=(0,), weights=tmp_path / "whole.safetensors"
        )


@pytest.mark.parametrize("layers", [[], [1, 0], [1, 1], [-1], [0, 12]])
def test_bad_layers_are_refused(layers):
    with pytest.raises(BrainfastError, match=r"layers: .*0\.\.11"):
        random_trunk(layers=layers)


def test_bad_names_and_options_are_refused():
    with pytest.raises(BrainfastError, match="did you mean vit_tiny"):
        Trunk.create("vit_tinny_patch16_224", pretrained=False)
    with pytest.raises(BrainfastError, match="nonsense"):
        Trunk.create(f"{VIT}.nonsense", pretrained=False)
    with pytest.raises(BrainfastError, match="published weights"):
        Trunk.create(f"{VIT}.nonsense")
    with pytest.raises(BrainfastError, match="block_gain"):
        Trunk.create(VIT, block_gain=2.0)
    with pytest.raises(BrainfastError, match="block_gain"):
        random_trunk("resnet18", block_gain=2.0)
    with pytest.raises(BrainfastError, match="block_gain"):
        random_trunk(block_gain=float("nan"))
    for size in (0, 50, (32, 50)):  # timm would crop 50 to 48
        with pytest.raises(BrainfastError, match="size"):
            random_trunk(size=size)
    with pytest.raises(BrainfastError, match="pixels"):
        random_trunk(layers=(0,))(torch.zeros(1, 3, 32, 48))


def test_weights_that_cannot_be_fetched_are_told_in_one_line(monkeypatch, tmp_path):
    def no_network(*_args, **_kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BrainfastError, match=r"cached copy.*--weights FILE.*random trunk"
    ) as caught:
        Trunk.create(VIT)
    assert "\n" not in str(caught.value)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_strict_fp32_in_two_threads_restores_what_it_found():
    mkldnn = torch.backends.mkldnn.matmul
    before = mkldnn.fp32_precision
    first = strict_fp32()
    second = strict_fp32()
    try:
        mkldnn.fp32_precision = "bf16"
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert mkldnn.fp32_precision == "ieee"  # the second is still inside
        second.__exit__(None, None, None)
        assert mkldnn.fp32_precision == "bf16"
    finally:
        mkldnn.fp32_precision = before
