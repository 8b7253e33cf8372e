// BlobGPT's kernels on a CUDA device.
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "bindings_cuda.h"
#include "kernels/factor_projection_cuda.h"
#include "kernels/vertex_embed_cuda.h"

namespace brainfast {
namespace {

using Addresses = std::vector<Address>;

std::vector<const void*> pointers(const Addresses& addresses) {
  std::vector<const void*> found;
  for (Address address : addresses) found.push_back(at<void>(address));
  return found;
}

// A layer's tokens: (address, strides of image, token, channel, address of the class token or 0,
// its strides of image, channel).
using TokenPlace =
    std::tuple<Address, std::array<std::int64_t, 3>, Address, std::array<std::int64_t, 2>>;

cuda::ProjectionBatch batch_of(std::int64_t images, const std::vector<TokenPlace>& places,
                               const std::string& dtype) {
  cuda::ProjectionBatch batch{images, {}, kind_named(dtype)};
  for (const auto& [local, stride, global, global_stride] : places) {
    batch.layers.push_back({at<void>(local), stride, at<void>(global), global_stride});
  }
  return batch;
}

// Sizes and precision, which every call needs.
class CudaFactorProjection {
 public:
  CudaFactorProjection(std::int64_t latent, const std::vector<std::int64_t>& tokens,
                       const std::vector<std::int64_t>& channels, const std::string& precision)
      : precision_(precision_named(precision)) {
    check(tokens.size() == channels.size(), "channels",
          ("a list of " + std::to_string(tokens.size())).c_str(),
          "one of " + std::to_string(channels.size()));
    shape_.latent = latent;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      shape_.layers.push_back({tokens[i], channels[i]});
    }
    factor_bytes();
  }

  std::int64_t factor_bytes() const { return cuda::factor_bytes(shape_, precision_); }
  std::int64_t scratch_bytes(std::int64_t images) const {
    return cuda::projection_bytes(shape_, images, precision_);
  }
  std::int64_t gradient_bytes(std::int64_t images) const {
    return cuda::projection_gradient_bytes(shape_, images, precision_);
  }

  void pack(const Block& packed, const Addresses& filters, const Addresses& maps, Address bias,
            const std::string& dtype, int device, Address stream) const {
    const cuda::ProjectionFactors factors{pointers(filters), pointers(maps), at<float>(bias),
                                          kind_named(dtype)};
    const py::gil_scoped_release release;
    cuda::pack_factors(shape_, factors, precision_, memory_of(packed), {device, at<void>(stream)});
  }

  void forward(const Block& packed, const Block& scratch, std::int64_t images,
               const std::vector<TokenPlace>& tokens, const std::string& dtype, Address out,
               int device, Address stream) const {
    const cuda::ProjectionBatch batch = batch_of(images, tokens, dtype);
    const py::gil_scoped_release release;
    cuda::project(shape_, precision_, memory_of(packed), batch, memory_of(scratch), at<float>(out),
                  {device, at<void>(stream)});
  }

  void backward(const Block& packed, const Block& scratch, std::int64_t images, Address grad_output,
                const std::vector<TokenPlace>& tokens, const std::string& dtype,
                const std::array<Address, 3>& out, int device, Address stream) const {
    const cuda::ProjectionBatch batch = batch_of(images, tokens, dtype);
    const cuda::ProjectionDeviceGradients gradients{at<float>(out[0]), at<float>(out[1]),
                                                    at<float>(out[2])};
    const py::gil_scoped_release release;
    cuda::differentiate_projection(shape_, precision_, memory_of(packed), batch,
                                   at<float>(grad_output), memory_of(scratch), gradients,
                                   {device, at<void>(stream)});
  }

 private:
  cuda::ProjectionShape shape_;
  Precision precision_;
};

class CudaVertexEmbed {
 public:
  CudaVertexEmbed(std::int64_t vertices, std::int64_t latent, const std::string& precision)
      : shape_{vertices, latent}, precision_(precision_named(precision)) {
    weight_bytes();
  }

  std::int64_t weight_bytes() const { return cuda::embed_bytes(shape_, precision_); }

  bool reads_in_place(Address weight, const std::string& dtype) const {
    return cuda::reads_in_place(shape_, precision_, {at<void>(weight), nullptr, kind_named(dtype)});
  }

  void pack(const Block& packed, Address weight, Address bias, const std::string& dtype, int device,
            Address stream) const {
    const cuda::EmbedWeight from{at<void>(weight), at<float>(bias), kind_named(dtype)};
    const py::gil_scoped_release release;
    cuda::pack_embed(shape_, from, precision_, memory_of(packed), {device, at<void>(stream)});
  }

