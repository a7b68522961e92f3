// Durations, sizes and file modes as people write them, and back.
//
// Pure functions; thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "pkg/base/status.h"

namespace bim::daemon {

// "250ms", "30s", "5m", "2h", "1d" or a sequence of these ("1m30s"), each a
// whole number; "0" needs no unit. INVALID_ARGUMENT says what was expected.
base::Result<std::chrono::milliseconds> ParseDuration(std::string_view text);
// The shortest text that ParseDuration reads back: "1m30s", "0s".
std::string FormatDuration(std::chrono::milliseconds duration);

// Plain bytes ("1048576") or a whole number with a unit: B, KiB, MiB, GiB, TiB
// (powers of 1024), KB, MB, GB, TB (powers of 1000), in either case. "64G" is
// refused, as it is read both ways. INVALID_ARGUMENT says what was expected.
base::Result<uint64_t> ParseSize(std::string_view text);
// The shortest text that ParseSize reads back: "64GiB", "1000".
std::string FormatSize(uint64_t bytes);

// Octal permissions, "0644" or "644". INVALID_ARGUMENT for anything else.
base::Result<uint32_t> ParseFileMode(std::string_view text);
std::string FormatFileMode(uint32_t mode);

// For people: "2.0 GiB", "512 B". Rounded.
std::string HumanBytes(uint64_t bytes);
// For people: "5s", "3m10s", "2h04m". Rounded.
std::string HumanDuration(std::chrono::seconds duration);

// A time since 1970 in UTC, to the second: "2026-03-01T12:00:00Z".
std::string FormatTime(int64_t time_ns);
// The same to the nanosecond: "2026-03-01T12:00:00.000000001Z".
std::string FormatTimeNs(int64_t time_ns);

}  // namespace bim::daemon
