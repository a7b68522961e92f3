#include "pkg/base/digest.h"

#include <algorithm>
#include <cstring>

namespace bim::base {

size_t DigestSize(DigestAlgorithm algorithm) {
  return algorithm == DigestAlgorithm::kSha256 ? 32 : 64;
}

std::string_view DigestName(DigestAlgorithm algorithm) {
  return algorithm == DigestAlgorithm::kSha256 ? "SHA-256" : "SHA-512";
}

Digest::Digest(DigestAlgorithm algorithm, std::span<const std::byte> bytes)
    : algorithm_(algorithm) {
  BIM_CHECK(bytes.size() == DigestSize(algorithm));
  std::copy(bytes.begin(), bytes.end(), bytes_.begin());
}

namespace {

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Result<Digest> Digest::FromHex(DigestAlgorithm algorithm,
                               std::string_view hex) {
  const size_t want = DigestSize(algorithm) * 2;
  const std::string name(DigestName(algorithm));
  if (hex.size() != want) {
    return InvalidArgumentError(
        "a " + name + " checksum has " + std::to_string(want) +
        " hex digits, this one has " + std::to_string(hex.size()));
  }
  Digest digest;
  digest.algorithm_ = algorithm;
  for (size_t i = 0; i < want; i += 2) {
    const int high = HexValue(hex[i]);
    const int low = HexValue(hex[i + 1]);
    if (high < 0 || low < 0) {
      return InvalidArgumentError(
          "a " + name + " checksum is hex digits only, character " +
          std::to_string(high < 0 ? i + 1 : i + 2) + " is not one");
    }
    digest.bytes_[i / 2] = static_cast<std::byte>(high << 4 | low);
  }
  return digest;
}

std::string Digest::Hex() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(DigestSize(algorithm_) * 2);
  for (std::byte b : bytes()) {
    out.push_back(kDigits[std::to_integer<int>(b) >> 4]);
    out.push_back(kDigits[std::to_integer<int>(b) & 15]);
  }
  return out;
}

std::string Digest::Base64() const {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::span<const std::byte> in = bytes();
  std::string out;
  out.reserve((in.size() + 2) / 3 * 4);
  for (size_t i = 0; i < in.size(); i += 3) {
    const size_t count = std::min<size_t>(3, in.size() - i);
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j)
      bits = bits << 8 | (j < count ? std::to_integer<uint32_t>(in[i + j]) : 0);
    for (size_t j = 0; j < 4; ++j)
      out.push_back(j <= count ? kDigits[bits >> (18 - 6 * j) & 63] : '=');
  }
  return out;
}

}  // namespace bim::base
