// The configuration file as it was written: sections, keys, values, lines. The
// only place that knows toml++. Says nothing of which keys exist.
//
// Pure; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "pkg/base/status.h"

namespace bim::daemon {

// A value of no use to any setting, described: "a table", "the number 1.5".
struct OtherValue {
  std::string what;
};
using FileValue = std::variant<std::string, std::vector<std::string>, bool,
                               int64_t, OtherValue>;

struct FileEntry {
  std::string section;  // empty: outside of any section
  std::string key;      // empty: an empty section
  FileValue value;
  uint32_t line = 0;  // from 1
};

struct ConfigFile {
  std::string path;
  std::vector<FileEntry> entries;  // by line
};

// INVALID_ARGUMENT "<path>:<line>: ..." for what is not TOML.
base::Result<ConfigFile> ParseConfigFile(std::string path,
                                         std::string_view content);

}  // namespace bim::daemon
