#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "kernels/factor_projection.h"

namespace brainfast {
namespace {

using Arrays = std::vector<py::array>;

std::string item(const char* name, std::size_t index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

template <class T>
ProjectionInputs<T> inputs_from(const py::array& tokens, const py::array& filters,
                                const py::array& maps) {
  check_rank(tokens, "tokens", 3, "[B,T,C]");
  check_rank(filters, "filters", 2, "[K,C]");
  ProjectionInputs<T> inputs;
  inputs.images = tokens.shape(0);
  inputs.tokens = tokens.shape(1);
  inputs.channels = tokens.shape(2);
  inputs.latent = filters.shape(0);
  check(inputs.tokens >= 1 && inputs.channels >= 1, "tokens", "at least one token and one channel",
        text_of(shape_of(tokens)));
  inputs.source = read<T>(tokens, "tokens", shape_of(tokens));
  inputs.filters = read<T>(filters, "filters", {inputs.latent, inputs.channels});
  inputs.maps = read<T>(maps, "maps", {inputs.latent, inputs.tokens});
  return inputs;
}

// Calls f with a zero of the type that `array` holds: float or double.
template <class F>
auto with_scalar(const py::array& array, F&& f) {
  if (py::isinstance<py::array_t<double>>(array)) return f(double{});
  return f(float{});
}

py::array forward(const py::array& tokens, const py::array& filters, const py::array& maps,
                  const std::string& isa) {
  return with_scalar(tokens, [&](auto zero) -> py::array {
    using T = decltype(zero);
    const auto inputs = inputs_from<T>(tokens, filters, maps);
    const Isa chosen = select_isa(isa);
    py::array_t<T> latent(Sizes{inputs.images, inputs.latent});
    T* const to = latent.mutable_data();
    const py::gil_scoped_release release;
    factor_projection_forward<T>(inputs, to, chosen);
    return latent;
  });
}

using OptionalArrays = std::array<std::optional<py::array>, 3>;

OptionalArrays backward(const py::array& grad_output, const py::array& tokens,
                        const py::array& filters, const py::array& maps,
                        const std::array<bool, 3>& needs, const std::string& isa) {
  return with_scalar(tokens, [&](auto zero) {
    using T = decltype(zero);
    const auto inputs = inputs_from<T>(tokens, filters, maps);
    const T* const grad = read<T>(grad_output, "grad_output", {inputs.images, inputs.latent});
    const Isa chosen = select_isa(isa);
    OptionalArrays results;
    const auto wanted = [&](int index, const py::array& like) -> T* {
      if (!needs[index]) return nullptr;
      py::array_t<T> result(shape_of(like));
      T* const data = result.mutable_data();
      results[index] = std::move(result);
      return data;
    };
    const ProjectionGradients<T> gradients{wanted(0, tokens), wanted(1, filters), wanted(2, maps)};
    {
      const py::gil_scoped_release release;
      factor_projection_backward<T>(inputs, grad, gradients, chosen);
    }
    return results;
  });
}

std::unique_ptr<FactorProjectionPlan> make_plan(const Arrays& filters, const Arrays& maps,
                                                const std::optional<py::array>& bias,
                                                const std::string& isa,
                                                const std::string& precision) {
  check(!filters.empty(), "filters", "an array [K,C] for each layer", "an empty list");
  check(maps.size() == filters.size(), "maps",
        ("a list of " + std::to_string(filters.size())).c_str(),
        "one of " + std::to_string(maps.size()));
  check_rank(filters[0], "filters[0]", 2, "[K,C]");
  const py::ssize_t latent = filters[0].shape(0);
  std::vector<ProjectionLayer> layers;
  for (std::size_t i = 0; i < filters.size(); ++i) {
    const std::string filters_name = item("filters", i), maps_name = item("maps", i);
    check_rank(filters[i], filters_name.c_str(), 2, "[K,C]");
    check_rank(maps[i], maps_name.c_str(), 2, "[K,T]");
    const py::ssize_t channels = filters[i].shape(1), tokens = maps[i].shape(1);
    check(channels >= 1, filters_name, "at least one channel", text_of(shape_of(filters[i])));
    check(tokens >= 1, maps_name, "at least one token", text_of(shape_of(maps[i])));
    layers.push_back({tokens, channels,
                      read<float>(filters[i], filters_name.c_str(), {latent, channels}),
                      read<float>(maps[i], maps_name.c_str(), {latent, tokens})});
  }
  const float* const offset = bias ? read<float>(*bias, "bias", {latent}) : nullptr;
  const Precision operands = precision_named(precision);
  const Isa chosen = select_isa(isa, operands);
  const py::gil_scoped_release release;
  return std::make_unique<FactorProjectionPlan>(latent, static_cast<std::int64_t>(layers.size()),
                                                layers.data(), offset, chosen, operands);
}

// One layer's tokens: [B,T,C], or [B,C,H,W] with H*W = T, or H*W = T - 1 behind a class token.
ProjectionSource source_from(const FactorProjectionPlan& plan, const py::array& array,
                             const py::array* global, std::size_t layer, py::ssize_t images) {
  const std::string name = item("tokens", layer);
  const auto index = static_cast<std::int64_t>(layer);
  const py::ssize_t tokens = plan.tokens(index), channels = plan.channels(index);
  if (!global && array.ndim() == 3) {
    return {read<float>(array, name.c_str(), {images, tokens, channels}), nullptr, false};
  }
  check(array.ndim() == 4, name, global ? "[B,C,H,W]" : "[B,T,C] or [B,C,H,W]",
        "shape " + text_of(shape_of(array)));
  const py::ssize_t places = tokens - (global ? 1 : 0), height = array.shape(2),
                    width = array.shape(3);
  check(height * width == places, name, ("[B,C,H,W] with H*W = " + std::to_string(places)).c_str(),
        "shape " + text_of(shape_of(array)));
  const float* const local = read<float>(array, name.c_str(), {images, channels, height, width});
  if (!global) return {local, nullptr, true};
  const std::string global_name = item("global_", layer);
  return {local, read<float>(*global, global_name.c_str(), {images, channels}), true};
}

py::array run(const FactorProjectionPlan& plan, const Arrays& tokens,
              const std::optional<Arrays>& global, std::optional<py::array> out) {
  const auto layers = static_cast<std::size_t>(plan.layers());
  const std::string count = "a list of " + std::to_string(layers);
  check(tokens.size() == layers, "tokens", count.c_str(),
        "one of " + std::to_string(tokens.size()));
  if (global) {
    check(global->size() == layers, "global_", count.c_str(),
          "one of " + std::to_string(global->size()));
  }
  check(tokens[0].ndim() >= 1, "tokens[0]", "[B,T,C] or [B,C,H,W]", "a number");
  const py::ssize_t images = tokens[0].shape(0);
  std::vector<ProjectionSource> sources;
  sources.reserve(layers);
  for (std::size_t i = 0; i < layers; ++i) {
    sources.push_back(source_from(plan, tokens[i], global ? &(*global)[i] : nullptr, i, images));
  }
  const Sizes sizes{images, plan.latent()};
  py::array latent = out ? std::move(*out) : py::array_t<float>(sizes);
  float* const to = write<float>(latent, "out", sizes);
  const py::gil_scoped_release release;
  plan.run(images, sources.data(), to);
  return latent;
}

Arrays adjoint(const FactorProjectionPlan& plan, const py::array& grad_output) {
  check_rank(grad_output, "grad_output", 2, "[O,K]");
  const py::ssize_t objectives = grad_output.shape(0);
  const float* const grad = read<float>(grad_output, "grad_output", {objectives, plan.latent()});
  Arrays tokens;
  std::vector<float*> to;
  for (std::int64_t layer = 0; layer < plan.layers(); ++layer) {
    py::array_t<float> array(Sizes{objectives, plan.tokens(layer), plan.channels(layer)});
    to.push_back(array.mutable_data());
    tokens.push_back(std::move(array));
  }
  {
    const py::gil_scoped_release release;
    plan.adjoint(objectives, grad, to.data());
  }
  return tokens;
}

template <class F>
std::vector<std::int64_t> each_layer(const FactorProjectionPlan& plan, F&& f) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t layer = 0; layer < plan.layers(); ++layer) sizes.push_back(f(layer));
  return sizes;
}

}  // namespace

