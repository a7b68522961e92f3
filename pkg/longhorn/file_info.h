// What Longhorn's HTTP services tell of a file, as JSON. Pure.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "pkg/manager/directed.h"

namespace bim::longhorn {

// The keys of FileInfo. `file_path`: as the caller calls it.
nlohmann::ordered_json FileInfo(const manager::DirectedStatus& status,
                                const std::string& file_path);

// One line of JSON; bytes that are no UTF-8 are replaced.
std::string ToText(const nlohmann::ordered_json& json);

}  // namespace bim::longhorn
