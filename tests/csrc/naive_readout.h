// The readout and its gradients as plain loops over every vertex, layer and channel, in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/factor_readout.h"

using brainfast::ReadoutShape;

// Arguments, or gradients of them, in the op's order. Exactly as large as they must be, so that a
// sanitizer sees a step over their ends.
template <class T>
struct Arguments {
  std::vector<T> local, global, space, layer, scale, weight, bias;

  Arguments(const ReadoutShape& s, std::int64_t images)
      : local(images * s.layers * s.channels * s.pixels()),
        global(images * s.layers * s.channels),
        space(s.vertices * 2),
        layer(s.vertices * s.layers),
        scale(s.vertices),
        weight(s.vertices * s.channels),
        bias(s.vertices) {}

  template <class F>
  void each(F&& f) {
    for (auto* part : {&local, &global, &space, &layer, &scale, &weight, &bias}) f(*part);
  }

  brainfast::ReadoutParameters<T> parameters() const {
    return {space.data(), layer.data(), scale.data(), weight.data(), bias.data()};
  }

  brainfast::ReadoutTokens<T> tokens(std::int64_t images) const {
    return {images, local.data(), global.data()};
  }

  brainfast::ReadoutGradients<T> gradients() {
    return {local.data(), global.data(), space.data(), layer.data(),
            scale.data(), weight.data(), bias.data()};
  }
};

template <class T>
std::vector<T> random_numbers(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<T> numbers(count);
  for (T& number : numbers) number = static_cast<T>(normal(generator));
  return numbers;
}

template <class T>
Arguments<T> random_arguments(const ReadoutShape& shape, std::int64_t images) {
  Arguments<T> arguments(shape, images);
  unsigned seed = 1;
  arguments.each([&](std::vector<T>& part) { part = random_numbers<T>(part.size(), seed++); });
  for (std::size_t i = 0; i < arguments.space.size(); i += 7) arguments.space[i] *= T(1e30);
  return arguments;
}

struct Tap {
  std::int64_t pixel;
  double value, slope_x, slope_y;  // of the coefficient
};

// The pixels inside the image that one sampling point reads.
inline std::vector<Tap> taps(const ReadoutShape& s, double x, double y) {
  const double scale_x = (s.align_corners ? s.width - 1 : s.width) / 2.0;
  const double scale_y = (s.align_corners ? s.height - 1 : s.height) / 2.0;
  const double px = s.align_corners ? (x + 1) * scale_x : ((x + 1) * s.width - 1) / 2;
  const double py = s.align_corners ? (y + 1) * scale_y : ((y + 1) * s.height - 1) / 2;
  std::vector<Tap> found;
  for (std::int64_t row = 0; row < s.height; ++row) {
    for (std::int64_t column = 0; column < s.width; ++column) {
      const double dx = px - column, dy = py - row;
      // A cell holds its left and upper edge.
      if (dx < -1 || dx >= 1 || dy < -1 || dy >= 1) continue;
      const double wx = 1 - std::abs(dx), wy = 1 - std::abs(dy);
      found.push_back({row * s.width + column, wx * wy, (dx < 0 ? 1 : -1) * wy * scale_x,
                       (dy < 0 ? 1 : -1) * wx * scale_y});
    }
  }
  return found;
}

// Response [B,V]; where `grad_output` is not empty, adds the gradients to `grads`.
template <class T>
std::vector<double> naive(const ReadoutShape& s, std::int64_t images, const Arguments<T>& a,
                          const std::vector<T>& grad_output, Arguments<double>& grads) {
  std::vector<double> response(images * s.vertices);
  for (std::int64_t v = 0; v < s.vertices; ++v) {
    const auto read = taps(s, a.space[2 * v], a.space[2 * v + 1]);
    const double scale = a.scale[v];
    for (std::int64_t b = 0; b < images; ++b) {
      double& y = response[b * s.vertices + v];
      const double g = grad_output.empty() ? 0 : grad_output[b * s.vertices + v];
      for (std::int64_t l = 0; l < s.layers; ++l) {
        const double layer = a.layer[v * s.layers + l];
        for (std::int64_t d = 0; d < s.channels; ++d) {
          const std::int64_t token = (b * s.layers + l) * s.channels + d;
          const double whole = a.global[token];
          const double w = a.weight[v * s.channels + d] / static_cast<double>(s.channels);
          double interp = 0, slope_x = 0, slope_y = 0;
          for (const Tap& tap : read) {
            const double x = a.local[token * s.pixels() + tap.pixel];
            interp += tap.value * x;
            slope_x += tap.slope_x * x;
            slope_y += tap.slope_y * x;
            grads.local[token * s.pixels() + tap.pixel] += g * w * layer * (1 - scale) * tap.value;
          }
          const double mixed = (1 - scale) * interp + scale * whole;
          y += w * layer * mixed;
          grads.global[token] += g * w * layer * scale;
          grads.space[2 * v] += g * w * layer * (1 - scale) * slope_x;
          grads.space[2 * v + 1] += g * w * layer * (1 - scale) * slope_y;
          grads.layer[v * s.layers + l] += g * w * mixed;
          grads.scale[v] += g * w * layer * (whole - interp);
          grads.weight[v * s.channels + d] += g * layer * mixed / static_cast<double>(s.channels);
        }
      }
      y += a.bias[v];
      grads.bias[v] += g;
    }
  }
  return response;
}