void bind_factor_projection(py::module_& m) {
  using Plan = FactorProjectionPlan;
  m.def("factor_projection_forward", &forward, py::arg("tokens"), py::arg("filters"),
        py::arg("maps"), py::kw_only(), py::arg("isa") = "",
        "[B,T,C], [K,C], [K,T] -> [B,K]; float32 or float64.");
  m.def("factor_projection_backward", &backward, py::arg("grad_output"), py::arg("tokens"),
        py::arg("filters"), py::arg("maps"), py::kw_only(), py::arg("needs"), py::arg("isa") = "",
        "grad_output [B,K] -> gradients of tokens, filters, maps; None where `needs` says no.");
  py::class_<Plan>(m, "FactorProjectionPlan",
                   "Several layers' projections and their sum, with the factors packed once. "
                   "`precision` is that of tokens, filters and maps: fp32, bf16 or bf16x3; sums "
                   "are float32.")
      .def(py::init(&make_plan), py::arg("filters"), py::arg("maps"), py::arg("bias") = py::none(),
           py::arg("isa") = "", py::arg("precision") = "fp32")
      .def("run", &run, py::arg("tokens"), py::arg("global_") = py::none(),
           py::arg("out") = py::none(),
           "A layer's tokens [B,T,C], or [B,C,H,W] with the class token, entry 0 of the maps, in "
           "global_ [B,C] -> [B,K], written into `out` where given.")
      .def("adjoint", &adjoint, py::arg("grad_output"),
           "grad_output [O,K] -> a list of [O,T,C], one a layer.")
      .def_property_readonly("latent", &Plan::latent)
      .def_property_readonly("layers", &Plan::layers)
      .def_property_readonly(
          "tokens",
          [](const Plan& plan) { return each_layer(plan, [&](auto l) { return plan.tokens(l); }); })
      .def_property_readonly("channels",
                             [](const Plan& plan) {
                               return each_layer(plan, [&](auto l) { return plan.channels(l); });
                             })
      .def_property_readonly("isa", [](const Plan& plan) { return name_of(plan.isa()); })
      .def_property_readonly("precision",
                             [](const Plan& plan) { return name_of(plan.precision()); })
      .def_property_readonly("nbytes", &Plan::bytes)
      .def_property_readonly("flops_per_image", &Plan::flops_per_image);
}

}  // namespace brainfast
