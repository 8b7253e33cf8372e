"""Trunks: timm image models that give every chosen layer's tokens in one forward pass."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.data.config import resolve_model_data_config

from .errors import BrainfastError
from .files import save_tensors
from .images import iter_pixels
from .strict_fp32 import strict_fp32
from .tokens import Tokens
from .trunk_weights import (
    FORMAT,
    hash_weights,
    hub_without_waiting,
    load_weights,
    parameter_arrays,
    read_weights,
    short,
)

if TYPE_CHECKING:
    from .card import TrunkConfig
    from .preprocessing import Preprocessing

__all__ = ["Trunk", "strict_fp32"]

WORKING_SIZE = 224
SAM_WORKING_SIZE = 1024


class Trunk(torch.nn.Module):
    """local_l, global_l = block l's residual stream, before any final norm: patches, class token.

    Global tokens are the class token; where the model has none (SAM, average-pooled and
    convolutional models) they are the mean over the patch tokens. Register tokens are left out.
    Blocks beyond the deepest chosen layer are dropped, so `config.weights_hash` covers the names
    and bytes of the parameters in use and no others. `config.pretrained` is true where timm can
    fetch the weights by name; random, tuned and imported ones need their file. `config.grid` is
    the first chosen layer's. Made frozen and in eval mode.
    Source: FactorTopy, section 3; the layers are those of timm's `forward_intermediates`.
    """

    def __init__(self, model: torch.nn.Module, config: TrunkConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.eval().requires_grad_(False)

    @classmethod
    def create(
        cls,
        name: str,
        *,
        layers: Sequence[int] | None = None,
        pretrained: bool = True,
        size: int | tuple[int, int] | None = None,
        seed: int = 0,
        block_gain: float = 1.0,
        weights: str | Path | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Trunk:
        """Build the timm model `name` with chosen `layers` (ascending; all when None).

        Weights come from `weights`, a safetensors or torch file of timm's or open_clip's, read
        without pickle; else from timm where `pretrained`; else they are timm's random
        initialisation under `seed`, with every Linear weight inside a block times `block_gain`.
        `size` (pixels) is 224, and 1024 for SAM, whatever the model's own default. `preprocessing`
        replaces timm's mean, std and interpolation.

        Errors: BrainfastError for an unknown name or layer, weights that cannot be fetched, and a
        file that lacks parameters or has other shapes.
        """
        from .card import TrunkConfig  # and with it pydantic, which running a trunk does without

        size = _working_size(name, size, preprocessing)
        random = weights is None and not pretrained
        if not random and block_gain != 1:
            raise BrainfastError(
                "block_gain", expected="1 for trained weights", got=str(block_gain)
            )
        model = _make(name, size, seed, pretrained=weights is None and pretrained)
        chosen = _check_layers(model, name, layers)
        state = None if weights is None else read_weights(Path(weights), model)
        model.prune_intermediate_layers(list(chosen), prune_norm=True, prune_head=True)
        if state is not None:
            load_weights(model, state, str(weights))
        if random:
            _scale_blocks(model, name, block_gain)
        preprocessing = preprocessing or _timm_preprocessing(model, size)
        shapes = _shapes(model, chosen, size)
        config = TrunkConfig(
            name=name,
            layers=chosen,
            size=size,
            pretrained=weights is None and pretrained,
            seed=seed,
            block_gain=block_gain,
            weights_hash=hash_weights(model),
            preprocessing=preprocessing,
            channels=tuple(shape[1] for shape in shapes),
            grid=(shapes[0][2], shapes[0][3]),
        )
        return cls(model, config)

    @classmethod
    def from_config(cls, config: TrunkConfig, weights: str | Path | None = None) -> Trunk:
        """Build the trunk that `config` describes, from `weights` where given.

        Errors: BrainfastError where the parameters' hash is not `config.weights_hash`.
        """
        trunk = cls.create(
            config.name,
            layers=config.layers,
            pretrained=config.pretrained,
            size=config.size,
            seed=config.seed,
            block_gain=config.block_gain if weights is None else 1.0,
            weights=weights,
            preprocessing=config.preprocessing,
        )
        shapes = (config.channels, config.grid)
        if (trunk.config.channels, trunk.config.grid) != shapes:
            raise BrainfastError(
                f"trunk {config.name}",
                expected=f"channels and grid {shapes}, as in the card",
                got=f"{(trunk.config.channels, trunk.config.grid)}",
                remedy="copy the whole model folder again",
            )
        got = trunk.config.weights_hash
        if got != config.weights_hash:
            raise BrainfastError(
                f"weights of trunk {config.name}",
                expected=f"hash {config.weights_hash[:12]}",
                got=f"{got[:12]} from {weights or 'timm'}",
                remedy="pass the trunk.safetensors that was saved with the model",
            )
        return cls(trunk.model, config)

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes this trunk's pixels."""
        return self.config.preprocessing

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.model.parameters()).device

    @property
    def class_token(self) -> bool:
        """Whether global tokens are the model's own, and no mean over patches."""
        return _has_class_token(self.model)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every layer's token grid."""
        shapes = _shapes(self.model, self.config.layers, self.config.size)
        return tuple((shape[2], shape[3]) for shape in shapes)

    def forward(
        self,
        pixels: torch.Tensor,  # [B,3,H,W]
    ) -> Tokens:
        """One pass, only as deep as the deepest chosen layer; raw grid, no final norm."""
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, *self.config.size):
            raise BrainfastError(
                "pixels", expected=f"[B,3,{self.config.size}]", got=str(list(pixels.shape))
            )
        answers = _intermediates(self.model, pixels, self.config.layers)
        if _has_class_token(self.model):
            local = tuple(patches for patches, _ in answers)
            global_ = tuple(prefix[:, 0] for _, prefix in answers)
        else:
            local = tuple(answers)
            global_ = tuple(patches.mean(dim=(2, 3)) for patches in local)
        return Tokens(local, global_, self.config.layers)

    def features(self, images: Any, batch_size: int = 16, *, start: int = 0) -> Iterator[Tokens]:
        """Tokens of `images` in strict fp32, a batch at a time, from image `start` on.

        `images` are those of `brainfast.images.as_images`, or a lazy sequence of single images.
        The next batch is decoded while the trunk works on this one. No gradient is recorded.
        """
        for pixels in iter_pixels(images, self.preprocessing, batch_size, start=start):
            with torch.no_grad(), strict_fp32():
                tokens = self(torch.from_numpy(pixels).to(self.device))
            yield tokens

    def save(self, path: str | Path) -> TrunkConfig:
        """Write the parameters in use as safetensors; return the config that describes the file.

        The hash is taken anew, so the config of a tuned trunk differs from `self.config`.
        """
        config = self.current_config()
        metadata = {"format": FORMAT, "name": config.name, "weights_hash": config.weights_hash}
        save_tensors(path, parameter_arrays(self.model), metadata)
        return config

    def current_config(self) -> TrunkConfig:
        """The config of the weights as they are now, for a trunk that was tuned."""
        digest = hash_weights(self.model)
        published = self.config.pretrained and digest == self.config.weights_hash
        return self.config.model_copy(update={"weights_hash": digest, "pretrained": published})


