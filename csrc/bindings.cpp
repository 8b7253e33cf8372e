#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "kernels/factor_readout.h"
#include "runtime/cpu_features.h"
#include "runtime/cuda_info.h"
#include "runtime/thread_pool.h"

namespace brainfast {
namespace {

ReadoutShape shape_from(const py::array& layer, const py::array& weight, py::ssize_t height,
                        py::ssize_t width, bool align_corners) {
  check_rank(layer, "layer", 2, "[V,L]");
  check_rank(weight, "weight", 2, "[V,D]");
  const ReadoutShape shape{layer.shape(0), layer.shape(1), weight.shape(1),
                           height,         width,          align_corners};
  constexpr py::ssize_t kMost = py::ssize_t{1} << 20;
  check(shape.layers >= 1, "layer", "at least one layer", text_of(shape_of(layer)));
  check(shape.channels >= 1, "weight", "at least one channel", text_of(shape_of(weight)));
  check(height >= 1 && width >= 1 && height <= kMost / width, "grid",
        "a height and a width from 1, at most 2^20 pixels", text_of({height, width}));
  return shape;
}

template <class T>
ReadoutParameters<T> parameters_from(const ReadoutShape& shape, const py::array& space,
                                     const py::array& layer, const py::array& scale,
                                     const py::array& weight, const py::array* bias) {
  const py::ssize_t vertices = shape.vertices;
  return {read<T>(space, "space", {vertices, 2}), read<T>(layer, "layer", {vertices, shape.layers}),
          read<T>(scale, "scale", {vertices}),
          read<T>(weight, "weight", {vertices, shape.channels}),
          bias ? read<T>(*bias, "bias", {vertices}) : nullptr};
}

template <class T>
ReadoutTokens<T> tokens_from(const ReadoutShape& shape, const py::array& local,
                             const py::array& global) {
  check_rank(local, "local", 5, "[B,L,D,H,W]");
  const py::ssize_t images = local.shape(0);
  return {
      images,
      read<T>(local, "local", {images, shape.layers, shape.channels, shape.height, shape.width}),
      read<T>(global, "global_", {images, shape.layers, shape.channels})};
}

// Calls f with a zero of the type that `array` holds: float or double.
template <class F>
auto with_scalar(const py::array& array, F&& f) {
  if (py::isinstance<py::array_t<double>>(array)) return f(double{});
  return f(float{});
}

py::array forward(const py::array& local, const py::array& global, const py::array& space,
                  const py::array& layer, const py::array& scale, const py::array& weight,
                  const py::array& bias, bool align_corners, const std::string& isa) {
  check_rank(local, "local", 5, "[B,L,D,H,W]");
  const ReadoutShape shape =
      shape_from(layer, weight, local.shape(3), local.shape(4), align_corners);
  return with_scalar(local, [&](auto zero) -> py::array {
    using T = decltype(zero);
    const auto parameters = parameters_from<T>(shape, space, layer, scale, weight, &bias);
    const auto tokens = tokens_from<T>(shape, local, global);
    const Isa chosen = select_isa(isa);
    py::array_t<T> output(Sizes{tokens.images, shape.vertices});
    T* const to = output.mutable_data();
    const py::gil_scoped_release release;
    factor_readout_forward<T>(shape, parameters, tokens, to, chosen);
    return output;
  });
}

using OptionalArrays = std::array<std::optional<py::array>, 7>;

OptionalArrays backward(const py::array& grad_output, const py::array& local,
                        const py::array& global, const py::array& space, const py::array& layer,
                        const py::array& scale, const py::array& weight,
                        const std::array<bool, 7>& needs, bool align_corners,
                        const std::string& isa) {
  check_rank(local, "local", 5, "[B,L,D,H,W]");
  const ReadoutShape shape =
      shape_from(layer, weight, local.shape(3), local.shape(4), align_corners);
  return with_scalar(local, [&](auto zero) {
    using T = decltype(zero);
    const auto parameters = parameters_from<T>(shape, space, layer, scale, weight, nullptr);
    const auto tokens = tokens_from<T>(shape, local, global);
    const T* const grad = read<T>(grad_output, "grad_output", {tokens.images, shape.vertices});
    const Isa chosen = select_isa(isa);
    OptionalArrays results;
    const auto wanted = [&](int index, const Sizes& sizes) -> T* {
      if (!needs[index]) return nullptr;
      py::array_t<T> result(sizes);
      T* const data = result.mutable_data();
      results[index] = std::move(result);
      return data;
    };
    ReadoutGradients<T> gradients;
    gradients.local = wanted(0, shape_of(local));
    gradients.global = wanted(1, shape_of(global));
    gradients.space = wanted(2, shape_of(space));
    gradients.layer = wanted(3, shape_of(layer));
    gradients.scale = wanted(4, shape_of(scale));
    gradients.weight = wanted(5, shape_of(weight));
    gradients.bias = wanted(6, {shape.vertices});
    {
      const py::gil_scoped_release release;
      factor_readout_backward<T>(shape, parameters, tokens, grad, gradients, chosen);
    }
    return results;
  });
}

std::unique_ptr<FactorReadoutPlan> make_plan(const py::array& space, const py::array& layer,
                                             const py::array& scale, const py::array& weight,
                                             const py::array& bias, py::ssize_t height,
                                             py::ssize_t width, bool align_corners,
                                             const std::string& isa, const std::string& precision) {
  const ReadoutShape shape = shape_from(layer, weight, height, width, align_corners);
  const auto parameters = parameters_from<float>(shape, space, layer, scale, weight, &bias);
  const Precision operands = precision_named(precision);
  const Isa chosen = select_isa(isa, operands);
  const py::gil_scoped_release release;
  return std::make_unique<FactorReadoutPlan>(shape, parameters, chosen, operands);
}

py::array plan_run(const FactorReadoutPlan& plan, const py::array& local, const py::array& global,
                   std::optional<py::array> out) {
  const auto tokens = tokens_from<float>(plan.shape(), local, global);
  const Sizes sizes{tokens.images, plan.shape().vertices};
  py::array output = out ? std::move(*out) : py::array_t<float>(sizes);
  float* const to = write<float>(output, "out", sizes);
  const py::gil_scoped_release release;
  plan.run(tokens, to);
  return output;
}

py::tuple plan_adjoint(const FactorReadoutPlan& plan, const py::array& grad_output) {
  const ReadoutShape& shape = plan.shape();
  check_rank(grad_output, "grad_output", 2, "[O,V]");
  const py::ssize_t objectives = grad_output.shape(0);
  const float* const grad = read<float>(grad_output, "grad_output", {objectives, shape.vertices});
  py::array_t<float> local(
      Sizes{objectives, shape.layers, shape.channels, shape.height, shape.width});
  py::array_t<float> global(Sizes{objectives, shape.layers, shape.channels});
  float* const to_local = local.mutable_data();
  float* const to_global = global.mutable_data();
  {
    const py::gil_scoped_release release;
    plan.adjoint(objectives, grad, to_local, to_global);
  }
  return py::make_tuple(local, global);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = BRAINFAST_COMPILER;
  info["build_type"] = BRAINFAST_BUILD_TYPE;
  std::vector<std::string> isas{"portable"};
#if defined(BRAINFAST_X86_KERNELS)
  isas.insert(isas.end(), {"avx2", "avx512"});
#endif
#if defined(BRAINFAST_AVX512BF16_KERNELS)
  isas.emplace_back("avx512bf16");
#endif
#if defined(BRAINFAST_AMX_KERNELS)
  isas.emplace_back("amx");
#endif
  info["isas"] = isas;
  info["cuda"] = BRAINFAST_CUDA_NOTE;
  return info;
}

py::dict cuda_info_dict(int only) {
  const CudaInfo found = [only] {
    const py::gil_scoped_release release;
    return cuda_info(only);
  }();
  py::list devices;
  for (const CudaDevice& device : found.devices) {
    py::dict entry;
    entry["name"] = device.name;
    entry["capability"] = device.capability;
    entry["memory_bytes"] = device.memory_bytes;
    entry["problem"] = device.problem;
    devices.append(entry);
  }
  py::dict info;
  info["compiled"] = found.compiled;
  info["architectures"] = found.architectures;
  info["runtime_version"] = found.runtime_version;
  info["driver_version"] = found.driver_version;
  info["problem"] = found.problem;
  info["devices"] = devices;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of brainfast. Arrays are C-contiguous numpy arrays.";
  m.def("factor_readout_forward", &forward, py::arg("local"), py::arg("global_"), py::arg("space"),
        py::arg("layer"), py::arg("scale"), py::arg("weight"), py::arg("bias"), py::kw_only(),
        py::arg("align_corners") = false, py::arg("isa") = "",
        "[B,L,D,H,W], [B,L,D], [V,2], [V,L], [V], [V,D], [V] -> [B,V]; float32 or float64.");
  m.def("factor_readout_backward", &backward, py::arg("grad_output"), py::arg("local"),
        py::arg("global_"), py::arg("space"), py::arg("layer"), py::arg("scale"), py::arg("weight"),
        py::kw_only(), py::arg("needs"), py::arg("align_corners") = false, py::arg("isa") = "",
        "grad_output [B,V] -> gradients of local, global_, space, layer, scale, weight, bias; "
        "None where `needs` says no.");
  py::class_<FactorReadoutPlan>(m, "FactorReadoutPlan",
                                "The readout with its parameters packed once. `precision` is that "
                                "of weight and tokens: fp32, bf16 or bf16x3; sums are float32.")
      .def(py::init(&make_plan), py::arg("space"), py::arg("layer"), py::arg("scale"),
           py::arg("weight"), py::arg("bias"), py::arg("height"), py::arg("width"),
           py::arg("align_corners") = false, py::arg("isa") = "", py::arg("precision") = "fp32")
      .def("run", &plan_run, py::arg("local"), py::arg("global_"), py::arg("out") = py::none(),
           "local [B,L,D,H,W], global_ [B,L,D] -> [B,V], written into `out` where given.")
      .def("adjoint", &plan_adjoint, py::arg("grad_output"),
           "grad_output [O,V] -> (local [O,L,D,H,W], global_ [O,L,D]).")
      .def_property_readonly("vertices",
                             [](const FactorReadoutPlan& p) { return p.shape().vertices; })
      .def_property_readonly("layers", [](const FactorReadoutPlan& p) { return p.shape().layers; })
      .def_property_readonly("channels",
                             [](const FactorReadoutPlan& p) { return p.shape().channels; })
      .def_property_readonly("height", [](const FactorReadoutPlan& p) { return p.shape().height; })
      .def_property_readonly("width", [](const FactorReadoutPlan& p) { return p.shape().width; })
      .def_property_readonly("isa", [](const FactorReadoutPlan& p) { return name_of(p.isa()); })
      .def_property_readonly("precision",
                             [](const FactorReadoutPlan& p) { return name_of(p.precision()); })
      .def_property_readonly("nbytes", &FactorReadoutPlan::bytes)
      .def_property_readonly("flops_per_image", &FactorReadoutPlan::flops_per_image);
  bind_align_tokens(m);
  bind_factor_projection(m);
  bind_factor_readout_workspace(m);
  bind_score_topk(m);
  bind_vertex_embed(m);
#if defined(BRAINFAST_CUDA_KERNELS)
  bind_cuda(m);
  bind_cuda_blobgpt(m);
  bind_cuda_score_topk(m);
#endif
  m.def(
      "isa",
      [](const std::string& precision) {
        return name_of(select_isa("", precision_named(precision)));
      },
      py::arg("precision") = "fp32", "The path of the kernels that this precision takes now.");
  m.def(
      "supported_isas",
      [](const std::string& precision) {
        std::vector<std::string> names;
        for (Isa isa : supported_isas(precision_named(precision))) names.emplace_back(name_of(isa));
        return names;
      },
      py::arg("precision") = "fp32", "Every path that this precision can take here.");
  m.def("num_threads", &num_threads, py::call_guard<py::gil_scoped_release>());
  m.def("set_num_threads", &set_num_threads, py::arg("threads"),
        py::call_guard<py::gil_scoped_release>());
  m.def(
      "fma_ceiling",
      [](double seconds, const std::string& isa) {
        const Isa chosen = select_isa(isa);
        const py::gil_scoped_release release;
        return fma_ceiling(chosen, seconds);
      },
      py::arg("seconds") = 0.1, py::arg("isa") = "",
      "GFLOP/s of float32 multiply-adds on registers, on all threads of the pool.");
  m.def("build_info", &build_info);
  m.def("cuda_info", &cuda_info_dict, py::arg("only") = -1,
        "Every device, or one alone, which leaves the others untouched.");
}

}  // namespace brainfast
