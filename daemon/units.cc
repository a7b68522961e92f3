#include "daemon/units.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <ctime>
#include <limits>
#include <optional>

namespace bim::daemon {
namespace {

constexpr uint64_t kMaxMilliseconds =
    std::numeric_limits<int64_t>::max() / 1'000'000;  // fits nanoseconds

struct Unit {
  std::string_view name;
  uint64_t factor;
};
constexpr std::array<Unit, 5> kDurationUnits{{{"d", 86'400'000},
                                              {"h", 3'600'000},
                                              {"m", 60'000},
                                              {"s", 1'000},
                                              {"ms", 1}}};
// Those that FormatSize writes come first, the largest first.
constexpr std::array<Unit, 9> kSizeUnits{{{"TiB", uint64_t{1} << 40},
                                          {"GiB", uint64_t{1} << 30},
                                          {"MiB", uint64_t{1} << 20},
                                          {"KiB", uint64_t{1} << 10},
                                          {"TB", 1'000'000'000'000},
                                          {"GB", 1'000'000'000},
                                          {"MB", 1'000'000},
                                          {"KB", 1'000},
                                          {"B", 1}}};

bool SameLetters(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) ==
           std::tolower(static_cast<unsigned char>(y));
  });
}

// Takes the leading digits off `text`; nullopt when there are none or they
// overflow.
std::optional<uint64_t> TakeNumber(std::string_view& text) {
  uint64_t number = 0;
  auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return number;
}

bool MultiplyAdd(uint64_t a, uint64_t b, uint64_t limit, uint64_t& total) {
  uint64_t product;
  return !__builtin_mul_overflow(a, b, &product) &&
         !__builtin_add_overflow(total, product, &total) && total <= limit;
}

}  // namespace

base::Result<std::chrono::milliseconds> ParseDuration(std::string_view text) {
  const base::Status wrong = base::InvalidArgumentError(fmt::format(
      "expected a duration such as \"250ms\", \"30s\" or \"5m\", found \"{}\"",
      text));
  if (text == "0") return std::chrono::milliseconds(0);
  if (text.empty()) return wrong;
  uint64_t total = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const auto number = TakeNumber(rest);
    if (!number) return wrong;
    const size_t length =
        std::min(rest.find_first_of("0123456789"), rest.size());
    const std::string_view name = rest.substr(0, length);
    rest.remove_prefix(length);
    const auto unit =
        std::find_if(kDurationUnits.begin(), kDurationUnits.end(),
                     [&](const Unit& u) { return u.name == name; });
    if (unit == kDurationUnits.end() ||
        !MultiplyAdd(*number, unit->factor, kMaxMilliseconds, total)) {
      return wrong;
    }
  }
  return std::chrono::milliseconds(total);
}

std::string FormatDuration(std::chrono::milliseconds duration) {
  uint64_t rest = static_cast<uint64_t>(std::max<int64_t>(duration.count(), 0));
  if (rest == 0) return "0s";
  std::string text;
  for (const Unit& unit : kDurationUnits) {
    if (rest < unit.factor) continue;
    text += fmt::format("{}{}", rest / unit.factor, unit.name);
    rest %= unit.factor;
  }
  return text;
}

base::Result<uint64_t> ParseSize(std::string_view text) {
  std::string_view rest = text;
  const auto number = TakeNumber(rest);
  if (number) {
    while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
    if (rest.empty() && text.back() != ' ') return *number;
    for (const Unit& unit : kSizeUnits) {
      uint64_t total = 0;
      if (SameLetters(unit.name, rest) &&
          MultiplyAdd(*number, unit.factor, UINT64_MAX, total)) {
        return total;
      }
    }
  }
  return base::InvalidArgumentError(fmt::format(
      "expected a size in bytes or such as \"64GiB\" or \"500MB\", found "
      "\"{}\"",
      text));
}

std::string FormatSize(uint64_t bytes) {
  for (const Unit& unit : kSizeUnits) {
    if (unit.name == "TB") break;
    if (bytes >= unit.factor && bytes % unit.factor == 0) {
      return fmt::format("{}{}", bytes / unit.factor, unit.name);
    }
  }
  return std::to_string(bytes);
}

base::Result<uint32_t> ParseFileMode(std::string_view text) {
  uint32_t mode = 0;
  auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), mode, 8);
  if (error != std::errc() || end != text.data() + text.size() ||
      mode > 07777 || text.size() < 3) {
    return base::InvalidArgumentError(fmt::format(
        "expected octal file permissions such as \"0644\", found \"{}\"",
        text));
  }
  return mode;
}

std::string FormatFileMode(uint32_t mode) {
  return fmt::format("{:04o}", mode);
}

std::string FormatTime(int64_t time_ns) {
  const std::string text = FormatTimeNs(time_ns);
  return text.substr(0, text.find('.')) + "Z";
}

std::string FormatTimeNs(int64_t time_ns) {
  constexpr int64_t kSecond = 1'000'000'000;
  int64_t seconds = time_ns / kSecond;
  int64_t rest = time_ns % kSecond;
  if (rest < 0) {
    --seconds;
    rest += kSecond;
  }
  const std::time_t time = seconds;
  std::tm utc = {};
  gmtime_r(&time, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
                     utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                     utc.tm_hour, utc.tm_min, utc.tm_sec, rest);
}

std::string HumanBytes(uint64_t bytes) {
  constexpr std::array<std::string_view, 6> kNames{"KiB", "MiB", "GiB",
                                                   "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024;
  size_t i = 0;
  // 1023.95 would be written as 1024.0.
  while (value >= 1023.95 && i + 1 < kNames.size()) {
    value /= 1024;
    ++i;
  }
  return fmt::format("{:.1f} {}", value, kNames[i]);
}

std::string HumanDuration(std::chrono::seconds duration) {
  const int64_t seconds = std::max<int64_t>(duration.count(), 0);
  if (seconds < 60) return fmt::format("{}s", seconds);
  if (seconds < 3600) {
    return fmt::format("{}m{:02}s", seconds / 60, seconds % 60);
  }
  return fmt::format("{}h{:02}m", seconds / 3600, seconds / 60 % 60);
}

}  // namespace bim::daemon
