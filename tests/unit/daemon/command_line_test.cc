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
using testing::Not;
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

TEST(ParseCommandLine, ReadsWhatNeedsNoDaemon) {
  const auto list =
      Parsed<ManagerListCommand>("manager list --disk /a --disk b --config /c");
  EXPECT_THAT(list.paths, ElementsAre("/a", "b"));
  EXPECT_EQ(list.config_path, "/c");
  const auto plain = Parsed<ManagerCleanupCommand>("manager cleanup");
  EXPECT_THAT(plain.paths, ElementsAre());
  EXPECT_FALSE(plain.force || plain.dry_run);
  const auto cleanup =
      Parsed<ManagerCleanupCommand>("manager cleanup --force --dry-run");
  EXPECT_TRUE(cleanup.force && cleanup.dry_run);
  const auto history =
      Parsed<HistoryCommand>("history --image debian --limit 20 --disk /a");
  EXPECT_EQ(history.image, "debian");
  EXPECT_EQ(history.limit, 20u);
  EXPECT_THAT(history.paths, ElementsAre("/a"));
  EXPECT_EQ(Parsed<HistoryCommand>("history").limit, 0u);
  const auto prune = Parsed<PruneCommand>("prune --older-than 30d --dry-run");
  EXPECT_EQ(prune.older_than, std::chrono::hours(30 * 24));
  EXPECT_TRUE(prune.dry_run);
  EXPECT_EQ(Parsed<PruneCommand>("prune --older-than 1d12h").older_than,
            std::chrono::hours(36));
  EXPECT_THAT(
      Parsed<UpgradeCheckCommand>("upgrade check --disk /a --disk /b").paths,
      ElementsAre("/a", "/b"));
  EXPECT_THAT(Mistake("prune"), HasSubstr("--older-than is required"));
  EXPECT_THAT(Mistake("prune --older-than soon"),
              HasSubstr("expected a duration"));
  EXPECT_THAT(Mistake("prune --older-than 30"),
              HasSubstr("expected a duration"));
  EXPECT_THAT(Mistake("history --limit -1"), HasSubstr("--limit"));
  EXPECT_THAT(Mistake("upgrade"), HasSubstr("expected a command: check"));
}

TEST(ParseCommandLine, HelpTellsOtherExitCodesWhereThereAre) {
  const auto help = [](const std::string& line) {
    return std::get<ParseEnd>(Parse(line)).text;
  };
  EXPECT_THAT(help("upgrade check --help"),
              AllOf(HasSubstr("Exit codes of this command"),
                    HasSubstr("1    it can, but there are warnings")));
  EXPECT_THAT(help("prune --help"), Not(HasSubstr("Exit codes")));
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
            "limits, handover, version, config, drain, manager, history, "
            "prune, upgrade, completion, data-source, backing-image "
            "(see bim --help)");
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
  EXPECT_THAT(Mistake("image ensure n --url u --url v"),
              HasSubstr("--url was given more than once"));
  EXPECT_EQ(Mistake("backing-image list --address h:1"),
            "bim backing-image list: expected --url, found --address (see bim "
            "backing-image list --help)");
  EXPECT_EQ(Mistake("-o table backing-image list"),
            "bim backing-image list: --output: expected json, found \"table\" "
            "(see bim backing-image list --help)");
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

TEST(ProgramName, IsTheLastPartOfArgv0) {
  EXPECT_EQ(ProgramName("/usr/bin/backing-image-manager"), kLonghornProgram);
  EXPECT_EQ(ProgramName("backing-image-manager"), kLonghornProgram);
  for (const char* other : {"bim", "/x/bim", "", "/backing-image-manager/",
                            "/backing-image-manager/x"}) {
    EXPECT_EQ(ProgramName(other), kProgram) << other;
  }
}

