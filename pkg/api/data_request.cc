#include "pkg/api/data_request.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <utility>

#include "pkg/base/names.h"

namespace bim::api {
namespace {

constexpr std::string_view kImages = "/v1/images/";

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::string> PercentDecode(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = HexDigit(text[i + 1]);
    const int low = HexDigit(text[i + 2]);
    if (high < 0 || low < 0 || (high == 0 && low == 0)) return std::nullopt;
    decoded += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return decoded;
}

// Takes what comes before the next `separator` off `rest`.
std::string_view TakeUntil(std::string_view& rest, char separator) {
  const std::string_view piece = rest.substr(0, rest.find(separator));
  rest.remove_prefix(std::min(rest.size(), piece.size() + 1));
  return piece;
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) {
    text.remove_prefix(1);
  }
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) {
    text.remove_suffix(1);
  }
  return text;
}

bool SameWord(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) ==
           std::tolower(static_cast<unsigned char>(y));
  });
}

// "q=0", "q=0.000".
bool IsZeroWeight(std::string_view parameter) {
  std::string_view rest = parameter;
  if (!SameWord(Trim(TakeUntil(rest, '=')), "q")) return false;
  const std::string_view weight = Trim(rest);
  return !weight.empty() &&
         weight.find_first_not_of("0.") == std::string_view::npos;
}

int HttpStatus(base::Code code) {
  switch (code) {
    case base::Code::kInvalidArgument:
      return 400;
    case base::Code::kPermissionDenied:
      return 403;
    case base::Code::kNotFound:
      return 404;
    case base::Code::kFailedPrecondition:
    case base::Code::kAlreadyExists:
      return 409;
    case base::Code::kUnavailable:
    case base::Code::kResourceExhausted:
      return 503;
    default:
      return 500;
  }
}

}  // namespace

std::optional<ImagePath> ParseImagePath(std::string_view path) {
  if (!path.starts_with(kImages)) return std::nullopt;
  path.remove_prefix(kImages.size());
  if (std::count(path.begin(), path.end(), '/') != 2) return std::nullopt;
  ImagePath parsed;
  parsed.name = TakeUntil(path, '/');
  parsed.uuid = TakeUntil(path, '/');
  parsed.resource = path;
  if (parsed.name.empty() || parsed.uuid.empty()) return std::nullopt;
  return parsed;
}

base::Result<Query> ParseQuery(
    std::string_view query, std::initializer_list<std::string_view> allowed) {
  Query parsed;
  while (!query.empty()) {
    const std::string_view pair = TakeUntil(query, '&');
    if (pair.empty()) continue;
    std::string_view text = pair;
    const std::string_view name = TakeUntil(text, '=');
    if (std::find(allowed.begin(), allowed.end(), name) == allowed.end() ||
        parsed.contains(name)) {
      std::string expected;
      for (const std::string_view one : allowed) {
        expected += expected.empty() ? "" : ", ";
        expected += one;
      }
      return base::InvalidArgumentError(
          "'" + base::Printable(pair) +
          "' in the query is not understood: expected " +
          (expected.empty() ? "nothing" : "at most one each of " + expected));
    }
    std::optional<std::string> value = PercentDecode(text);
    if (!value || value->empty()) {
      return base::InvalidArgumentError(
          "'" + base::Printable(pair) +
          "' in the query: expected a percent-encoded value");
    }
    parsed.emplace(name, *std::move(value));
  }
  return parsed;
}

std::string_view ValueOf(const Query& query, std::string_view name) {
  const auto found = query.find(name);
  return found == query.end() ? std::string_view() : found->second;
}

std::optional<uint64_t> ParseNumber(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return number;
}

std::string ListField(const http::Request& request, std::string_view name) {
  std::string list;
  for (const auto& [field, value] : request.fields) {
    if (field != name) continue;
    if (!list.empty()) list += ',';
    list += value;
  }
  return list;
}

bool AcceptsZstd(std::string_view list) {
  while (!list.empty()) {
    std::string_view item = TakeUntil(list, ',');
    if (!SameWord(Trim(TakeUntil(item, ';')), "zstd")) continue;
    return !IsZeroWeight(item);
  }
  return false;
}

bool Matches(std::string_view list, std::string_view etag) {
  if (Trim(list) == "*") return true;
  // Our own tags have no comma in them.
  while (!list.empty()) {
    if (const std::string_view one = Trim(TakeUntil(list, ','));
        !one.empty() && one == etag) {
      return true;
    }
  }
  return false;
}

http::Response Failure(const base::Status& status) {
  return Failure(HttpStatus(status.code()), status.message());
}

http::Response Failure(int http_status, std::string_view message) {
  http::Response response;
  response.status = http_status;
  response.body = std::string(message) + "\n";
  return response;
}

}  // namespace bim::api
