#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "kernels/align_tokens.h"

namespace brainfast {
namespace {

constexpr py::ssize_t kMostPixels = py::ssize_t{1} << 20;

using Arrays = std::vector<py::array>;
using Grid = std::pair<py::ssize_t, py::ssize_t>;
using Outputs = std::pair<py::array, py::array>;

std::string item(const char* name, std::size_t index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

void check_count(const Arrays& arrays, const char* name, std::size_t count) {
  check(arrays.size() == count, name, ("a list of " + std::to_string(count)).c_str(),
        "one of " + std::to_string(arrays.size()));
}

// The numbers of a float32 array. A strided one is replaced by its copy.
const float* read_strided(py::array& array, const std::string& name, const Sizes& shape) {
  if (py::isinstance<py::array_t<float>>(array) && !(array.flags() & py::array::c_style)) {
    array = py::array_t<float, py::array::c_style>::ensure(array);
  }
  return read<float>(array, name.c_str(), shape);
}

void check_grid(const std::string& name, py::ssize_t height, py::ssize_t width) {
  check(height >= 1 && width >= 1 && height <= kMostPixels / width, name,
        "a height and a width from 1, at most 2^20 pixels", text_of({height, width}));
}

std::unique_ptr<AlignTokensPlan> make_plan(Arrays bottleneck_local, Arrays bottleneck_global,
                                           py::array offset_local, py::array offset_global,
                                           const Grid& grid, bool pool_space,
                                           const std::string& isa) {
  const std::size_t layers = bottleneck_local.size();
  check(layers >= 1, "bottleneck_local", "at least one layer", "an empty list");
  check_count(bottleneck_global, "bottleneck_global", layers);
  check_rank(offset_local, "offset_local", 2, "[L,D]");
  const py::ssize_t channels = offset_local.shape(1);
  check(channels >= 1, "offset_local", "at least one channel", text_of(shape_of(offset_local)));
  check_grid("grid", grid.first, grid.second);
  std::vector<std::int64_t> trunk_channels;
  std::vector<const float*> local, global;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const std::string name = item("bottleneck_local", layer);
    py::array& matrix = bottleneck_local[layer];
    check_rank(matrix, name.c_str(), 2, "[D,C]");
    const Sizes sizes{channels, matrix.shape(1)};
    check(sizes[1] >= 1, name, "at least one trunk channel", text_of(shape_of(matrix)));
    trunk_channels.push_back(sizes[1]);
    local.push_back(read_strided(matrix, name, sizes));
    global.push_back(
        read_strided(bottleneck_global[layer], item("bottleneck_global", layer), sizes));
  }
  AlignShape shape;
  shape.layers = static_cast<std::int64_t>(layers);
  shape.channels = channels;
  shape.height = grid.first;
  shape.width = grid.second;
  shape.pool_space = pool_space;
  shape.trunk_channels = trunk_channels.data();
  const Sizes offsets{static_cast<py::ssize_t>(layers), channels};
  const AlignParameters parameters{local.data(), global.data(),
                                   read_strided(offset_local, "offset_local", offsets),
                                   read_strided(offset_global, "offset_global", offsets)};
  const Isa chosen = select_isa(isa);
  const py::gil_scoped_release release;
  return std::make_unique<AlignTokensPlan>(shape, parameters, chosen);
}

Outputs run(const AlignTokensPlan& plan, Arrays local, Arrays global, std::optional<Outputs> out) {
  const AlignShape& shape = plan.shape();
  check_count(local, "local", shape.layers);
  check_count(global, "global_", shape.layers);
  std::vector<AlignSource> sources;
  std::vector<const float*> vectors;
  check_rank(local[0], "local[0]", 4, "[B,C,H,W]");
  const py::ssize_t images = local[0].shape(0);
  for (std::size_t layer = 0; layer < local.size(); ++layer) {
    const std::string name = item("local", layer);
    check_rank(local[layer], name.c_str(), 4, "[B,C,H,W]");
    const py::ssize_t height = local[layer].shape(2), width = local[layer].shape(3);
    const py::ssize_t channels = shape.trunk_channels[layer];
    check_grid(name, height, width);
    sources.push_back(
        {read_strided(local[layer], name, {images, channels, height, width}), height, width});
    vectors.push_back(read_strided(global[layer], item("global_", layer), {images, channels}));
  }
  const Sizes global_sizes{images, shape.layers, shape.channels};
  Sizes local_sizes = global_sizes;
  local_sizes.push_back(shape.pool_space ? 1 : shape.height);
  local_sizes.push_back(shape.pool_space ? 1 : shape.width);
  Outputs result = out ? std::move(*out)
                       : Outputs{py::array_t<float>(local_sizes), py::array_t<float>(global_sizes)};
  float* const to_local = write<float>(result.first, "out[0]", local_sizes);
  float* const to_global = write<float>(result.second, "out[1]", global_sizes);
  const py::gil_scoped_release release;
  plan.run({images, sources.data(), vectors.data()}, to_local, to_global);
  return result;
}

}  // namespace

void bind_align_tokens(py::module_& m) {
  using Plan = AlignTokensPlan;
  py::class_<Plan>(m, "AlignTokensPlan",
                   "Raw tokens to aligned ones, with the bottlenecks packed once; float32.")
      .def(py::init(&make_plan), py::arg("bottleneck_local"), py::arg("bottleneck_global"),
           py::arg("offset_local"), py::arg("offset_global"), py::arg("grid"),
           py::arg("pool_space") = false, py::arg("isa") = "")
      .def("run", &run, py::arg("local"), py::arg("global_"), py::arg("out") = py::none(),
           "[B,C,H_l,W_l] and [B,C] a layer -> (local [B,L,D,H,W], global_ [B,L,D]), written into "
           "`out` where given. A token that is not finite is a ValueError.")
      .def_property_readonly("layers", [](const Plan& p) { return p.shape().layers; })
      .def_property_readonly("channels", [](const Plan& p) { return p.shape().channels; })
      .def_property_readonly("trunk_channels",
                             [](const Plan& p) {
                               const AlignShape& shape = p.shape();
                               return std::vector<std::int64_t>(
                                   shape.trunk_channels, shape.trunk_channels + shape.layers);
                             })
      .def_property_readonly("grid",
                             [](const Plan& p) { return Grid(p.shape().height, p.shape().width); })
      .def_property_readonly("pool_space", [](const Plan& p) { return p.shape().pool_space; })
      .def_property_readonly("isa", [](const Plan& p) { return name_of(p.isa()); })
      .def_property_readonly("nbytes", &Plan::bytes)
      .def_property_readonly("flops_per_image", &Plan::flops_per_image);
}

}  // namespace brainfast
