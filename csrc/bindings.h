// How the bindings look at numpy arrays: errors name the array, what was expected and what came.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "runtime/check.h"

namespace brainfast {

namespace py = pybind11;

using Sizes = std::vector<py::ssize_t>;

inline std::string text_of(const Sizes& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i) text += ',';
    text += std::to_string(shape[i]);
  }
  return text += ']';
}

inline Sizes shape_of(const py::array& array) {
  return Sizes(array.shape(), array.shape() + array.ndim());
}

inline void check_rank(const py::array& array, const char* name, py::ssize_t rank,
                       const char* letters) {
  check(array.ndim() == rank, name, letters, "shape " + text_of(shape_of(array)));
}

template <class T>
void check_array(const py::array& array, const char* name, const Sizes& shape) {
  const char* dtype = sizeof(T) == 4 ? "float32" : "float64";
  check(py::isinstance<py::array_t<T>>(array), name, dtype, std::string(py::str(array.dtype())));
  if (shape_of(array) != shape) fail(name, "shape " + text_of(shape), text_of(shape_of(array)));
  check((array.flags() & py::array::c_style) && array.dtype().byteorder() != '>', name,
        "a contiguous array", "a strided one");
}

template <class T>
const T* read(const py::array& array, const char* name, const Sizes& shape) {
  check_array<T>(array, name, shape);
  return static_cast<const T*>(array.data());
}

template <class T>
T* write(py::array& array, const char* name, const Sizes& shape) {
  check_array<T>(array, name, shape);
  check(array.writeable(), name, "a writeable array", "a read-only one");
  return static_cast<T*>(array.mutable_data());
}

void bind_align_tokens(py::module_& m);
void bind_factor_projection(py::module_& m);
void bind_factor_readout_workspace(py::module_& m);
void bind_score_topk(py::module_& m);
void bind_vertex_embed(py::module_& m);
// In builds with CUDA.
void bind_cuda(py::module_& m);
void bind_cuda_blobgpt(py::module_& m);
void bind_cuda_score_topk(py::module_& m);

}  // namespace brainfast