def _working_size(
    name: str, size: int | tuple[int, int] | None, preprocessing: Preprocessing | None
) -> tuple[int, int]:
    if size is None and preprocessing is not None:
        return preprocessing.size
    if size is None:
        size = SAM_WORKING_SIZE if name.startswith("samvit") else WORKING_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise BrainfastError("size", expected="at least 1 pixel", got=f"{height} x {width}")
    if preprocessing is not None and preprocessing.size != (height, width):
        raise BrainfastError(
            "size",
            expected=f"the preprocessing's {preprocessing.size}",
            got=f"{height} x {width}",
        )
    return height, width


def _make(name: str, size: tuple[int, int], seed: int, *, pretrained: bool) -> Any:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        remedy = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise BrainfastError("trunk", expected="a timm model", got=repr(name), remedy=remedy)
    if pretrained and not timm.is_model_pretrained(name):
        raise BrainfastError(
            f"trunk {name}",
            expected="published weights",
            got="none of that name",
            remedy="see timm.list_pretrained(), or give a weights file",
        )
    options: dict[str, Any] = {"num_classes": 0}
    hub = hub_without_waiting() if pretrained else nullcontext()
    try:
        published = timm.get_pretrained_cfg(name)
        if published is not None and published.fixed_input_size:
            options["img_size"] = size
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), hub:
            torch.manual_seed(seed)
            return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # hub, network, cache and timm's own: no common base
        got = short(error)
        if not pretrained:
            raise BrainfastError(
                f"trunk {name}", expected=f"a model of {size} pixels", got=got
            ) from error
        if isinstance(error, LocalEntryNotFoundError):
            got = "neither: the hub was not reached"
        raise BrainfastError(
            f"weights of trunk {name}",
            expected="a download or a cached copy",
            got=got,
            remedy="connect once, pass --weights FILE, or use a random trunk (pretrained=False)",
        ) from error


