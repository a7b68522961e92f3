// A digest: algorithm and bytes, written in lower-case hex or Base64. A value.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "pkg/base/status.h"

namespace bim::base {

enum class DigestAlgorithm : uint8_t { kSha256 = 1, kSha512 = 2 };

// 32 or 64 bytes.
size_t DigestSize(DigestAlgorithm algorithm);
// "SHA-256" or "SHA-512".
std::string_view DigestName(DigestAlgorithm algorithm);

class Digest {
 public:
  Digest() = default;  // SHA-512 of all zero bytes; compare with empty()
  // Precondition: bytes.size() == DigestSize(algorithm).
  Digest(DigestAlgorithm algorithm, std::span<const std::byte> bytes);

  // Hex in either case, the length must fit the algorithm. INVALID_ARGUMENT
  // names the length expected and found, or the first wrong character.
  static Result<Digest> FromHex(DigestAlgorithm algorithm,
                                std::string_view hex);

  DigestAlgorithm algorithm() const { return algorithm_; }
  std::span<const std::byte> bytes() const {
    return {bytes_.data(), DigestSize(algorithm_)};
  }
  std::string Hex() const;     // lower case
  std::string Base64() const;  // RFC 4648 4, padded

  friend bool operator==(const Digest&, const Digest&) = default;

 private:
  DigestAlgorithm algorithm_ = DigestAlgorithm::kSha512;
  std::array<std::byte, 64> bytes_{};
};

}  // namespace bim::base
