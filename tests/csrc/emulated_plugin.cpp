// The readout's kernel for TensorRT as a library whose device is the thread-block emulator: the
// addresses of the arguments, as a driver takes them.
#include "kernels/factor_readout_plugin.cu"

namespace {

template <class T>
T take(void** arguments, int place) {
  return *static_cast<T*>(arguments[place]);
}

template <class Index>
void launch(auto kernel, int grid, int threads, int shared, void** a) {
  using F = const float*;
  using I = const Index*;
  emulator::launch(kernel, grid, threads, shared, take<F>(a, 0), take<F>(a, 1), take<F>(a, 2),
                   take<F>(a, 3), take<I>(a, 4), take<I>(a, 5), take<I>(a, 6), take<I>(a, 7),
                   take<F>(a, 8), take<int>(a, 9), take<int>(a, 10), take<int>(a, 11),
                   take<int>(a, 12), take<int>(a, 13), take<int>(a, 14), take<int>(a, 15),
                   take<float*>(a, 16));
}

}  // namespace

extern "C" void launch_i32(int grid, int threads, int shared, void** arguments) {
  launch<std::int32_t>(brainfast_factor_readout_i32, grid, threads, shared, arguments);
}

extern "C" void launch_i64(int grid, int threads, int shared, void** arguments) {
  launch<std::int64_t>(brainfast_factor_readout_i64, grid, threads, shared, arguments);
}
