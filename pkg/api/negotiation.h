// Which API versions a caller speaks, and whether this daemon may serve it.
// Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "pkg/base/status.h"
#include "pkg/meta/version.h"

namespace bim::api {

// Request metadata of any call, decimal numbers.
inline constexpr char kApiVersionKey[] = "bim-api-version";
inline constexpr char kApiMinVersionKey[] = "bim-api-min-version";

// What this build speaks.
inline meta::VersionRange OurVersions() {
  return {meta::kApiMinVersion, meta::kApiVersion};
}

// The range that a caller states; 0 stands for a number that was not given and
// is then the same as the other. Nothing when neither is given.
// INVALID_ARGUMENT: a negative number, one over 2^31 - 1, or min > version.
base::Result<std::optional<meta::VersionRange>> StatedVersions(
    int64_t version, int64_t min_version);

// The same from the texts of the metadata; empty: not given.
// INVALID_ARGUMENT also for what is not a decimal number.
base::Result<std::optional<meta::VersionRange>> StatedVersions(
    std::string_view version, std::string_view min_version);

// FAILED_PRECONDITION "the caller speaks API 1 to 2, this daemon speaks API 3
// to 4" when the two share no version.
base::Status CheckVersions(const std::optional<meta::VersionRange>& caller,
                           const meta::VersionRange& daemon);

}  // namespace bim::api
