#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings.h"
#include "kernels/vertex_embed.h"

namespace brainfast {
namespace {

template <class T>
EmbedParameters<T> parameters_from(const py::array& weight, const py::array& bias) {
  check_rank(weight, "weight", 2, "[V,K]");
  const py::ssize_t vertices = weight.shape(0), latent = weight.shape(1);
  check(latent >= 1, "weight", "at least one entry of the latent", text_of(shape_of(weight)));
  return {vertices, latent, read<T>(weight, "weight", {vertices, latent}),
          read<T>(bias, "bias", {vertices})};
}

template <class T>
py::array forward_of(const py::array& latent, const py::array& weight, const py::array& bias,
                     const std::string& isa) {
  check_rank(latent, "latent", 2, "[B,K]");
  const auto parameters = parameters_from<T>(weight, bias);
  const py::ssize_t images = latent.shape(0);
  const T* const from = read<T>(latent, "latent", {images, parameters.latent});
  const Isa chosen = select_isa(isa);
  py::array_t<T> response(Sizes{images, parameters.vertices});
  T* const to = response.mutable_data();
  const py::gil_scoped_release release;
  vertex_embed_forward<T>(parameters, images, from, to, chosen);
  return response;
}

py::array forward(const py::array& latent, const py::array& weight, const py::array& bias,
                  const std::string& isa) {
  const bool wide = py::isinstance<py::array_t<double>>(latent);
  return wide ? forward_of<double>(latent, weight, bias, isa)
              : forward_of<float>(latent, weight, bias, isa);
}

std::unique_ptr<VertexEmbedPlan> make_plan(const py::array& weight, const py::array& bias,
                                           const std::string& isa, const std::string& precision) {
  const auto parameters = parameters_from<float>(weight, bias);
  const Precision operands = precision_named(precision);
  const Isa chosen = select_isa(isa, operands);
  const py::gil_scoped_release release;
  return std::make_unique<VertexEmbedPlan>(parameters, chosen, operands);
}

py::array run(const VertexEmbedPlan& plan, const py::array& latent, std::optional<py::array> out) {
  check_rank(latent, "latent", 2, "[B,K]");
  const py::ssize_t images = latent.shape(0);
  const float* const from = read<float>(latent, "latent", {images, plan.latent()});
  const Sizes sizes{images, plan.vertices()};
  py::array response = out ? std::move(*out) : py::array_t<float>(sizes);
  float* const to = write<float>(response, "out", sizes);
  const py::gil_scoped_release release;
  plan.run(images, from, to);
  return response;
}

py::array adjoint(const VertexEmbedPlan& plan, const py::array& grad_output) {
  check_rank(grad_output, "grad_output", 2, "[O,V]");
  const py::ssize_t objectives = grad_output.shape(0);
  const float* const grad = read<float>(grad_output, "grad_output", {objectives, plan.vertices()});
  py::array_t<float> latent(Sizes{objectives, plan.latent()});
  float* const to = latent.mutable_data();
  const py::gil_scoped_release release;
  plan.adjoint(objectives, grad, to);
  return latent;
}

}  // namespace

void bind_vertex_embed(py::module_& m) {
  using Plan = VertexEmbedPlan;
  m.def("vertex_embed_forward", &forward, py::arg("latent"), py::arg("weight"), py::arg("bias"),
        py::kw_only(), py::arg("isa") = "", "[B,K], [V,K], [V] -> [B,V]; float32 or float64.");
  py::class_<Plan>(m, "VertexEmbedPlan",
                   "The embedding with its weights packed once. `precision` is that of weight and "
                   "latent: fp32, bf16 or bf16x3; sums are float32. A response has the same bits "
                   "in any subset of vertices and any batch.")
      .def(py::init(&make_plan), py::arg("weight"), py::arg("bias"), py::arg("isa") = "",
           py::arg("precision") = "fp32")
      .def("run", &run, py::arg("latent"), py::arg("out") = py::none(),
           "[B,K] -> [B,V], written into `out` where given.")
      .def("adjoint", &adjoint, py::arg("grad_output"), "grad_output [O,V] -> [O,K].")
      .def_property_readonly("vertices", &Plan::vertices)
      .def_property_readonly("latent", &Plan::latent)
      .def_property_readonly("isa", [](const Plan& plan) { return name_of(plan.isa()); })
      .def_property_readonly("precision",
                             [](const Plan& plan) { return name_of(plan.precision()); })
      .def_property_readonly("nbytes", &Plan::bytes)
      .def_property_readonly("flops_per_image", &Plan::flops_per_image);
}

}  // namespace brainfast