TEST(ParseCommandLine, ShowsTheNameItWasCalledBy) {
  const auto help = std::get<ParseEnd>(ParseCommandLine(
      {"backing-image", "ls", "--help"}, {}, kLonghornProgram));
  EXPECT_THAT(
      help.text,
      AllOf(HasSubstr("Usage: backing-image-manager backing-image list"),
            HasSubstr("see backing-image-manager --help")));
  const auto mistake = std::get<ParseEnd>(
      ParseCommandLine({"daemon", "--lisen", "x"}, {}, kLonghornProgram));
  EXPECT_THAT(mistake.text, StartsWith("backing-image-manager daemon: "));
  EXPECT_THAT(mistake.text, HasSubstr("did you mean \"--listen\"?"));
}

TEST(ParseCommandLine, ReadsLonghornsDaemonInAnyOrder) {
  for (const char* line :
       {"--debug daemon --listen :8000 --sync-listen :8001 --disk-uuid u "
        "--port-range 30001-31000 --disk /d",
        "daemon --port-range 30001-31000 --disk /d --disk-uuid u --debug "
        "--sync-listen :8001 --listen :8000"}) {
    const auto daemon = Parsed<DaemonCommand>(line);
    std::map<std::string, std::vector<std::string>> flags;
    for (const FlagValue& flag : daemon.flags) flags[flag.name] = flag.values;
    EXPECT_THAT(
        flags,
        testing::UnorderedElementsAre(
            testing::Pair("api.listen", ElementsAre(":8000")),
            testing::Pair("longhorn.sync_listen", ElementsAre(":8001")),
            testing::Pair("longhorn.disk_uuid", ElementsAre("u")),
            testing::Pair("longhorn.port_range", ElementsAre("30001-31000")),
            testing::Pair("disks.paths", ElementsAre("/d")),
            testing::Pair("log.level", ElementsAre("debug"))))
        << line;
  }
  // The level that is named wins: it is the later flag.
  const auto both = Parsed<DaemonCommand>("--debug daemon --log-level warn");
  ASSERT_EQ(both.flags.size(), 2u);
  EXPECT_THAT(both.flags[0].values, ElementsAre("debug"));
  EXPECT_THAT(both.flags[1].values, ElementsAre("warn"));
  Parsed<ImageListCommand>("--debug image list");
}

TEST(ParseCommandLine, ReadsDataSource) {
  const auto source = Parsed<DataSourceCommand>(
      "--debug data-source --listen :1 --sync-listen :2 --name n --uuid u "
      "--source-type download --parameters url=http://h/?a=b,c=d data-engine= "
      "--checksum abc --parameters x=[1] --credential k==v --credential l=m");
  EXPECT_TRUE(source.debug);
  EXPECT_EQ(source.listen, ":1");
  EXPECT_EQ(source.sync_listen, ":2");
  EXPECT_EQ(source.receive_listen, ":8002");
  EXPECT_EQ(source.disk_path, "/data");
  EXPECT_EQ(source.name, "n");
  EXPECT_EQ(source.uuid, "u");
  EXPECT_EQ(source.source_type, "download");
  EXPECT_EQ(source.checksum, "abc");
  const std::map<std::string, std::string> parameters = {
      {"url", "http://h/?a=b,c=d"}, {"data-engine", ""}, {"x", "[1]"}};
  EXPECT_EQ(source.parameters, parameters);
  const std::map<std::string, std::string> credentials = {{"k", "=v"},
                                                          {"l", "m"}};
  EXPECT_EQ(source.credentials, credentials);

  const auto least = Parsed<DataSourceCommand>(
      "data-source --name n --uuid u --source-type upload --disk /d "
      "--receive-listen :3");
  EXPECT_FALSE(least.debug);
  EXPECT_EQ(least.listen, ":8000");
  EXPECT_EQ(least.sync_listen, ":8001");
  EXPECT_EQ(least.receive_listen, ":3");
  EXPECT_EQ(least.disk_path, "/d");
  // An empty text is a value.
  const auto parsed =
      ParseCommandLine({"data-source", "--name", "n", "--uuid", "u",
                        "--source-type", "upload", "--checksum", ""},
                       {});
  EXPECT_TRUE(std::holds_alternative<Invocation>(parsed));
}

