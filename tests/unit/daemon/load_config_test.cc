#include "daemon/load_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "daemon/config_check.h"

namespace bim::daemon {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// Everything from text, as in the daemon.
base::Result<EffectiveConfig> Load(std::string_view file,
                                   const Environment& environment = {},
                                   const std::vector<FlagValue>& flags = {}) {
  BIM_ASSIGN_OR_RETURN(const ConfigFile parsed,
                       ParseConfigFile("/etc/bim/bim.toml", file));
  return MergeConfig(parsed, environment, flags);
}

std::string ProblemOf(std::string_view file,
                      const Environment& environment = {},
                      const std::vector<FlagValue>& flags = {}) {
  const auto loaded = Load(file, environment, flags);
  if (loaded.ok()) return "(no problem)";
  EXPECT_EQ(loaded.status().code(), base::Code::kInvalidArgument);
  return loaded.status().message();
}

std::string OriginOf(const EffectiveConfig& effective, std::string_view name) {
  for (size_t i = 0; i < Settings().size(); ++i) {
    if (Settings()[i].Name() == name) return effective.values[i].origin;
  }
  return "(no such setting)";
}

TEST(Settings, DefaultsAreThoseOfTheContract) {
  const auto loaded = MergeConfig(std::nullopt, {}, {});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const Config& config = loaded->config;
  EXPECT_EQ(config.state_dir, "/var/lib/bim");
  EXPECT_EQ(config.manager_id, "");
  EXPECT_THAT(config.listen, ElementsAre("127.0.0.1:9500"));
  EXPECT_EQ(config.socket, "unix:/run/bim/bim.sock");
  EXPECT_EQ(config.data_listen, "127.0.0.1:9501");
  EXPECT_TRUE(config.disk_paths.empty());
  EXPECT_EQ(config.check_interval, seconds(5));
  EXPECT_EQ(config.file_mode, 0644u);
  EXPECT_EQ(config.limits, manager::Limits());
  EXPECT_EQ(config.transfer.connections, 8u);
  EXPECT_TRUE(config.transfer.peers.trusted.empty());
  EXPECT_EQ(config.transfer.peers.connections, 4u);
  EXPECT_EQ(config.transfer.peers.compression,
            transfer::WireCompression::kAuto);
  EXPECT_EQ(config.readers_per_image, 3u);
  EXPECT_EQ(config.upload_expiry, std::chrono::hours(24));
  EXPECT_FALSE(config.transfer.allow_file);
  EXPECT_EQ(config.transfer.max_image_size, uint64_t{16} << 40);
  EXPECT_EQ(config.transfer.deadlines.connect, seconds(30));
  EXPECT_EQ(config.transfer.deadlines.first_byte, seconds(60));
  EXPECT_EQ(config.transfer.deadlines.stall, seconds(30));
  EXPECT_EQ(config.transfer.deadlines.min_rate, 1024u);
  EXPECT_EQ(config.transfer.deadlines.min_rate_window, seconds(60));
  EXPECT_EQ(config.transfer.retry.max_tries, 5);
  EXPECT_EQ(config.transfer.retry.first, seconds(1));
  EXPECT_EQ(config.transfer.retry.max, seconds(30));
  EXPECT_EQ(config.backoff_first, seconds(60));
  EXPECT_EQ(config.backoff_max, seconds(300));
  EXPECT_EQ(config.log_level, "info");
  EXPECT_FALSE(config.log_json);
  EXPECT_TRUE(loaded->warnings.empty());
}

TEST(Settings, NamesAreUniqueAndComplete) {
  std::set<std::string> names;
  for (const Setting& setting : Settings()) {
    EXPECT_TRUE(names.insert(setting.Name()).second) << setting.Name();
    EXPECT_NE(setting.store, nullptr) << setting.Name();
    EXPECT_FALSE(setting.help.empty()) << setting.Name();
    EXPECT_NE(setting.help.back(), '.') << setting.Name();
  }
  EXPECT_EQ(Settings()[4].EnvName(), "BIM_API_DATA_LISTEN");
  EXPECT_EQ(Settings()[4].FlagName(), "--api-data-listen");
}

TEST(MergeConfig, LaterSourcesWin) {
  const char* file =
      "[log]\n"
      "level = \"debug\"\n"
      "[disks]\n"
      "paths = [\"/a\", \"/b\"]\n"
      "check_interval = \"10s\"\n"
      "[transfers]\n"
      "max = 3\n";
  const auto loaded = Load(file,
                           {{"BIM_TRANSFERS_MAX", "4"},
                            {"BIM_DISKS_CHECK_INTERVAL", "20s"},
                            {"HOME", "/root"}},
                           {{"transfers.max", {"5"}}, {"disks.paths", {"/c"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->config.log_level, "debug");
  EXPECT_EQ(loaded->config.check_interval, seconds(20));
  EXPECT_EQ(loaded->config.limits.transfers, 5u);
  EXPECT_THAT(loaded->config.disk_paths, ElementsAre("/c"));
  EXPECT_EQ(OriginOf(*loaded, "log.level"), "/etc/bim/bim.toml:2");
  EXPECT_EQ(OriginOf(*loaded, "disks.check_interval"),
            "environment BIM_DISKS_CHECK_INTERVAL");
  EXPECT_EQ(OriginOf(*loaded, "transfers.max"), "flag --transfers-max");
  EXPECT_EQ(OriginOf(*loaded, "log.format"), "default");
}

TEST(MergeConfig, ListsInTheEnvironmentAreSeparatedByCommas) {
  const auto loaded =
      Load("", {{"BIM_DISKS_PATHS", "/a, /b,"}, {"BIM_API_SOCKET", ""}});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_THAT(loaded->config.disk_paths, ElementsAre("/a", "/b"));
  EXPECT_EQ(loaded->config.socket, "");
}

TEST(MergeConfig, ReadsEveryKindFromTheFile) {
  const auto loaded = Load(
      "node.state_dir = \"/s\"\n"
      "[disks]\n"
      "file_mode = \"0660\"\n"
      "[sources]\n"
      "allow_file = true\n"
      "file_roots = [\"/srv\"]\n"
      "max_image_size = \"64GiB\"\n"
      "min_rate = 0\n"
      "connections = 1\n"
      "[transfers]\n"
      "max_per_disk = 2\n"
      "[limits]\n"
      "download_rate = \"100MiB\"\n"
      "peer_rate = 65536\n"
      "background_read_rate = 0\n"
      "[peers]\n"
      "trusted = [\"10.0.0.0/8\", \"fd00::/8\", \"192.168.1.7\"]\n"
      "connections = 16\n"
      "compression = \"off\"\n"
      "readers_per_image = 64\n"
      "[uploads]\n"
      "expiry = \"2h\"\n");
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->config.state_dir, "/s");
  EXPECT_EQ(loaded->config.file_mode, 0660u);
  EXPECT_TRUE(loaded->config.transfer.allow_file);
  EXPECT_EQ(loaded->config.transfer.max_image_size, uint64_t{64} << 30);
  EXPECT_EQ(loaded->config.transfer.deadlines.min_rate, 0u);
  EXPECT_EQ(loaded->config.transfer.connections, 1u);
  EXPECT_EQ(loaded->config.limits, (manager::Limits{.download_rate = 100 << 20,
                                                    .peer_rate = 65536,
                                                    .background_read_rate = 0,
                                                    .transfers = 8,
                                                    .transfers_per_disk = 2}));
  const transfer::PeerOptions& peers = loaded->config.transfer.peers;
  ASSERT_EQ(peers.trusted.size(), 3u);
  EXPECT_TRUE(peers.trusted[0].Contains("10.1.2.3"));
  EXPECT_FALSE(peers.trusted[0].Contains("11.1.2.3"));
  EXPECT_EQ(peers.connections, 16u);
  EXPECT_EQ(peers.compression, transfer::WireCompression::kOff);
  EXPECT_EQ(loaded->config.readers_per_image, 64u);
  EXPECT_EQ(loaded->config.upload_expiry, std::chrono::hours(2));
}

TEST(MergeConfig, NamesThePlaceTheKeyAndTheExpectation) {
  struct Case {
    const char* file;
    const char* problem;
  };
  const Case kCases[] = {
      {"[api]\nlistn = [\"127.0.0.1:1\"]\n",
       "/etc/bim/bim.toml:2: api.listn: unknown key; did you mean \"listen\"?"},
      {"\n[sourcs]\nproxy = \"none\"\nca_file = \"/x\"\n",
       "/etc/bim/bim.toml:3: [sourcs]: unknown section; did you mean "
       "[sources]?"},
      {"[log]\nsocket = \"\"\n",
       "/etc/bim/bim.toml:2: log.socket: unknown key; did you mean "
       "api.socket?"},
      {"[log]\ncolour = true\n",
       "/etc/bim/bim.toml:2: log.colour: unknown key; expected one of level, "
       "format"},
      {"listen = [\"127.0.0.1:1\"]\n",
       "/etc/bim/bim.toml:1: listen: unknown key outside of a section; did "
       "you mean it in [api]?"},
      {"api = 5\n",
       "/etc/bim/bim.toml:1: api: expected a section [api], found the number "
       "5"},
      {"[disks]\ncheck_interval = 5\n",
       "/etc/bim/bim.toml:2: disks.check_interval: expected a duration such "
       "as \"250ms\", \"30s\" or \"5m\", found the number 5"},
      {"[disks]\ncheck_interval = \"5\"\n",
       "/etc/bim/bim.toml:2: disks.check_interval: expected a duration such "
       "as \"250ms\", \"30s\" or \"5m\", found \"5\""},
      {"[disks]\ncheck_interval = \"1ms\"\n",
       "/etc/bim/bim.toml:2: disks.check_interval: expected 50ms to 1h, found "
       "1ms"},
      {"[disks]\npaths = \"/a\"\n",
       "/etc/bim/bim.toml:2: disks.paths: expected a list of texts such as "
       "[\"a\", \"b\"], found \"/a\""},
      {"[disks]\npaths = [\"/a\", 1]\n",
       "/etc/bim/bim.toml:2: disks.paths: expected a list of texts such as "
       "[\"a\", \"b\"], found a list with the number 1 in it"},
      {"[disks]\npaths = [\"a\"]\n",
       "/etc/bim/bim.toml:2: disks.paths: expected absolute paths, found "
       "\"a\""},
      {"[disks]\npaths = [\"/a\", \"/a\"]\n",
       "/etc/bim/bim.toml:2: disks.paths: expected each path once, found "
       "\"/a\""},
      {"[disks]\nfile_mode = 644\n",
       "/etc/bim/bim.toml:2: disks.file_mode: expected octal file permissions "
       "such as \"0644\", found the number 644"},
      {"[transfers]\nmax = 0\n",
       "/etc/bim/bim.toml:2: transfers.max: expected 1 to 256, found 0"},
      {"[transfers]\nmax = -1\n",
       "/etc/bim/bim.toml:2: transfers.max: expected a whole number, found "
       "the number -1"},
      {"[transfers]\nmax = \"8\"\n",
       "/etc/bim/bim.toml:2: transfers.max: expected a whole number, found "
       "\"8\""},
      {"[transfers]\nmax = 1.5\n",
       "/etc/bim/bim.toml:2: transfers.max: expected a whole number, found "
       "the number 1.5"},
      {"[transfers]\nmax_per_disk = 257\n",
       "/etc/bim/bim.toml:2: transfers.max_per_disk: expected 1 to 256, found "
       "257"},
      {"[limits]\npeer_rate = 65535\n",
       "/etc/bim/bim.toml:2: limits.peer_rate: expected 0 (no limit) or at "
       "least 64KiB, found \"65535\""},
      {"[sources]\nconnections = 9\n",
       "/etc/bim/bim.toml:2: sources.connections: expected 1 to 8, found 9"},
      {"[peers]\ntrusted = [\"10.0.0.0/8\", \"10.0.0.0/33\"]\n",
       "/etc/bim/bim.toml:2: peers.trusted: expected networks such as "
       "\"10.0.0.0/8\" or \"fd00::/8\", found \"10.0.0.0/33\""},
      {"[peers]\ncompression = \"yes\"\n",
       "/etc/bim/bim.toml:2: peers.compression: expected one of auto, off, on, "
       "found \"yes\""},
      {"[peers]\nreaders_per_image = 0\n",
       "/etc/bim/bim.toml:2: peers.readers_per_image: expected 1 to 64, found "
       "0"},
      {"[uploads]\nexpiry = \"10ms\"\n",
       "/etc/bim/bim.toml:2: uploads.expiry: expected 1s to 365d, found 10ms"},
      {"[sources]\nallow_file = \"yes\"\n",
       "/etc/bim/bim.toml:2: sources.allow_file: expected true or false, "
       "found \"yes\""},
      {"[log]\nlevel = \"loud\"\n",
       "/etc/bim/bim.toml:2: log.level: expected one of trace, debug, info, "
       "warn, error, off, found \"loud\""},
      {"[api]\nsocket = \"/run/bim.sock\"\n",
       "/etc/bim/bim.toml:2: api.socket: expected \"unix:\" and an absolute "
       "path, or nothing, found \"/run/bim.sock\""},
      {"[backoff]\nfirst = \"10m\"\n",
       "/etc/bim/bim.toml:2: backoff.first: expected at most \"5m\" "
       "(backoff.max), found \"10m\""},
  };
  for (const Case& c : kCases) EXPECT_EQ(ProblemOf(c.file), c.problem);
}

TEST(MergeConfig, ReportsEveryProblem) {
  const std::string problems =
      ProblemOf("[api]\nlistn = []\n[log]\nlevel = \"loud\"\n",
                {{"BIM_TRANSFERS_MAX", "many"}}, {{"log.format", {"xml"}}});
  EXPECT_THAT(problems, HasSubstr("/etc/bim/bim.toml:2: api.listn"));
  EXPECT_THAT(problems, HasSubstr("\n/etc/bim/bim.toml:4: log.level"));
  EXPECT_THAT(problems,
              HasSubstr("\nenvironment BIM_TRANSFERS_MAX: transfers.max: "
                        "expected a whole number, found \"many\""));
  EXPECT_THAT(problems, HasSubstr("\nflag --log-format: log.format: expected "
                                  "one of text, json, found \"xml\""));
}

TEST(MergeConfig, SyntaxErrorsNameTheLine) {
  EXPECT_THAT(ProblemOf("[api]\nlisten = [\n"),
              testing::StartsWith("/etc/bim/bim.toml:"));
  EXPECT_THAT(ProblemOf("[api]\n\nlisten = = 1\n"),
              testing::StartsWith("/etc/bim/bim.toml:3: "));
}

TEST(MergeConfig, UnknownEnvironmentOfASectionIsAnError) {
  EXPECT_EQ(ProblemOf("", {{"BIM_LOG_LEVLE", "debug"}}),
            "environment BIM_LOG_LEVLE: unknown setting; did you mean "
            "\"BIM_LOG_LEVEL\"?");
  // Of others: no section, or a Kubernetes service called bim-api.
  EXPECT_TRUE(Load("", {{"BIM_ADDRESS", "x"},
                        {"BIM_CONFIG", "x"},
                        {"BIM_SERVICE_HOST", "10.0.0.1"},
                        {"BIM_API_SERVICE_HOST", "10.0.0.1"},
                        {"BIM_API_SERVICE_PORT_GRPC", "9500"},
                        {"BIM_API_PORT", "tcp://10.0.0.1:9500"},
                        {"BIM_API_PORT_9500_TCP_ADDR", "10.0.0.1"}})
                  .ok());
}

TEST(MergeConfig, TrustPeersIsTheShortFlag) {
  const auto loaded = Load("[peers]\ntrusted = [\"10.0.0.0/8\"]\n", {},
                           {{"peers.trusted", {"192.0.2.0/24", "::1"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  ASSERT_EQ(loaded->config.transfer.peers.trusted.size(), 2u);
  EXPECT_TRUE(loaded->config.transfer.peers.trusted[1].Contains("::1"));
}

TEST(MergeConfig, ADaemonThatNobodyReachesIsRefused) {
  EXPECT_THAT(
      ProblemOf("[api]\nlisten = []\nsocket = \"\"\n"),
      HasSubstr("/etc/bim/bim.toml:2: api.listen: expected an address"));
  EXPECT_TRUE(Load("[api]\nlisten = []\n").ok());
}

TEST(MergeConfig, WarnsOfWhatOthersReach) {
  const auto loaded = Load(
      "[api]\nlisten = [\"0.0.0.0:9500\", \"127.0.0.2:1\", \"[::1]:1\", "
      "\":9500\"]\ndata_listen = \"[::]:9501\"\n[sources]\n"
      "allow_file = true\n");
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_THAT(loaded->warnings,
              ElementsAre(HasSubstr("0.0.0.0:9500"), HasSubstr(" :9500"),
                          HasSubstr("[::]:9501"), HasSubstr("file_roots")));
}

TEST(MergeConfig, SyncListenAsAFlagIsLonghornsCommandLine) {
  const std::vector<FlagValue> flags = {{"api.listen", {":8000"}},
                                        {"longhorn.sync_listen", {":8001"}},
                                        {"longhorn.disk_uuid", {"u-1"}},
                                        {"longhorn.port_range", {"4000-4000"}}};
  auto loaded = MergeConfig(std::nullopt, {}, flags);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const Config& config = loaded->config;
  EXPECT_TRUE(config.longhorn_mode);
  EXPECT_TRUE(config.ephemeral_state);
  EXPECT_EQ(config.socket, "");
  EXPECT_EQ(config.data_listen, "");
  EXPECT_THAT(config.disk_paths, ElementsAre("/data"));
  EXPECT_EQ(config.longhorn.sync_listen, ":8001");
  EXPECT_EQ(config.longhorn.disk_uuid, "u-1");
  EXPECT_EQ(config.longhorn.port_first, 4000);
  EXPECT_EQ(config.longhorn.port_last, 4000);
  EXPECT_EQ(config.longhorn.advertise, "");
  EXPECT_EQ(OriginOf(*loaded, "disks.paths"), "default with --sync-listen");
  EXPECT_THAT(loaded->warnings,
              ElementsAre(HasSubstr(":8000"), HasSubstr(":8001")));

  // What is set stays, wherever that was.
  loaded = Load("[api]\nsocket = \"unix:/s\"\n[node]\nstate_dir = \"/st\"\n",
                {{"BIM_DISKS_PATHS", "/other"},
                 {"BIM_API_DATA_LISTEN", "127.0.0.1:9501"}},
                flags);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_TRUE(loaded->config.longhorn_mode);
  EXPECT_FALSE(loaded->config.ephemeral_state);
  EXPECT_EQ(loaded->config.state_dir, "/st");
  EXPECT_EQ(loaded->config.socket, "unix:/s");
  EXPECT_EQ(loaded->config.data_listen, "127.0.0.1:9501");
  EXPECT_THAT(loaded->config.disk_paths, ElementsAre("/other"));
}

TEST(MergeConfig, SyncListenElsewhereChangesNoDefaults) {
  const auto loaded = Load("[longhorn]\nsync_listen = \"127.0.0.1:8001\"\n");
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_FALSE(loaded->config.longhorn_mode);
  EXPECT_FALSE(loaded->config.ephemeral_state);
  EXPECT_EQ(loaded->config.longhorn.sync_listen, "127.0.0.1:8001");
  EXPECT_EQ(loaded->config.longhorn.port_first, 30001);
  EXPECT_EQ(loaded->config.longhorn.port_last, 31000);
  EXPECT_EQ(loaded->config.data_listen, "127.0.0.1:9501");
  EXPECT_TRUE(loaded->config.disk_paths.empty());
  // Nor does an empty flag, which switches the service off.
  const auto off =
      MergeConfig(std::nullopt, {{"BIM_LONGHORN_SYNC_LISTEN", ":1"}},
                  {{"longhorn.sync_listen", {""}}});
  ASSERT_TRUE(off.ok());
  EXPECT_FALSE(off->config.longhorn_mode);
  EXPECT_EQ(off->config.longhorn.sync_listen, "");
}

TEST(MergeConfig, LonghornsValuesAreChecked) {
  for (const char* range :
       {"", "-", "30001", "30001-", "-31000", "31000-30001", "1023-2000",
        "30001-65536", "30001-31000-32000", " 30001-31000", "30001-31000 ",
        "a-b", "+30001-31000"}) {
    EXPECT_THAT(ProblemOf("", {}, {{"longhorn.port_range", {range}}}),
                HasSubstr("longhorn.port_range: expected two ports from 1024 "
                          "to 65535"))
        << range;
  }
  EXPECT_TRUE(Load("", {}, {{"longhorn.port_range", {"1024-65535"}}}).ok());
  EXPECT_THAT(ProblemOf("", {}, {{"longhorn.sync_listen", {"unix:/s"}}}),
              HasSubstr("expected a TCP address"));
  EXPECT_THAT(ProblemOf("[longhorn]\ndisk_uuid = \"../x\"\n"),
              HasSubstr("longhorn.disk_uuid"));
  EXPECT_THAT(ProblemOf("[longhorn]\nadvertise = \"host\"\n"),
              HasSubstr("longhorn.advertise: expected an IP address"));
  EXPECT_THAT(ProblemOf("[disks]\npaths = [\"/a\", \"/b\"]\n", {},
                        {{"longhorn.disk_uuid", {"u"}}}),
              HasSubstr("/etc/bim/bim.toml:2: disks.paths: expected exactly "
                        "one disk, whose uuid is longhorn.disk_uuid, found 2"));
  EXPECT_THAT(ProblemOf("", {{"BIM_DISKS_PATHS", ""}},
                        {{"longhorn.sync_listen", {":1"}}}),
              HasSubstr("disks.paths: expected a disk, found 0"));
}

TEST(FindAdvertised, PrefersWhatIsSetThenTheInterfaceThenThePod) {
  const Environment pod = {{"POD_IP", "10.0.0.7"}};
  const auto advertised = [](const std::string& interface,
                             const Environment& environment,
                             const std::string& set = "") {
    auto loaded =
        MergeConfig(std::nullopt, {}, {{"longhorn.advertise", {set}}});
    EXPECT_TRUE(loaded.ok());
    FindAdvertised(interface, environment, *loaded);
    return *loaded;
  };
  EXPECT_EQ(advertised("lo", pod, "fd00::1").config.longhorn.advertise,
            "fd00::1");
  const EffectiveConfig by_interface = advertised("lo", pod);
  EXPECT_EQ(by_interface.config.longhorn.advertise, "127.0.0.1");
  EXPECT_EQ(by_interface.config.longhorn.outside, "10.0.0.7");
  EXPECT_EQ(advertised("lo", {}).config.longhorn.outside, "127.0.0.1");
  EXPECT_EQ(advertised("lo", pod, "fd00::1").config.longhorn.outside,
            "fd00::1");
  EXPECT_EQ(OriginOf(by_interface, "longhorn.advertise"), "interface lo");
  const EffectiveConfig by_pod = advertised("bim-no-such", pod);
  EXPECT_EQ(by_pod.config.longhorn.advertise, "10.0.0.7");
  EXPECT_EQ(OriginOf(by_pod, "longhorn.advertise"), "environment POD_IP");
  EXPECT_EQ(advertised("bim-no-such", {}).config.longhorn.advertise, "");
  const EffectiveConfig bad = advertised("bim-no-such", {{"POD_IP", "pod\n7"}});
  EXPECT_EQ(bad.config.longhorn.advertise, "");
  EXPECT_THAT(bad.warnings, ElementsAre(HasSubstr("POD_IP")));
}

TEST(ParseConfigFile, EmptySectionsAndFilesAreFine) {
  EXPECT_TRUE(Load("").ok());
  EXPECT_TRUE(Load("# nothing\n[api]\n[log]\n").ok());
}

TEST(ConfigReport, CanBeReadBack) {
  const auto loaded =
      Load("[disks]\npaths = [\"/a\\\"b\", \"/c\"]\n[log]\nformat = \"json\"\n",
           {}, {{"sources.min_rate", {"1KiB"}}});
  ASSERT_TRUE(loaded.ok());
  const auto again = Load(ConfigReport(loaded));
  ASSERT_TRUE(again.ok()) << again.status().message();
  for (size_t i = 0; i < Settings().size(); ++i) {
    EXPECT_EQ(again->values[i].value, loaded->values[i].value)
        << Settings()[i].Name();
  }
  EXPECT_THAT(ConfigReport(loaded), HasSubstr("# flag --sources-min-rate\n"));
}

TEST(ConfigReport, HidesThePasswordOfAProxy) {
  const auto loaded =
      Load("[sources]\nproxy = \"http://user:secret@proxy:3128\"\n");
  ASSERT_TRUE(loaded.ok());
  for (const std::string& report :
       {ConfigReport(loaded), ConfigReportJson(loaded)}) {
    EXPECT_THAT(report, HasSubstr("http://***@proxy:3128"));
    EXPECT_THAT(report, Not(HasSubstr("secret")));
  }
}

TEST(ConfigReportJson, HasEverySettingOrEveryError) {
  const auto good = nlohmann::json::parse(ConfigReportJson(Load("")));
  EXPECT_EQ(good["ok"], true);
  EXPECT_EQ(good["settings"].size(), Settings().size());
  EXPECT_EQ(good["settings"][0]["key"], "node.state_dir");
  EXPECT_EQ(good["settings"][0]["origin"], "default");
  const auto bad =
      nlohmann::json::parse(ConfigReportJson(Load("[api]\nx = 1\ny = 2\n")));
  EXPECT_EQ(bad["ok"], false);
  EXPECT_EQ(bad["errors"].size(), 2u);
}

}  // namespace
}  // namespace bim::daemon
