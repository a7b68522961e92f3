// What requests of the data port say, and how failures are answered. Pure
// functions.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "pkg/base/status.h"
#include "pkg/http/server.h"

namespace bim::api {

// /v1/images/<name>/<uuid>/<resource>; views into the path.
struct ImagePath {
  std::string_view name;
  std::string_view uuid;
  std::string_view resource;
};
// nullopt when it is another path. Names are not judged.
std::optional<ImagePath> ParseImagePath(std::string_view path);

// The parameters of a query, percent-decoded, none empty.
using Query = std::map<std::string, std::string, std::less<>>;
// INVALID_ARGUMENT for a parameter that is not among `allowed`, given twice,
// empty or badly encoded.
base::Result<Query> ParseQuery(std::string_view query,
                               std::initializer_list<std::string_view> allowed);
// The value, or nothing.
std::string_view ValueOf(const Query& query, std::string_view name);

// Decimal digits only; nullopt for anything else, also for what overflows.
std::optional<uint64_t> ParseNumber(std::string_view text);

// All values of a list field (lower-case name), joined by commas.
std::string ListField(const http::Request& request, std::string_view name);
// Whether the Accept-Encoding `list` names zstd (RFC 9110 12.5.3): "*" does
// not, and neither does q=0.
bool AcceptsZstd(std::string_view list);
// Whether the If-Match `list` allows `etag` (RFC 9110 13.1.1): "*", or one of
// the list equals it; a weak one never does. Without `etag` only "*" does.
bool Matches(std::string_view list, std::string_view etag);

// The line of text that answers a failure: 404 for NOT_FOUND, 400 for
// INVALID_ARGUMENT, 409 FAILED_PRECONDITION and ALREADY_EXISTS, 403
// PERMISSION_DENIED, 503 UNAVAILABLE and RESOURCE_EXHAUSTED, else 500.
http::Response Failure(const base::Status& status);
// The same with another status.
http::Response Failure(int http_status, std::string_view message);

}  // namespace bim::api
