#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings.h"
#include "kernels/score_topk.h"

namespace brainfast {
namespace {

struct Rows {
  py::ssize_t rows, features;
  const void* data;
  FeatureKind kind;
};

// numpy has no bfloat16: its bits come as uint16.
Rows rows_of(const py::array& array, const char* name, const char* letters, bool integers) {
  check_rank(array, name, 2, letters);
  const auto is = [&](char kind, py::ssize_t size) {
    return array.dtype().kind() == kind && array.itemsize() == size;
  };
  FeatureKind kind = FeatureKind::float32;
  if (is('u', 2)) {
    kind = FeatureKind::bfloat16;
  } else if (integers && is('i', 1)) {
    kind = FeatureKind::int8;
  } else if (!is('f', 4)) {
    fail(name, integers ? "float32, int8 or bfloat16 as uint16" : "float32 or bfloat16 as uint16",
         py::str(array.dtype()));
  }
  const auto address = reinterpret_cast<std::uintptr_t>(array.data());
  const bool plain = (array.flags() & py::array::c_style) && array.dtype().byteorder() != '>' &&
                     address % static_cast<std::uintptr_t>(array.itemsize()) == 0;
  check(plain, name, "a contiguous, aligned array", "another one");
  return {array.shape(0), array.shape(1), array.data(), kind};
}

const float* scale_of(const std::optional<py::array>& scale, const Rows& pool) {
  const bool integers = pool.kind == FeatureKind::int8;
  check(scale.has_value() == integers, "scale",
        integers ? "one for each candidate of an int8 pool" : "none for a pool that is not int8",
        scale ? "one" : "none");
  return scale ? read<float>(*scale, "scale", {pool.rows}) : nullptr;
}

const std::uint8_t* mask_of(const std::optional<py::array>& exclude, const Rows& pool) {
  if (!exclude) return nullptr;
  check(exclude->dtype().kind() == 'b', "exclude", "bool", py::str(exclude->dtype()));
  check(shape_of(*exclude) == Sizes{pool.rows} && (exclude->flags() & py::array::c_style),
        "exclude", ("a contiguous array " + text_of({pool.rows})).c_str(),
        text_of(shape_of(*exclude)));
  return static_cast<const std::uint8_t*>(exclude->data());
}

py::tuple choose(const py::array& pool, const py::array& templates, py::ssize_t k,
                 const std::optional<py::array>& exclude, const std::optional<py::array>& scale,
                 const std::string& isa, bool screen) {
  const Rows from = rows_of(pool, "pool", "[N,F]", true);
  const Rows wanted = rows_of(templates, "templates", "[O,F]", false);
  check(from.features >= 1, "pool", "at least one feature", text_of(shape_of(pool)));
  check(wanted.features == from.features, "templates",
        ("shape [O," + std::to_string(from.features) + "]").c_str(), text_of(shape_of(templates)));
  check(k >= 0 && k <= from.rows, "k", ("0 to " + std::to_string(from.rows)).c_str(),
        std::to_string(k));
  const CandidatePool candidates{from.rows, from.features,         from.data,
                                 from.kind, scale_of(scale, from), mask_of(exclude, from)};
  const TemplateRows rows{wanted.rows, wanted.data, wanted.kind};
  const Isa chosen = select_isa(isa, topk_precision(from.kind, wanted.kind));
  const bool screens = screen && can_screen(isa);
  py::array_t<float> scores(Sizes{wanted.rows, k});
  py::array_t<std::int64_t> indices(Sizes{wanted.rows, k});
  float* const to_scores = scores.mutable_data();
  std::int64_t* const to_indices = indices.mutable_data();
  {
    const py::gil_scoped_release release;
    score_topk(candidates, rows, k, to_scores, to_indices, chosen, screens);
  }
  return py::make_tuple(scores, indices);
}

}  // namespace

void bind_score_topk(py::module_& m) {
  m.def("score_topk", &choose, py::arg("pool"), py::arg("templates"), py::arg("k"),
        py::arg("exclude") = py::none(), py::kw_only(), py::arg("scale") = py::none(),
        py::arg("isa") = "", py::arg("screen") = true,
        "pool [N,F], templates [O,F] -> scores [O,k], indices [O,k]; exclude: bool [N]. "
        "pool: float32, bfloat16 as uint16, or int8 with scale [N]; templates: float32, or "
        "bfloat16 as uint16. Index -1 and score -inf where fewer than k candidates are left. "
        "screen: leave out by rounded products, where the processor has them, what cannot be "
        "chosen; the results are the same bits.");
}

}  // namespace brainfast
