#include "pkg/http/range.h"

#include <strings.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>

namespace bim::http {
namespace {

// All of `text` as a number; one that does not fit is the largest (it is well
// formed, and beyond every file). nullopt when a character is no digit.
std::optional<uint64_t> Number(std::string_view text) {
  if (text.empty() ||
      !std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; }))
    return std::nullopt;
  uint64_t number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return std::numeric_limits<uint64_t>::max();
  return number;
}

}  // namespace

ByteRange SelectRange(std::string_view header, uint64_t size) {
  constexpr std::string_view kUnit = "bytes=";
  constexpr ByteRange kWhole;
  constexpr ByteRange kUnsatisfiable{ByteRange::Kind::kUnsatisfiable, 0, 0};
  if (header.size() < kUnit.size() ||
      strncasecmp(header.data(), kUnit.data(), kUnit.size()) != 0)
    return kWhole;
  header.remove_prefix(kUnit.size());
  const size_t dash = header.find('-');
  if (dash == std::string_view::npos) return kWhole;
  const std::string_view left = header.substr(0, dash);
  const std::string_view right = header.substr(dash + 1);

  if (left.empty()) {  // the last n bytes
    const std::optional<uint64_t> suffix = Number(right);
    if (!suffix) return kWhole;
    if (*suffix == 0 || size == 0) return kUnsatisfiable;
    return {ByteRange::Kind::kPart, size - std::min(*suffix, size), size};
  }
  const std::optional<uint64_t> first = Number(left);
  if (!first) return kWhole;
  std::optional<uint64_t> last = std::numeric_limits<uint64_t>::max();
  if (!right.empty()) last = Number(right);
  if (!last || *first > *last) return kWhole;
  if (*first >= size) return kUnsatisfiable;
  return {ByteRange::Kind::kPart, *first, std::min(*last, size - 1) + 1};
}

}  // namespace bim::http
