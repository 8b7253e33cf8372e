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

const std::uint8_t* mask_of(const std::optional<py::array>& exclude, std::int64_t candidates) {
  if (!exclude) return nullptr;
  check(exclude->dtype().kind() == 'b', "exclude", "bool", py::str(exclude->dtype()));
  check(shape_of(*exclude) == Sizes{candidates} && (exclude->flags() & py::array::c_style),
        "exclude", ("a contiguous array " + text_of({candidates})).c_str(),
        text_of(shape_of(*exclude)));
  return static_cast<const std::uint8_t*>(exclude->data());
}

// The candidates, and what must outlive them.
CandidatePool pool_of(const py::array& pool, const std::optional<py::array>& scale) {
  const Rows from = rows_of(pool, "pool", "[N,F]", true);
  check(from.features >= 1, "pool", "at least one feature", text_of(shape_of(pool)));
  return {from.rows, from.features, from.data, from.kind, scale_of(scale, from), nullptr};
}

TemplateRows templates_of(const py::array& templates, const CandidatePool& pool) {
  const Rows wanted = rows_of(templates, "templates", "[O,F]", false);
  check(wanted.features == pool.features, "templates",
        ("shape [O," + std::to_string(pool.features) + "]").c_str(), text_of(shape_of(templates)));
  return {wanted.rows, wanted.data, wanted.kind};
}

// `call` is score_topk or a plan's run.
template <class Call>
py::tuple choose(const CandidatePool& pool, const py::array& templates, py::ssize_t k,
                 const std::optional<py::array>& exclude, const std::string& isa, bool screen,
                 const Call& call) {
  const TemplateRows rows = templates_of(templates, pool);
  check(k >= 0 && k <= pool.candidates, "k", ("0 to " + std::to_string(pool.candidates)).c_str(),
        std::to_string(k));
  const std::uint8_t* const mask = mask_of(exclude, pool.candidates);
  const Isa chosen = select_isa(isa, topk_precision(pool.kind, rows.kind));
  const bool screens = screen && can_screen(isa);
  py::array_t<float> scores(Sizes{rows.objectives, k});
  py::array_t<std::int64_t> indices(Sizes{rows.objectives, k});
  float* const to_scores = scores.mutable_data();
  std::int64_t* const to_indices = indices.mutable_data();
  {
    const py::gil_scoped_release release;
    call(rows, mask, to_scores, to_indices, chosen, screens);
  }
  return py::make_tuple(scores, indices);
}

py::tuple choose_once(const py::array& pool, const py::array& templates, py::ssize_t k,
                      const std::optional<py::array>& exclude,
                      const std::optional<py::array>& scale, const std::string& isa, bool screen) {
  CandidatePool candidates = pool_of(pool, scale);
  return choose(candidates, templates, k, exclude, isa, screen,
                [&](const TemplateRows& rows, const std::uint8_t* mask, float* scores,
                    std::int64_t* indices, Isa chosen, bool screens) {
                  candidates.exclude = mask;
                  score_topk(candidates, rows, k, scores, indices, chosen, screens);
                });
}

// With the arrays that it reads.
class Plan {
 public:
  Plan(py::array pool, std::optional<py::array> scale)
      : pool_(std::move(pool)), scale_(std::move(scale)), plan_(pool_of(pool_, scale_)) {}

  py::tuple run(const py::array& templates, py::ssize_t k, const std::optional<py::array>& exclude,
                const std::string& isa, bool screen) {
    return choose(plan_.pool(), templates, k, exclude, isa, screen,
                  [&](const TemplateRows& rows, const std::uint8_t* mask, float* scores,
                      std::int64_t* indices, Isa chosen, bool screens) {
                    plan_.run(rows, k, mask, scores, indices, chosen, screens);
                  });
  }

  std::int64_t bytes() const { return plan_.bytes(); }

 private:
  py::array pool_;
  std::optional<py::array> scale_;
  ScoreTopkPlan plan_;
};

}  // namespace

void bind_score_topk(py::module_& m) {
  m.def("score_topk", &choose_once, py::arg("pool"), py::arg("templates"), py::arg("k"),
        py::arg("exclude") = py::none(), py::kw_only(), py::arg("scale") = py::none(),
        py::arg("isa") = "", py::arg("screen") = true,
        "pool [N,F], templates [O,F] -> scores [O,k], indices [O,k]; exclude: bool [N]. "
        "pool: float32, bfloat16 as uint16, or int8 with scale [N]; templates: float32, or "
        "bfloat16 as uint16. Index -1 and score -inf where fewer than k candidates are left. "
        "screen: leave out by rounded products, where the processor has them, what cannot be "
        "chosen; the results are the same bits.");
  py::class_<Plan>(m, "ScoreTopkPlan",
                   "score_topk of one pool, again and again: `run` gives the same bits. The first "
                   "call that leaves out by rounded products keeps the rounded pool, a byte a "
                   "feature, which later ones read instead. The pool must not change meanwhile.")
      .def(py::init<py::array, std::optional<py::array>>(), py::arg("pool"),
           py::arg("scale") = py::none())
      .def("run", &Plan::run, py::arg("templates"), py::arg("k"), py::arg("exclude") = py::none(),
           py::kw_only(), py::arg("isa") = "", py::arg("screen") = true,
           "templates [O,F] -> scores [O,k], indices [O,k]; exclude: bool [N].")
      .def_property_readonly("nbytes", &Plan::bytes, "Of the rounded pool, 0 before there is one.");
}

}  // namespace brainfast
