"""The bodies of the nodes under ONNX Runtime against their twins in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from brainfast.bench.made_up import made_up_head
from brainfast.cells import cell_blocks
from brainfast.export import functions
from brainfast.ops import reference

OPSETS = (20, 22)


def run(
    function: onnx.FunctionProto,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    opset: int,
) -> np.ndarray:
    """One node of the function: `inputs` of any batch, then `constants`, by position."""
    found = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", *array.shape[1:]])
        for name, array in inputs.items()
    ]
    answer = helper.make_tensor_value_info("answer", onnx.TensorProto.FLOAT, ["B", "N"])
    graph = helper.make_graph(
        [
            helper.make_node(
                function.name,
                [*inputs, *constants],
                ["answer"],
                domain=functions.DOMAIN,
                **functions.ATTRIBUTES,
            )
        ],
        "one node",
        found,
        [answer],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph,
        functions=[function],
        ir_version=10,
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(functions.DOMAIN, functions.VERSION),
        ],
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    result: np.ndarray = session.run(None, dict(inputs))[0]
    return result


def normal(*shapes: Sequence[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def twin(function, *arrays):
    return function(*(torch.from_numpy(array).double() for array in arrays)).numpy()


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("part", "grid"), [(1 << 20, (3, 5)), (1, (3, 5)), (1, (1, 1))])
@pytest.mark.parametrize("images", [1, 3])
def test_readout_is_listing_1_in_parts_of_any_size(monkeypatch, opset, part, grid, images):
    monkeypatch.setattr(functions, "PART_BYTES", part)
    head = made_up_head(211, 3, 20, grid=grid)
    blocks = cell_blocks(head, 16)
    function = functions.readout_function(
        blocks=len(blocks.cell),
        width=16,
        cells=len(blocks.corners),
        layers=3,
        dim=20,
        opset=opset,
    )
    assert sum(node.op_type == "MatMul" for node in function.node) == (
        len(blocks.cell) if part == 1 else 1
    )
    local, global_ = normal((images, 3, 20, *grid), (images, 3, 20))
    found = run(function, {"local": local, "global_": global_}, vars(blocks), opset)
    constants = (head.space, head.layer, head.scale, head.weight, head.bias)
    expected = twin(reference.factor_readout, local, global_, *constants)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())


@pytest.mark.parametrize("opset", OPSETS)
def test_projection_and_embedding_are_their_twins(opset):
    tokens, filters, maps = normal((3, 7, 11), (13, 11), (13, 7))
    found = run(
        functions.projection_function(opset),
        {"tokens": tokens},
        {"filters": filters, "maps": maps},
        opset,
    )
    expected = twin(reference.factor_projection, tokens, filters, maps)
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())

    latent, weight, bias = normal((3, 13), (29, 13), (29,))
    found = run(
        functions.embed_function(opset),
        {"latent": latent},
        {"weight": weight, "bias": bias},
        opset,
    )
    expected = twin(reference.vertex_embed, latent, weight, bias)
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())


def test_functions_declare_what_tensorrt_looks_for():
    for function in (functions.projection_function(20), functions.embed_function(20)):
        declared = {entry.name: entry.s for entry in function.attribute_proto}
        assert declared == {"plugin_namespace": b"brainfast", "plugin_version": b"1"}
        assert function.domain == "brainfast"
