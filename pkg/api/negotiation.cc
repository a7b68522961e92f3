#include "pkg/api/negotiation.h"

#include <charconv>
#include <limits>
#include <string>

#include "pkg/base/names.h"

namespace bim::api {
namespace {

base::Result<int64_t> ParseVersion(const char* key, std::string_view text) {
  if (text.empty()) return int64_t{0};
  int64_t number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    return base::InvalidArgumentError(std::string(key) +
                                      ": expected a decimal number, found '" +
                                      base::Printable(text, 40) + "'");
  }
  return number;
}

std::string RangeText(const meta::VersionRange& range) {
  return std::to_string(range.min) + " to " + std::to_string(range.max);
}

}  // namespace

base::Result<std::optional<meta::VersionRange>> StatedVersions(
    int64_t version, int64_t min_version) {
  if (version == 0 && min_version == 0) {
    return std::optional<meta::VersionRange>();
  }
  if (version == 0) version = min_version;
  if (min_version == 0) min_version = version;
  constexpr int64_t kMax = std::numeric_limits<int>::max();
  if (min_version < 0 || version < 0 || min_version > kMax || version > kMax) {
    return base::InvalidArgumentError(
        "API versions " + std::to_string(min_version) + " to " +
        std::to_string(version) + ": expected positive numbers");
  }
  if (min_version > version) {
    return base::InvalidArgumentError(
        "the minimum API version " + std::to_string(min_version) +
        " is greater than the API version " + std::to_string(version));
  }
  return std::optional<meta::VersionRange>(
      {static_cast<int>(min_version), static_cast<int>(version)});
}

base::Result<std::optional<meta::VersionRange>> StatedVersions(
    std::string_view version, std::string_view min_version) {
  BIM_ASSIGN_OR_RETURN(const int64_t max,
                       ParseVersion(kApiVersionKey, version));
  BIM_ASSIGN_OR_RETURN(const int64_t min,
                       ParseVersion(kApiMinVersionKey, min_version));
  return StatedVersions(max, min);
}

base::Status CheckVersions(const std::optional<meta::VersionRange>& caller,
                           const meta::VersionRange& daemon) {
  if (!caller.has_value() || meta::Overlap(*caller, daemon)) {
    return base::OkStatus();
  }
  return base::FailedPreconditionError(
      "the caller speaks API " + RangeText(*caller) +
      ", this daemon speaks API " + RangeText(daemon));
}

}  // namespace bim::api