TEST(ParseCommandLine, NamesAParameterWithoutValueButNoSecret) {
  const std::string start = "data-source --name n --uuid u --source-type t ";
  EXPECT_THAT(Mistake(start + "--parameters a=b url"),
              HasSubstr("--parameters: expected KEY=VALUE, found \"url\""));
  EXPECT_THAT(Mistake(start + "--parameters =x"), HasSubstr("KEY=VALUE"));
  EXPECT_THAT(Mistake(start + "--credential s3cret"),
              AllOf(HasSubstr("--credential: expected KEY=VALUE"),
                    testing::Not(HasSubstr("s3cret"))));
  EXPECT_THAT(Mistake("data-source --uuid u --source-type t"),
              HasSubstr("--name is required"));
  EXPECT_THAT(Mistake("data-source --name n --source-type t"),
              HasSubstr("--uuid is required"));
  EXPECT_THAT(Mistake("data-source --name n --uuid u"),
              HasSubstr("--source-type is required"));
}

TEST(ParseCommandLine, ReadsLonghornsClient) {
  using Call = LonghornCommand::Call;
  const auto sync = Parsed<LonghornCommand>(
      "backing-image file-sync --name n --uuid u --size 1024 --from-address "
      "h:1 --checksum abc");
  EXPECT_EQ(sync.call, Call::kSync);
  EXPECT_EQ(sync.name, "n");
  EXPECT_EQ(sync.uuid, "u");
  EXPECT_EQ(sync.size, 1024);
  EXPECT_EQ(sync.address, "h:1");
  EXPECT_EQ(sync.checksum, "abc");
  const auto fetch = Parsed<LonghornCommand>(
      "backing-image sync --name n --data-source-address h:2");
  EXPECT_EQ(fetch.call, Call::kFetch);
  EXPECT_EQ(fetch.address, "h:2");
  EXPECT_EQ(fetch.size, 0);
  const auto send =
      Parsed<LonghornCommand>("backing-image send --name n --to-address h:3");
  EXPECT_EQ(send.call, Call::kSend);
  EXPECT_EQ(send.address, "h:3");
  const std::pair<const char*, Call> kCalls[] = {
      {"get", Call::kGet},    {"delete", Call::kDelete},
      {"del", Call::kDelete}, {"prepare-download", Call::kPrepareDownload},
      {"list", Call::kList},  {"ls", Call::kList}};
  for (const auto& [word, call] : kCalls) {
    EXPECT_EQ(
        Parsed<LonghornCommand>(std::string("backing-image ") + word).call,
        call)
        << word;
  }
  for (const char* size : {"4k", "-1", "1.5", "9223372036854775808", "0x10"}) {
    EXPECT_THAT(Mistake(std::string("backing-image sync --size ") + size),
                HasSubstr("--size"));
  }
}

TEST(ParseCommandLine, LonghornsUrlStandsBeforeOrAfterTheCommand) {
  const auto url = [](const std::string& line) {
    return std::get<Invocation>(Parse(line)).client.url;
  };
  EXPECT_EQ(url("backing-image list"), "localhost:8000");
  EXPECT_EQ(url("backing-image --url h:1 list"), "h:1");
  EXPECT_EQ(url("backing-image list --url h:1"), "h:1");
  EXPECT_EQ(url("backing-image get --url=h:1 --name n"), "h:1");
  EXPECT_EQ(url("version --url h:1"), "h:1");
}

TEST(ParseCommandLine, VersionHasLonghornsFormByNameOrUrl) {
  EXPECT_FALSE(Parsed<VersionCommand>("version").longhorn);
  EXPECT_TRUE(Parsed<VersionCommand>("version --url h:1").longhorn);
  const auto parsed =
      ParseCommandLine({"version", "--client-only"}, {}, kLonghornProgram);
  const auto& version =
      std::get<VersionCommand>(std::get<Invocation>(parsed).command);
  EXPECT_TRUE(version.longhorn);
  EXPECT_TRUE(version.client_only);
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
    EXPECT_EQ(seen, 47) << "commands, groups and the root";
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
