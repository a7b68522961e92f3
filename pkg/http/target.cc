#include "pkg/http/target.h"

#include <strings.h>

namespace bim::http {
namespace {

// -1 when it is no hex digit.
int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::string> PercentDecode(std::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (text.size() - i < 3) return std::nullopt;
      const int high = HexValue(text[i + 1]);
      const int low = HexValue(text[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (c == '\0') return std::nullopt;
    decoded.push_back(c);
  }
  return decoded;
}

}  // namespace

std::optional<Target> ParseTarget(std::string_view target) {
  for (std::string_view scheme : {"http://", "https://"}) {
    if (target.size() < scheme.size() ||
        strncasecmp(target.data(), scheme.data(), scheme.size()) != 0)
      continue;
    target.remove_prefix(scheme.size());
    const size_t path = target.find_first_of("/?");
    if (path == 0 || path == std::string_view::npos || target[path] != '/')
      return std::nullopt;
    target.remove_prefix(path);
    break;
  }
  if (!target.starts_with('/')) return std::nullopt;
  if (target.find_first_of(std::string_view("#\0", 2)) !=
      std::string_view::npos)
    return std::nullopt;
  Target result;
  const size_t question = target.find('?');
  if (question != std::string_view::npos)
    result.query = target.substr(question + 1);
  result.raw_path = target.substr(0, question);
  std::optional<std::string> path = PercentDecode(result.raw_path);
  if (!path) return std::nullopt;
  result.path = *std::move(path);
  return result;
}

}  // namespace bim::http
