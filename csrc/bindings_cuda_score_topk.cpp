// The CUDA kernels of score_topk. Memory is the caller's, given as addresses: no array library is
// known here. The caller answers for sizes and dtypes of what an address points to.
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bindings.h"
#include "kernels/score_topk_cuda.h"

namespace brainfast {
namespace cuda_topk {
namespace {

using Address = std::uintptr_t;

FeatureKind kind_named(const std::string& dtype) {
  if (dtype == "float32") return FeatureKind::float32;
  if (dtype == "bfloat16") return FeatureKind::bfloat16;
  if (dtype == "int8") return FeatureKind::int8;
  fail("dtype", "float32, bfloat16 or int8", dtype);
}

void choose(std::pair<Address, std::int64_t> scratch, std::pair<std::int64_t, std::int64_t> shape,
            Address pool, Address scale, Address exclude, std::int64_t objectives,
            Address templates, std::int64_t k, const std::string& dtype,
            std::pair<Address, Address> out, int device, Address stream) {
  const CandidatePool candidates{shape.first,
                                 shape.second,
                                 reinterpret_cast<const void*>(pool),
                                 kind_named(dtype),
                                 reinterpret_cast<const float*>(scale),
                                 reinterpret_cast<const std::uint8_t*>(exclude)};
  const py::gil_scoped_release release;
  cuda::score_topk(candidates, objectives, reinterpret_cast<const float*>(templates), k,
                   {reinterpret_cast<void*>(scratch.first), scratch.second},
                   reinterpret_cast<float*>(out.first), reinterpret_cast<std::int64_t*>(out.second),
                   {device, reinterpret_cast<void*>(stream)});
}

}  // namespace
}  // namespace cuda_topk

void bind_cuda_score_topk(py::module_& m) {
  m.attr("CUDA_MOST_CHOICES") = cuda::kMostChoices;
  m.def("cuda_topk_bytes", &cuda::topk_bytes, py::arg("candidates"), py::arg("objectives"),
        py::arg("k"), "Of the scratch memory of cuda_score_topk.");
  m.def("cuda_score_topk", &cuda_topk::choose, py::arg("scratch"), py::arg("shape"),
        py::arg("pool"), py::arg("scale"), py::arg("exclude"), py::arg("objectives"),
        py::arg("templates"), py::arg("k"), py::kw_only(), py::arg("dtype"), py::arg("out"),
        py::arg("device"), py::arg("stream"),
        "pool [N,F] of `dtype`, templates [O,F] float32 -> out, scores [O,k] float32 and indices "
        "[O,k] int64; scale [N] and exclude [N] (bytes), or 0. Arrays are addresses, all of them "
        "contiguous on `device`; scratch: (address, bytes). Nothing is waited for.");
}

}  // namespace brainfast
