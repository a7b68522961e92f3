// The pure parsers of client.h.
#include <curl/curl.h>

#include <algorithm>
#include <charconv>
#include <string>

#include "pkg/http/client.h"

namespace bim::http {
namespace {

constexpr std::chrono::seconds kLongestWait = std::chrono::hours(24);

// Takes the digits at the front of `text`; nullopt when there are none or they
// do not fit.
std::optional<uint64_t> TakeNumber(std::string_view& text) {
  uint64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [next, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(next - text.data());
  return number;
}

bool Take(std::string_view& text, std::string_view expected) {
  if (!text.starts_with(expected)) return false;
  text.remove_prefix(expected.size());
  return true;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

}  // namespace

std::optional<ContentRange> ParseContentRange(std::string_view value) {
  ContentRange range;
  if (!Take(value, "bytes ")) return std::nullopt;
  const std::optional<uint64_t> first = TakeNumber(value);
  if (!first || !Take(value, "-")) return std::nullopt;
  const std::optional<uint64_t> last = TakeNumber(value);
  if (!last || !Take(value, "/") || *first > *last) return std::nullopt;
  range.first = *first;
  range.last = *last;
  if (value == "*") return range;
  range.total = TakeNumber(value);
  if (!range.total || !value.empty() || *last >= *range.total)
    return std::nullopt;
  return range;
}

std::optional<std::chrono::seconds> ParseRetryAfter(
    std::string_view value, std::chrono::system_clock::time_point now) {
  using std::chrono::seconds;
  const size_t begin = value.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return std::nullopt;
  value = value.substr(begin, value.find_last_not_of(" \t") - begin + 1);

  const bool negative = value.starts_with('-');
  std::string_view digits = value.substr(negative ? 1 : 0);
  if (!digits.empty() && std::ranges::all_of(digits, IsDigit)) {
    if (negative) return seconds(0);
    const std::optional<uint64_t> wait = TakeNumber(digits);
    if (!wait || *wait > static_cast<uint64_t>(kLongestWait.count()))
      return kLongestWait;  // also when the number does not fit
    return seconds(*wait);
  }

  // An HTTP-date begins with the name of a day; curl reads its three forms.
  if (!IsLetter(value.front()) || value.size() > 64) return std::nullopt;
  const time_t when = curl_getdate(std::string(value).c_str(), nullptr);
  if (when == -1) return std::nullopt;
  const int64_t wait =
      static_cast<int64_t>(when) - std::chrono::system_clock::to_time_t(now);
  return seconds(std::clamp<int64_t>(wait, 0, kLongestWait.count()));
}

}  // namespace bim::http
