// Bytes for tests, and files. Quick in a build with sanitizers, too.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

namespace bim::test {

/// `size` bytes that do not compress, the same ones for the same seed. By whole
/// words (xorshift).
inline std::string RandomBytes(size_t size, uint64_t seed) {
  std::string out(size, '\0');
  uint64_t state = (seed + 1) * 0x9e3779b97f4a7c15;
  for (size_t at = 0; at < size; at += 8) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    std::memcpy(out.data() + at, &state, std::min<size_t>(8, size - at));
  }
  return out;
}

/// The whole file, or "" when it cannot be opened.
inline std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return "";
  std::string content(static_cast<size_t>(in.tellg()), '\0');
  in.seekg(0);
  in.read(content.data(), static_cast<std::streamsize>(content.size()));
  return content;
}

}  // namespace bim::test