  void forward(const Block& packed, std::int64_t images, Address latent, const std::string& dtype,
               Address out, int device, Address stream) const {
    const cuda::EmbedBatch batch{images, at<void>(latent), kind_named(dtype)};
    const py::gil_scoped_release release;
    cuda::embed(shape_, precision_, memory_of(packed), batch, at<float>(out),
                {device, at<void>(stream)});
  }

  void forward_in_place(Address weight, Address bias, std::int64_t images, Address latent,
                        const std::string& dtype, Address out, int device, Address stream) const {
    const cuda::Kind kind = kind_named(dtype);
    const cuda::EmbedBatch batch{images, at<void>(latent), kind};
    const py::gil_scoped_release release;
    cuda::embed_in_place(shape_, precision_, {at<void>(weight), at<float>(bias), kind}, batch,
                         at<float>(out), {device, at<void>(stream)});
  }

 private:
  cuda::EmbedShape shape_;
  Precision precision_;
};

}  // namespace

void bind_cuda_blobgpt(py::module_& m) {
  py::class_<CudaFactorProjection>(
      m, "CudaFactorProjection", py::module_local(),
      "Launches the projection's kernels. Memory is (address, bytes), arrays are addresses on "
      "`device`; `dtype` is float32 or bfloat16. Tokens of a layer are (address, strides of image, "
      "token and channel, address of the class token or 0, its strides of image and channel); "
      "strides count numbers, all else is contiguous. Nothing is waited for.")
      .def(py::init<std::int64_t, const std::vector<std::int64_t>&,
                    const std::vector<std::int64_t>&, const std::string&>(),
           py::arg("latent"), py::arg("tokens"), py::arg("channels"), py::arg("precision") = "fp32")
      .def_property_readonly("factor_bytes", &CudaFactorProjection::factor_bytes)
      .def("scratch_bytes", &CudaFactorProjection::scratch_bytes, py::arg("images"))
      .def("gradient_bytes", &CudaFactorProjection::gradient_bytes, py::arg("images"))
      .def("pack", &CudaFactorProjection::pack, py::arg("packed"), py::arg("filters"),
           py::arg("maps"), py::arg("bias"), py::kw_only(), py::arg("dtype"), py::arg("device"),
           py::arg("stream"),
           "Packs filters and maps of every layer and the bias (0: none) into `packed`, "
           "factor_bytes; dtype: of filters and maps.")
      .def("forward", &CudaFactorProjection::forward, py::arg("packed"), py::arg("scratch"),
           py::arg("images"), py::arg("tokens"), py::kw_only(), py::arg("dtype"), py::arg("out"),
           py::arg("device"), py::arg("stream"),
           "Tokens of every layer -> out [B,K]; scratch: scratch_bytes.")
      .def(
          "backward", &CudaFactorProjection::backward, py::arg("packed"), py::arg("scratch"),
          py::arg("images"), py::arg("grad_output"), py::arg("tokens"), py::kw_only(),
          py::arg("dtype"), py::arg("out"), py::arg("device"), py::arg("stream"),
          "grad_output [B,K] -> gradients of tokens, filters, maps at the addresses `out`, 0 where "
          "not wanted; one layer; scratch: gradient_bytes.");
  py::class_<CudaVertexEmbed>(
      m, "CudaVertexEmbed", py::module_local(),
      "Launches the embedding's kernels. Memory is (address, bytes), arrays are addresses, all of "
      "them contiguous on `device`; `dtype` is float32 or bfloat16. Nothing is waited for.")
      .def(py::init<std::int64_t, std::int64_t, const std::string&>(), py::arg("vertices"),
           py::arg("latent"), py::arg("precision") = "fp32")
      .def_property_readonly("weight_bytes", &CudaVertexEmbed::weight_bytes)
      .def("reads_in_place", &CudaVertexEmbed::reads_in_place, py::arg("weight"), py::kw_only(),
           py::arg("dtype"), "Whether forward_in_place takes weights at this address.")
      .def("pack", &CudaVertexEmbed::pack, py::arg("packed"), py::arg("weight"), py::arg("bias"),
           py::kw_only(), py::arg("dtype"), py::arg("device"), py::arg("stream"),
           "Packs weight [V,K] and bias [V] into `packed`, weight_bytes; dtype: of weight.")
      .def("forward", &CudaVertexEmbed::forward, py::arg("packed"), py::arg("images"),
           py::arg("latent"), py::kw_only(), py::arg("dtype"), py::arg("out"), py::arg("device"),
           py::arg("stream"), "latent [B,K] -> out [B,V]; dtype: of latent.")
      .def("forward_in_place", &CudaVertexEmbed::forward_in_place, py::arg("weight"),
           py::arg("bias"), py::arg("images"), py::arg("latent"), py::kw_only(), py::arg("dtype"),
           py::arg("out"), py::arg("device"), py::arg("stream"),
           "The same with weights that are not packed; dtype: of weight and latent.");
}

}  // namespace brainfast
