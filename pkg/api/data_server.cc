#include "pkg/api/data_server.h"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "pkg/base/names.h"
#include "pkg/base/status.h"

namespace bim::api {
namespace {

constexpr std::string_view kImages = "/v1/images/";
constexpr std::string_view kData = "/data";

int HttpStatus(base::Code code) {
  switch (code) {
    case base::Code::kInvalidArgument:
      return 400;
    case base::Code::kPermissionDenied:
      return 403;
    case base::Code::kNotFound:
      return 404;
    case base::Code::kFailedPrecondition:
      return 409;
    case base::Code::kUnavailable:
    case base::Code::kResourceExhausted:
      return 503;
    default:
      return 500;
  }
}

http::Response Failure(const base::Status& status) {
  http::Response response;
  response.status = HttpStatus(status.code());
  response.body = status.message() + "\n";
  return response;
}

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

// The value of "disk", empty when there is none.
base::Result<std::string> DiskOf(std::string_view query) {
  std::optional<std::string> disk;
  while (!query.empty()) {
    const std::string_view pair = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), pair.size() + 1));
    if (pair.empty()) continue;
    const size_t equals = pair.find('=');
    if (pair.substr(0, equals) != "disk" || disk.has_value()) {
      return base::InvalidArgumentError(
          "'" + base::Printable(pair) +
          "' in the query is not understood: expected at most one "
          "disk=<uuid or path>");
    }
    if (equals != std::string_view::npos) {
      disk = PercentDecode(pair.substr(equals + 1));
    }
    if (!disk.has_value() || disk->empty()) {
      return base::InvalidArgumentError(
          "'" + base::Printable(pair) +
          "' in the query: expected a percent-encoded uuid or path of a disk");
    }
  }
  return disk.value_or("");
}

http::Response ServeImage(manager::Manager& manager, std::string_view name,
                          std::string_view uuid, std::string_view query) {
  const base::Result<std::string> disk = DiskOf(query);
  if (!disk.ok()) return Failure(disk.status());
  base::Result<manager::OpenImage> image = manager.Open(name, uuid, *disk);
  if (!image.ok()) return Failure(image.status());
  http::Response response;
  response.content_type = "application/octet-stream";
  if (!image->sha512_hex.empty()) {
    response.headers.emplace_back("X-Bim-Sha512", image->sha512_hex);
    response.headers.emplace_back("ETag",
                                  "\"sha512:" + image->sha512_hex + "\"");
  }
  response.file = std::move(image->fd);
  response.file_size = image->size;
  return response;
}

}  // namespace

http::Handler DataHandler(manager::Manager& manager) {
  return [&manager](const http::Request& request) -> http::Response {
    if (request.method != "GET" && request.method != "HEAD") {
      http::Response response;
      response.status = 405;
      response.headers.emplace_back("Allow", "GET, HEAD");
      response.body = "expected GET or HEAD\n";
      return response;
    }
    std::string_view path = request.path;
    if (path == "/healthz") return http::Response{.body = "ok\n"};
    if (path.starts_with(kImages) && path.ends_with(kData) &&
        path.size() > kImages.size() + kData.size()) {
      path.remove_prefix(kImages.size());
      path.remove_suffix(kData.size());
      const size_t slash = path.find('/');
      if (slash != 0 && slash < path.size() - 1 &&
          path.find('/', slash + 1) == std::string_view::npos) {
        return ServeImage(manager, path.substr(0, slash),
                          path.substr(slash + 1), request.query);
      }
    }
    return Failure(base::NotFoundError(
        "cannot find this path: expected /v1/images/<name>/<uuid>/data"));
  };
}

}  // namespace bim::api
