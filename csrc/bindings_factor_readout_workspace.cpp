#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>

#include "bindings.h"
#include "kernels/factor_readout_workspace.h"
#include "runtime/cpu_features.h"

namespace brainfast {
namespace {

std::unique_ptr<FactorReadoutWorkspace> make_workspace(py::ssize_t vertices, py::ssize_t layers,
                                                       py::ssize_t channels, py::ssize_t height,
                                                       py::ssize_t width, bool align_corners,
                                                       const std::string& isa,
                                                       const std::string& precision) {
  constexpr py::ssize_t kMost = py::ssize_t{1} << 20;
  check(vertices >= 0, "vertices", "0 or more", std::to_string(vertices));
  check(layers >= 1 && channels >= 1, "layers and channels", "at least one of each",
        text_of({layers, channels}));
  check(height >= 1 && width >= 1 && height <= kMost / width, "grid",
        "a height and a width from 1, at most 2^20 pixels", text_of({height, width}));
  const Precision operands = precision_named(precision);
  const Isa chosen = select_isa(isa, operands);
  return std::make_unique<FactorReadoutWorkspace>(
      ReadoutShape{vertices, layers, channels, height, width, align_corners}, chosen, operands);
}

Sizes local_sizes(const ReadoutShape& shape, py::ssize_t images) {
  return {images, shape.layers, shape.channels, shape.height, shape.width};
}

void forward(FactorReadoutWorkspace& workspace, const py::array& local, const py::array& global,
             const py::array& space, const py::array& layer, const py::array& scale,
             const py::array& weight, const py::array& bias, py::array out) {
  const ReadoutShape& shape = workspace.shape();
  check_rank(local, "local", 5, "[B,L,D,H,W]");
  const py::ssize_t images = local.shape(0), vertices = shape.vertices;
  const ReadoutTokens<float> tokens{
      images, read<float>(local, "local", local_sizes(shape, images)),
      read<float>(global, "global_", {images, shape.layers, shape.channels})};
  const ReadoutParameters<float> parameters{
      read<float>(space, "space", {vertices, 2}),
      read<float>(layer, "layer", {vertices, shape.layers}),
      read<float>(scale, "scale", {vertices}),
      read<float>(weight, "weight", {vertices, shape.channels}),
      read<float>(bias, "bias", {vertices})};
  float* const to = write<float>(out, "out", {images, vertices});
  const py::gil_scoped_release release;
  workspace.forward(parameters, tokens, to);
}

using Wanted = std::array<std::optional<py::array>, 7>;

void backward(FactorReadoutWorkspace& workspace, const py::array& grad_output, Wanted out) {
  const ReadoutShape& shape = workspace.shape();
  check_rank(grad_output, "grad_output", 2, "[B,V]");
  const py::ssize_t images = grad_output.shape(0), vertices = shape.vertices;
  const float* const grad = read<float>(grad_output, "grad_output", {images, vertices});
  const auto wanted = [&](int index, const char* name, const Sizes& sizes) -> float* {
    return out[index] ? write<float>(*out[index], name, sizes) : nullptr;
  };
  ReadoutGradients<float> gradients;
  gradients.local = wanted(0, "grad_local", local_sizes(shape, images));
  gradients.global = wanted(1, "grad_global", {images, shape.layers, shape.channels});
  gradients.space = wanted(2, "grad_space", {vertices, 2});
  gradients.layer = wanted(3, "grad_layer", {vertices, shape.layers});
  gradients.scale = wanted(4, "grad_scale", {vertices});
  gradients.weight = wanted(5, "grad_weight", {vertices, shape.channels});
  gradients.bias = wanted(6, "grad_bias", {vertices});
  const py::gil_scoped_release release;
  workspace.backward(images, grad, gradients);
}

}  // namespace

void bind_factor_readout_workspace(py::module_& m) {
  py::class_<FactorReadoutWorkspace>(
      m, "FactorReadoutWorkspace",
      "Forward and backward of a training step, with memory that stays. `precision` is that of the "
      "operands: fp32 or bf16. Not for several threads at a time.")
      .def(py::init(&make_workspace), py::arg("vertices"), py::arg("layers"), py::arg("channels"),
           py::arg("height"), py::arg("width"), py::arg("align_corners") = false,
           py::arg("isa") = "", py::arg("precision") = "fp32")
      .def("forward", &forward, py::arg("local"), py::arg("global_"), py::arg("space"),
           py::arg("layer"), py::arg("scale"), py::arg("weight"), py::arg("bias"), py::arg("out"),
           "[B,L,D,H,W], [B,L,D], [V,2], [V,L], [V], [V,D], [V] -> out [B,V].")
      .def(
          "backward", &backward, py::arg("grad_output"), py::arg("out"),
          "grad_output [B,V] of the last forward -> gradients, written into `out`: local, global_, "
          "space, layer, scale, weight, bias, or None where not wanted.")
      .def_property_readonly("isa",
                             [](const FactorReadoutWorkspace& w) { return name_of(w.isa()); })
      .def_property_readonly(
          "precision", [](const FactorReadoutWorkspace& w) { return name_of(w.precision()); });
}

}  // namespace brainfast
