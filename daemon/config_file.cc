#include "daemon/config_file.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <optional>

namespace bim::daemon {
namespace {

std::string Describe(const toml::node& node) {
  if (node.is_table()) return "a table";
  if (node.is_array()) return "a list";
  if (const auto* number = node.as_floating_point()) {
    return fmt::format("the number {}", number->get());
  }
  if (const auto* number = node.as_integer()) {
    return fmt::format("the number {}", number->get());
  }
  if (const auto* flag = node.as_boolean()) {
    return flag->get() ? "true" : "false";
  }
  if (node.is_string()) return "a text";
  return "a date or time";
}

FileValue ReadValue(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* flag = node.as_boolean()) return flag->get();
  if (const auto* number = node.as_integer()) return number->get();
  if (const auto* array = node.as_array()) {
    std::vector<std::string> items;
    for (const toml::node& item : *array) {
      const auto* text = item.as_string();
      if (!text) {
        return OtherValue{fmt::format("a list with {} in it", Describe(item))};
      }
      items.push_back(text->get());
    }
    return items;
  }
  return OtherValue{Describe(node)};
}

}  // namespace

base::Result<ConfigFile> ParseConfigFile(std::string path,
                                         std::string_view content) {
  ConfigFile file;
  file.path = std::move(path);
  try {
    const toml::table root = toml::parse(content, std::string_view(file.path));
    for (const auto& [name, node] : root) {
      const auto line = static_cast<uint32_t>(node.source().begin.line);
      const toml::table* section = node.as_table();
      if (!section) {
        file.entries.push_back(
            {"", std::string(name.str()), ReadValue(node), line});
        continue;
      }
      if (section->empty()) {
        file.entries.push_back(
            {std::string(name.str()), "", OtherValue{"nothing"}, line});
      }
      for (const auto& [key, value] : *section) {
        // The key's own place: a table made by a dotted key has no line.
        file.entries.push_back(
            {std::string(name.str()), std::string(key.str()), ReadValue(value),
             static_cast<uint32_t>(key.source().begin.line)});
      }
    }
  } catch (const toml::parse_error& error) {
    return base::InvalidArgumentError(fmt::format("{}:{}: {}", file.path,
                                                  error.source().begin.line,
                                                  error.description()));
  }
  std::stable_sort(
      file.entries.begin(), file.entries.end(),
      [](const FileEntry& a, const FileEntry& b) { return a.line < b.line; });
  return file;
}

}  // namespace bim::daemon
