// The one table of settings. The configuration file, the environment, the
// flags of `bim daemon`, `bim config check` and docs/configuration.md all
// follow it: a new setting is a new row here and a row in that page.
//
// Everything here is pure and thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "daemon/config.h"
#include "pkg/base/status.h"

namespace bim::daemon {

enum class Kind { kText, kList, kBool, kCount, kSize, kDuration, kFileMode };

using Value = std::variant<std::string, std::vector<std::string>, bool,
                           uint64_t, std::chrono::milliseconds>;

struct Setting {
  std::string_view section;
  std::string_view key;
  Kind kind;
  std::string_view default_text;  // as ParseText reads it
  std::string_view help;          // one line
  // Limits of numbers: a count, bytes or milliseconds; both included.
  uint64_t min = 0;
  uint64_t max = UINT64_MAX;
  // What the kind and the limits do not say; INVALID_ARGUMENT with "expected
  // ..., found ...". May be null.
  base::Status (*check)(const Value&) = nullptr;
  void (*store)(const Value&, Config&) = nullptr;
  std::string_view short_flag = {};  // besides FlagName(): "--disk"

  std::string Name() const;      // "api.data_listen"
  std::string EnvName() const;   // "BIM_API_DATA_LISTEN"
  std::string FlagName() const;  // "--api-data-listen"
};

// By section, in the order of the documentation.
std::span<const Setting> Settings();
// "node", "api", ...
std::vector<std::string> SectionNames();

// A value from text, as in the environment or after a flag; a list is
// separated by commas. INVALID_ARGUMENT: "expected ..., found ...".
base::Result<Value> ParseText(const Setting& setting, std::string_view text);
// The same for a list that is already apart.
base::Result<Value> ParseList(const Setting& setting,
                              std::vector<std::string> items);
// Limits and `check` of a value of the right kind.
base::Status CheckValue(const Setting& setting, const Value& value);
// As it is written in the configuration file (TOML).
std::string FormatValue(const Setting& setting, const Value& value);
// "a duration such as "30s"": what a value of this kind looks like.
std::string_view KindExample(Kind kind);

// "10.0.0.1" or "fd00::1", without a port.
bool IsIpAddress(const std::string& text);

// True for "127.0.0.1:9500", "[::1]:9500" and unix sockets: only this node
// reaches them. Host names but "localhost" are taken as reachable by others.
bool IsLocalAddress(std::string_view text);

}  // namespace bim::daemon
