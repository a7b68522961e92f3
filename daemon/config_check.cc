#include "daemon/config_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "daemon/units.h"

namespace bim::daemon {
namespace {

using Json = nlohmann::ordered_json;

// A proxy's user and password are not for logs and bug reports.
Value Shown(const Setting& setting, const Value& value) {
  const auto* text = std::get_if<std::string>(&value);
  if (!text || setting.key != "proxy") return value;
  const size_t scheme = text->find("://");
  const size_t at = text->rfind('@');
  if (scheme == text->npos || at == text->npos || at < scheme) return value;
  return text->substr(0, scheme + 3) + "***" + text->substr(at);
}

Json JsonValue(const Setting& setting, const Value& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* list = std::get_if<std::vector<std::string>>(&value)) {
    return *list;
  }
  if (const auto* flag = std::get_if<bool>(&value)) return *flag;
  if (const auto* duration = std::get_if<std::chrono::milliseconds>(&value)) {
    return FormatDuration(*duration);
  }
  const uint64_t number = std::get<uint64_t>(value);
  if (setting.kind == Kind::kFileMode) {
    return FormatFileMode(static_cast<uint32_t>(number));
  }
  return number;
}

}  // namespace

std::string ConfigReport(const base::Result<EffectiveConfig>& loaded) {
  if (!loaded.ok()) return "";
  const auto settings = Settings();
  std::vector<std::string> lines;
  size_t width = 0;
  for (size_t i = 0; i < settings.size(); ++i) {
    lines.push_back(fmt::format(
        "{} = {}", settings[i].key,
        FormatValue(settings[i], Shown(settings[i], loaded->values[i].value))));
    width = std::max(width, lines.back().size());
  }
  // One long value must not push all comments away.
  width = std::min<size_t>(width, 48);
  std::string report;
  for (size_t i = 0; i < settings.size(); ++i) {
    if (i == 0 || settings[i].section != settings[i - 1].section) {
      report +=
          fmt::format("{}[{}]\n", i == 0 ? "" : "\n", settings[i].section);
    }
    report += fmt::format("{:<{}}  # {}\n", lines[i], width,
                          loaded->values[i].origin);
  }
  for (const std::string& warning : loaded->warnings) {
    report += fmt::format("\n# warning: {}\n", warning);
  }
  return report;
}

std::string ConfigReportJson(const base::Result<EffectiveConfig>& loaded) {
  Json json;
  json["ok"] = loaded.ok();
  if (loaded.ok()) {
    json["file"] = loaded->file;
    json["settings"] = Json::array();
    const auto settings = Settings();
    for (size_t i = 0; i < settings.size(); ++i) {
      json["settings"].push_back(
          {{"key", settings[i].Name()},
           {"value", JsonValue(settings[i],
                               Shown(settings[i], loaded->values[i].value))},
           {"origin", loaded->values[i].origin}});
    }
    json["warnings"] = loaded->warnings;
  } else {
    json["errors"] = Json::array();
    const std::string message = loaded.status().message();
    std::string_view rest = message;
    while (!rest.empty()) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      json["errors"].push_back(line);
      rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    }
  }
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace bim::daemon
