#include "pkg/base/names.h"

#include <sys/random.h>

#include <array>
#include <cstdint>

namespace bim::base {
namespace {

bool IsAlphanumeric(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         (c >= '0' && c <= '9');
}

constexpr char kHex[] = "0123456789abcdef";

}  // namespace

std::string Printable(std::string_view text, size_t max) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (out.size() >= max) return out + "...";
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >= 0x20 && byte < 0x7f) {
      out.push_back(text[i]);
    } else {
      out += "\\x";
      out.push_back(kHex[byte >> 4]);
      out.push_back(kHex[byte & 15]);
    }
  }
  return out;
}

Status CheckName(std::string_view text, std::string_view what) {
  const std::string subject(what);
  if (text.empty()) return InvalidArgumentError(subject + " is missing");
  if (text.size() > kMaxNameLength) {
    return InvalidArgumentError(
        subject + " '" + Printable(text, 24) + "' has " +
        std::to_string(text.size()) + " characters, at most " +
        std::to_string(kMaxNameLength) + " are allowed");
  }
  const std::string shown = subject + " '" + Printable(text) + "' ";
  if (!IsAlphanumeric(text[0])) {
    return InvalidArgumentError(shown + "must begin with a letter or digit");
  }
  for (char c : text) {
    if (!IsAlphanumeric(c) && c != '_' && c != '.' && c != '-') {
      return InvalidArgumentError(
          shown + "may hold only letters, digits, '_', '.' and '-'");
    }
  }
  if (text.find("..") != std::string_view::npos) {
    return InvalidArgumentError(shown + "may not hold '..'");
  }
  return OkStatus();
}

std::string GenerateUuid() {
  std::array<uint8_t, 16> bytes{};
  BIM_CHECK(getrandom(bytes.data(), bytes.size(), 0) ==
            static_cast<ssize_t>(bytes.size()));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  std::string out;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out.push_back('-');
    out.push_back(kHex[bytes[i] >> 4]);
    out.push_back(kHex[bytes[i] & 15]);
  }
  return out;
}

}  // namespace bim::base
