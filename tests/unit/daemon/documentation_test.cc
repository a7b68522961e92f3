// The pages in docs/ say what the program does: every setting with its
// default, every command, option and exit code.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "daemon/command_line.h"
#include "daemon/config_file.h"
#include "daemon/exit_code.h"
#include "daemon/load_config.h"
#include "daemon/settings.h"
#include "tests/unit/bytes.h"

namespace bim::daemon {
namespace {

// A file of the source tree.
std::string ReadSource(const std::string& relative) {
  const std::string path = std::string(BIM_SOURCE_DIR) + "/" + relative;
  EXPECT_TRUE(std::filesystem::exists(path)) << path;
  return test::ReadAll(path);
}

std::string RowOf(const Setting& setting) {
  const auto value = ParseText(setting, setting.default_text);
  return fmt::format("| `{}` | `{}` | {} |", setting.Name(),
                     FormatValue(setting, *value), setting.help);
}

// The lines of the command's synopsis, empty when there are none.
std::string SynopsisOf(const std::string& path, const std::string& page) {
  const size_t begin = page.find("\n" + path);
  if (begin == page.npos) return "";
  const size_t end =
      std::min(page.find("\nbim ", begin + 1), page.find("\n```", begin + 1));
  return page.substr(begin, end - begin);
}

TEST(Documentation, HasARowForEachSetting) {
  const std::string page = ReadSource("docs/configuration.md");
  for (const Setting& setting : Settings()) {
    EXPECT_TRUE(page.find(RowOf(setting)) != page.npos) << RowOf(setting);
  }
}

TEST(Documentation, HasEachCommandOptionAndExitCode) {
  const std::string page = ReadSource("docs/cli.md");
  std::function<void(const CommandNode&, const std::string&)> check =
      [&](const CommandNode& node, const std::string& path) {
        for (const CommandNode& child : node.commands) {
          check(child, path + " " + child.name);
        }
        const bool is_root = path == "bim";
        if (!node.commands.empty() && !is_root) return;
        const std::string text = is_root ? page : SynopsisOf(path, page);
        EXPECT_FALSE(text.empty()) << path;
        // The flags of the daemon are the settings.
        if (path == "bim daemon" || path == "bim config check") return;
        for (const OptionNode& option : node.options) {
          bool found = option.names.back() == "--help";
          for (const std::string& name : option.names) {
            found = found || text.find(name) != text.npos;
          }
          EXPECT_TRUE(found) << path << " " << option.names.back();
        }
      };
  check(DescribeCommands(), "bim");
  for (int code : {0, 1, 2, 3, 4, 5, 6, 7, 130}) {
    EXPECT_TRUE(page.find(fmt::format("\n| {} |", code)) != page.npos) << code;
  }
}

TEST(Documentation, ExampleConfigurationIsValid) {
  const auto file =
      ParseConfigFile("systemd/bim.toml", ReadSource("systemd/bim.toml"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  const auto merged = MergeConfig(*file, {}, {});
  EXPECT_TRUE(merged.ok()) << merged.status().message();
}

// What the example shows in comments must work once the "#" is taken away.
TEST(Documentation, ExampleConfigurationShowsTheDefaults) {
  std::string text = ReadSource("systemd/bim.toml");
  std::string active;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    if (line.starts_with("#") && !line.starts_with("# ")) line.erase(0, 1);
    active += line + "\n";
    begin = end + 1;
  }
  const auto file = ParseConfigFile("systemd/bim.toml", active);
  ASSERT_TRUE(file.ok()) << file.status().message();
  const auto merged = MergeConfig(*file, {}, {});
  EXPECT_TRUE(merged.ok()) << merged.status().message();
  for (const Setting& setting : Settings()) {
    const std::string line = fmt::format("\n{} = ", setting.key);
    EXPECT_TRUE(active.find(line) != active.npos) << setting.Name();
  }
}

}  // namespace
}  // namespace bim::daemon
