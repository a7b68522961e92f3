// The target of a request line (RFC 9112 3.2): path and query. Pure.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace bim::http {

struct Target {
  std::string path;      // percent-decoded, begins with '/'
  std::string raw_path;  // the same as it came
  std::string query;     // raw, without '?'
  friend bool operator==(const Target&, const Target&) = default;
};

// Takes "/path?query" and "http://host/path?query" (whose host is ignored).
// nullopt for other forms, a '#', a '%' without two hex digits, and a NUL byte,
// plain or encoded.
std::optional<Target> ParseTarget(std::string_view target);

}  // namespace bim::http
