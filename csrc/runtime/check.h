// Errors that a caller made, told in one line: name, expected, got.
#pragma once

#include <stdexcept>
#include <string>

namespace brainfast {

[[noreturn]] inline void fail(const std::string& name, const std::string& expected,
                              const std::string& got) {
  throw std::invalid_argument(name + ": expected " + expected + ", got " + got);
}

inline void check(bool condition, const std::string& name, const char* expected,
                  const std::string& got) {
  if (!condition) fail(name, expected, got);
}

}  // namespace brainfast
