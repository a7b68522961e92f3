#include "daemon/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <sstream>

#include "daemon/completion.h"

namespace bim::daemon {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

std::variant<Invocation, ParseEnd> Parse(const std::string& line,
                                         const Environment& environment = {}) {
  std::istringstream in(line);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return ParseCommandLine(words, environment);
}

template <typename C>
C Parsed(const std::string& line) {
  auto parsed = Parse(line);
  if (const auto* end = std::get_if<ParseEnd>(&parsed)) {
    ADD_FAILURE() << line << ": " << end->text;
    return {};
  }
  return std::get<C>(std::get<Invocation>(parsed).command);
}

std::string Mistake(const std::string& line) {
  auto parsed = Parse(line);
  const auto* end = std::get_if<ParseEnd>(&parsed);
  if (!end) return "(no mistake)";
  EXPECT_EQ(end->exit_code, ExitCode::kUsage) << line;
  EXPECT_EQ(end->text.find('\n'), std::string::npos) << end->text;
  return end->text;
}

TEST(ParseCommandLine, ReadsEnsure) {
  const auto ensure = Parsed<ImageEnsureCommand>(
      "image ensure --disk a --disk /b debian --url https://x/y --uuid u "
      "--size 1GiB --credential c --wait");
  EXPECT_EQ(ensure.name, "debian");
  EXPECT_EQ(ensure.uuid, "u");
  EXPECT_EQ(ensure.url, "https://x/y");
  EXPECT_EQ(ensure.credential, "c");
  EXPECT_EQ(ensure.size_bytes, uint64_t{1} << 30);
  EXPECT_THAT(ensure.disks, ElementsAre("a", "/b"));
  EXPECT_TRUE(ensure.wait);
  EXPECT_FALSE(ensure.all);
}

TEST(ParseCommandLine, ReadsPeersAndUploads) {
  const auto peers = Parsed<ImageEnsureCommand>(
      "image ensure n --peer h:1 --uuid u --peer [::1]:2");
  EXPECT_THAT(peers.peers, ElementsAre("h:1", "[::1]:2"));
  EXPECT_EQ(peers.url, "");
  EXPECT_TRUE(Parsed<ImageEnsureCommand>("image ensure n --upload").upload);
  for (const char* other : {"--url u", "--peer h:1", "--credential c"}) {
    EXPECT_THAT(Mistake(std::string("image ensure n --upload ") + other),
                HasSubstr("excludes"));
  }
  const auto upload = Parsed<ImageUploadCommand>(
      "image upload --disk a n /f --disk b --uuid u --wait --sha512 " +
      std::string(128, 'a'));
  EXPECT_EQ(upload.name, "n");
  EXPECT_EQ(upload.file, "/f");
  EXPECT_EQ(upload.uuid, "u");
  EXPECT_EQ(upload.sha512, std::string(128, 'a'));
  EXPECT_THAT(upload.disks, ElementsAre("a", "b"));
  EXPECT_TRUE(upload.wait);
  EXPECT_THAT(Mistake("image upload n"), HasSubstr("FILE is required"));
}

TEST(ParseCommandLine, ReadsLimits) {
  Parsed<LimitsGetCommand>("limits get");
  const auto limits = Parsed<LimitsSetCommand>(
      "limits set --download-rate 100MiB --peer-rate 0 --transfers 3");
  EXPECT_EQ(limits.download_rate, 100u << 20);
  EXPECT_EQ(limits.peer_rate, 0u);
  EXPECT_EQ(limits.background_read_rate, std::nullopt);
  EXPECT_EQ(limits.transfers, 3u);
  EXPECT_EQ(limits.transfers_per_disk, std::nullopt);
  EXPECT_EQ(Parsed<LimitsSetCommand>("limits set --background-read-rate 1MB "
                                     "--transfers-per-disk 2")
                .transfers_per_disk,
            2u);
  EXPECT_EQ(Mistake("limits set"),
            "bim limits set: at least one limit is required (see bim limits "
            "set --help)");
  EXPECT_THAT(Mistake("limits set --download-rate 4q"),
              HasSubstr("expected a size"));
  EXPECT_THAT(Mistake("limits set --transfers -1"), HasSubstr("--transfers"));
  EXPECT_THAT(Mistake("limits set --transfers x"), HasSubstr("--transfers"));
}

TEST(ParseCommandLine, ReadsEveryCommand) {
  EXPECT_EQ(Parsed<ImageGetCommand>("image get list --uuid u").name, "list");
  Parsed<ImageListCommand>("image list");
  EXPECT_EQ(Parsed<ImageWatchCommand>("image watch").name, "");
  EXPECT_EQ(Parsed<ImageWatchCommand>("image watch n").name, "n");
  EXPECT_TRUE(Parsed<ImageRemoveCommand>("image remove n --force").force);
  EXPECT_THAT(Parsed<ImageVerifyCommand>("image verify n --disk d").disks,
              ElementsAre("d"));
  EXPECT_FALSE(Parsed<ImageVerifyCommand>("image verify n").repair);
  EXPECT_TRUE(Parsed<ImageVerifyCommand>("image verify n --repair").repair);
  EXPECT_EQ(Parsed<ImageExportCommand>("image export n -f -").file, "-");
  EXPECT_TRUE(Parsed<ImageExportCommand>("image export n -f x --zstd").zstd);
  Parsed<DiskListCommand>("disk list");
  EXPECT_TRUE(Parsed<DiskAddCommand>("disk add /d --init").init);
  EXPECT_EQ(Parsed<DiskRemoveCommand>("disk remove /d").disk, "/d");
  EXPECT_TRUE(Parsed<VersionCommand>("version --client-only").client_only);
  EXPECT_EQ(Parsed<ConfigCheckCommand>("config check --config /c").config_path,
            "/c");
  EXPECT_EQ(Parsed<CompletionCommand>("completion zsh").shell, "zsh");
}

TEST(ParseCommandLine, GlobalOptionsStandAnywhere) {
  for (const char* line :
       {"--address unix:/s -o json --timeout 5s image list",
        "image --address=unix:/s list -o json --timeout=5s",
        "image list --timeout 5s --output json --address unix:/s"}) {
    const auto parsed = Parse(line);
    const auto& client = std::get<Invocation>(parsed).client;
    EXPECT_EQ(client.address, "unix:/s");
    EXPECT_EQ(client.output, OutputFormat::kJson);
    EXPECT_EQ(client.timeout, std::chrono::seconds(5));
  }
}

TEST(ParseCommandLine, AddressComesFromTheEnvironment) {
  const Environment environment = {{"BIM_ADDRESS", "h:1"}};
  EXPECT_EQ(
      std::get<Invocation>(Parse("image list", environment)).client.address,
      "h:1");
  EXPECT_EQ(std::get<Invocation>(Parse("image list --address g:2", environment))
                .client.address,
            "g:2");
}

TEST(ParseCommandLine, EverySettingIsAFlagOfTheDaemon) {
  const auto daemon = Parsed<DaemonCommand>(
      "daemon --config /c --disk /a --disks-paths /b --log-level debug");
  EXPECT_EQ(daemon.config_path, "/c");
  ASSERT_EQ(daemon.flags.size(), 2u);
  EXPECT_EQ(daemon.flags[0].name, "disks.paths");
  EXPECT_THAT(daemon.flags[0].values, ElementsAre("/a", "/b"));
  EXPECT_EQ(daemon.flags[1].name, "log.level");
  EXPECT_THAT(daemon.flags[1].values, ElementsAre("debug"));
  const auto trusting = Parsed<DaemonCommand>(
      "daemon --trust-peers=10.0.0.0/8 --trust-peers=::1");
  ASSERT_EQ(trusting.flags.size(), 1u);
  EXPECT_EQ(trusting.flags[0].name, "peers.trusted");
  EXPECT_THAT(trusting.flags[0].values, ElementsAre("10.0.0.0/8", "::1"));
  for (const Setting& setting : Settings()) {
    for (const char* command : {"daemon ", "config check "}) {
      const auto parsed = Parse(command + setting.FlagName() + " x");
      EXPECT_TRUE(std::holds_alternative<Invocation>(parsed))
          << setting.FlagName();
    }
  }
}

TEST(ParseCommandLine, MistakesReadWell) {
  EXPECT_EQ(
      Mistake("image ensure debian"),
      "bim image ensure: --url, --peer or --upload is required (see bim image "
      "ensure --help)");
  EXPECT_EQ(Mistake("image ensrue debian"),
            "bim image: unknown command \"ensrue\"; did you mean \"ensure\"? "
            "(see bim image --help)");
  EXPECT_EQ(Mistake("nonsense"),
            "bim: unknown command \"nonsense\"; expected daemon, image, disk, "
            "limits, version, config, completion (see bim --help)");
  EXPECT_EQ(Mistake("image list -o yaml"),
            "bim image list: --output: expected table or json, found \"yaml\" "
            "(see bim image list --help)");
  EXPECT_EQ(Mistake("image remove n --forse"),
            "bim image remove: unknown option --forse; did you mean "
            "\"--force\"? (see bim image remove --help)");
  EXPECT_EQ(Mistake("image get a b"),
            "bim image get: unexpected argument \"b\" (see bim image get "
            "--help)");
  EXPECT_THAT(Mistake(""), StartsWith("bim: expected a command: daemon, "));
  EXPECT_THAT(Mistake("image"),
              StartsWith("bim image: expected a command: ensure, "));
  EXPECT_THAT(Mistake("image ensure n --url"),
              HasSubstr("--url needs a value"));
  EXPECT_THAT(Mistake("image ensure n --url u --sha512 ab"),
              HasSubstr("128 hex digits"));
  EXPECT_THAT(Mistake("image ensure n --url u --size 4q"), HasSubstr("--size"));
  EXPECT_THAT(Mistake("image ensure n --url u --all --disk d"),
              HasSubstr("excludes"));
  EXPECT_THAT(Mistake("--timeout 0s image list"), HasSubstr("--timeout"));
  EXPECT_THAT(Mistake("--timeout 5 image list"),
              HasSubstr("expected a duration"));
  EXPECT_THAT(Mistake("completion tcsh"),
              HasSubstr("expected bash, zsh or fish, found \"tcsh\""));
}

TEST(ParseCommandLine, HelpTellsTheExitCodes) {
  const auto end = std::get<ParseEnd>(Parse("--help"));
  EXPECT_EQ(end.exit_code, ExitCode::kOk);
  EXPECT_THAT(end.text, HasSubstr(kExitCodeHelp));
  EXPECT_THAT(std::get<ParseEnd>(Parse("image ensure --help")).text,
              AllOf(HasSubstr("Usage: bim image ensure"), HasSubstr("--url"),
                    HasSubstr("--address")));
}

TEST(CompletionScript, ContainsEveryCommandAndOption) {
  const CommandNode root = DescribeCommands();
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const auto script = CompletionScript(root, shell);
    ASSERT_TRUE(script.ok());
    int seen = 0;
    std::function<void(const CommandNode&, const std::string&)> check =
        [&](const CommandNode& node, const std::string& path) {
          ++seen;
          if (!path.empty()) {
            EXPECT_THAT(*script, HasSubstr("'" + path + "'")) << shell;
          }
          for (const OptionNode& option : node.options) {
            for (const std::string& name : option.names) {
              const bool fish = std::string(shell) == "fish";
              const std::string word = !fish ? name
                                       : name.starts_with("--")
                                           ? "-l " + name.substr(2)
                                           : "-s " + name.substr(1);
              EXPECT_THAT(*script, HasSubstr(word)) << shell;
            }
          }
          for (const CommandNode& child : node.commands) {
            check(child, path.empty() ? child.name : path + " " + child.name);
          }
        };
    check(root, "");
    EXPECT_EQ(seen, 22) << "commands, groups and the root";
  }
  EXPECT_FALSE(CompletionScript(root, "tcsh").ok());
}

TEST(DescribeCommands, KnowsValuesAndChoices) {
  const CommandNode root = DescribeCommands();
  bool found = false;
  for (const OptionNode& option : root.options) {
    if (option.names != std::vector<std::string>{"-o", "--output"}) continue;
    found = true;
    EXPECT_TRUE(option.takes_value);
    EXPECT_THAT(option.choices, ElementsAre("table", "json"));
  }
  EXPECT_TRUE(found);
  for (const CommandNode& command : root.commands) {
    if (command.name != "completion") continue;
    EXPECT_THAT(command.argument_choices, ElementsAre("bash", "zsh", "fish"));
  }
}

}  // namespace
}  // namespace bim::daemon