def _check_layers(model: Any, name: str, layers: Sequence[int] | None) -> tuple[int, ...]:
    if not hasattr(model, "forward_intermediates"):
        raise BrainfastError(
            f"trunk {name}", expected="a model with forward_intermediates", got="none"
        )
    depth = len(model.feature_info)
    chosen = tuple(range(depth)) if layers is None else tuple(int(layer) for layer in layers)
    ascending = list(chosen) == sorted(set(chosen))
    if not chosen or not ascending or chosen[0] < 0 or chosen[-1] >= depth:
        raise BrainfastError(
            "layers",
            expected=f"ascending distinct numbers in 0..{depth - 1} for {name}",
            got=str(list(chosen)),
        )
    return chosen


def _scale_blocks(model: torch.nn.Module, name: str, gain: float) -> None:
    if gain == 1:
        return
    matrices = [
        module.weight
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "blocks" in path.split(".")
    ]
    if not matrices or not math.isfinite(gain) or gain <= 0:
        got = f"{gain} for {name} with {len(matrices)} block matrices"
        raise BrainfastError("block_gain", expected="above 0, and a trunk with blocks", got=got)
    with torch.no_grad():
        for matrix in matrices:
            matrix.mul_(gain)


def _timm_preprocessing(model: torch.nn.Module, size: tuple[int, int]) -> Preprocessing:
    from .preprocessing import Preprocessing

    resolve: Any = resolve_model_data_config
    data = resolve(model)
    return Preprocessing(
        size=size, interpolation=data["interpolation"], mean=data["mean"], std=data["std"]
    )


def _has_class_token(model: Any) -> bool:
    signature = inspect.signature(model.forward_intermediates).parameters
    return "return_prefix_tokens" in signature and getattr(model, "cls_token", None) is not None


def _intermediates(model: Any, pixels: torch.Tensor, layers: tuple[int, ...]) -> list[Any]:
    options = {"return_prefix_tokens": True} if _has_class_token(model) else {}
    answers = model.forward_intermediates(
        pixels,
        indices=list(layers),
        norm=False,
        stop_early=True,
        output_fmt="NCHW",
        intermediates_only=True,
        **options,
    )
    return list(answers)


class _Shapes(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.layers = layers

    def forward(self, pixels: torch.Tensor) -> list[tuple[int, ...]]:
        answers = _intermediates(self.model, pixels, self.layers)
        local = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
        return [tuple(array.shape) for array in local]


def _shapes(
    model: torch.nn.Module, layers: tuple[int, ...], size: tuple[int, int]
) -> list[tuple[int, ...]]:
    """Shapes [1,C,H,W] of each layer's patches, by a pass on the meta device: nothing computed."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None) or 1
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    if any(side % edge for side, edge in zip(size, patch, strict=True)):
        # timm would leave the last rows and columns out, which crops the visual field.
        raise BrainfastError("size", expected=f"multiples of the patch {patch}", got=str(size))
    probe = _Shapes(model, layers)
    tensors = {**dict(probe.named_parameters()), **dict(probe.named_buffers())}
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    pixels = torch.empty(1, 3, *size, device="meta")
    try:
        shapes: list[tuple[int, ...]] = torch.func.functional_call(probe, empty, (pixels,))
    except Exception as error:  # timm asserts, torch raises: whatever the sizes run into
        raise BrainfastError(
            "size", expected="pixels that the trunk takes", got=f"{size} ({short(error)})"
        ) from error
    return shapes
