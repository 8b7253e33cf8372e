// The readout's kernels on a CUDA device.
#include <array>
#include <string>

#include "bindings_cuda.h"
#include "kernels/factor_readout_cuda.h"

namespace brainfast {
namespace {

// Sizes and precision, which every call needs.
class CudaFactorReadout {
 public:
  CudaFactorReadout(std::int64_t vertices, std::int64_t layers, std::int64_t channels,
                    std::int64_t height, std::int64_t width, bool align_corners,
                    const std::string& precision)
      : shape_{vertices, layers, channels, height, width, align_corners},
        precision_(precision_named(precision)) {
    cuda::parameter_bytes(shape_, precision_);
  }

  std::int64_t parameter_bytes() const { return cuda::parameter_bytes(shape_, precision_); }
  std::int64_t token_bytes(std::int64_t images) const {
    return cuda::token_bytes(shape_, images, precision_);
  }
  std::int64_t gradient_bytes(std::int64_t images) const {
    return cuda::gradient_bytes(shape_, images, precision_);
  }

  void pack(const Block& packed, Address space, Address layer, Address scale, Address weight,
            Address bias, const std::string& dtype, int device, Address stream) const {
    const cuda::Parameters parameters{at<float>(space), at<float>(layer), at<float>(scale),
                                      at<void>(weight), at<float>(bias),  kind_named(dtype)};
    const py::gil_scoped_release release;
    cuda::pack_parameters(shape_, parameters, precision_, memory_of(packed),
                          {device, at<void>(stream)});
  }

  void forward(const Block& packed, const Block& scratch, std::int64_t images, Address local,
               Address global, const std::string& dtype, Address out, int device,
               Address stream) const {
    const cuda::Tokens tokens{images, at<void>(local), at<void>(global), kind_named(dtype)};
    const py::gil_scoped_release release;
    cuda::forward(shape_, precision_, memory_of(packed), tokens, memory_of(scratch), at<float>(out),
                  {device, at<void>(stream)});
  }

  void backward(const Block& packed, const Block& scratch, std::int64_t images, Address grad_output,
                Address local, Address global, const std::string& dtype,
                const std::array<Address, 7>& out, int device, Address stream) const {
    const cuda::Tokens tokens{images, at<void>(local), at<void>(global), kind_named(dtype)};
    const ReadoutGradients<float> gradients{at<float>(out[0]), at<float>(out[1]), at<float>(out[2]),
                                            at<float>(out[3]), at<float>(out[4]), at<float>(out[5]),
                                            at<float>(out[6])};
    const py::gil_scoped_release release;
    cuda::backward(shape_, precision_, memory_of(packed), tokens, at<float>(grad_output),
                   memory_of(scratch), gradients, {device, at<void>(stream)});
  }

 private:
  ReadoutShape shape_;
  Precision precision_;
};

}  // namespace

void bind_cuda(py::module_& m) {
  py::class_<CudaFactorReadout>(
      m, "CudaFactorReadout", py::module_local(),
      "Launches the readout's kernels. Memory is (address, bytes), arrays are addresses, all of "
      "them contiguous on `device`; `dtype` is float32 or bfloat16. Nothing is waited for.")
      .def(py::init<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool,
                    const std::string&>(),
           py::arg("vertices"), py::arg("layers"), py::arg("channels"), py::arg("height"),
           py::arg("width"), py::arg("align_corners") = false, py::arg("precision") = "fp32")
      .def_property_readonly("parameter_bytes", &CudaFactorReadout::parameter_bytes)
      .def("token_bytes", &CudaFactorReadout::token_bytes, py::arg("images"))
      .def("gradient_bytes", &CudaFactorReadout::gradient_bytes, py::arg("images"))
      .def("pack", &CudaFactorReadout::pack, py::arg("packed"), py::arg("space"), py::arg("layer"),
           py::arg("scale"), py::arg("weight"), py::arg("bias"), py::kw_only(), py::arg("dtype"),
           py::arg("device"), py::arg("stream"),
           "Sorts and packs the parameters into `packed`, parameter_bytes; dtype: of weight.")
      .def("forward", &CudaFactorReadout::forward, py::arg("packed"), py::arg("scratch"),
           py::arg("images"), py::arg("local"), py::arg("global_"), py::kw_only(), py::arg("dtype"),
           py::arg("out"), py::arg("device"), py::arg("stream"),
           "local [B,L,D,H,W], global_ [B,L,D] -> out [B,V]; scratch: token_bytes.")
      .def("backward", &CudaFactorReadout::backward, py::arg("packed"), py::arg("scratch"),
           py::arg("images"), py::arg("grad_output"), py::arg("local"), py::arg("global_"),
           py::kw_only(), py::arg("dtype"), py::arg("out"), py::arg("device"), py::arg("stream"),
           "grad_output [B,V] -> gradients of local, global_, space, layer, scale, weight, bias "
           "at the addresses `out`, 0 where not wanted; scratch: gradient_bytes.");
}

}  // namespace brainfast
