#include "daemon/data_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace bim::daemon {
namespace {

using testing::HasSubstr;

using Parameters = std::map<std::string, std::string>;

DataSourceCommand Command(const std::string& type,
                          const Parameters& parameters = {}) {
  DataSourceCommand command;
  command.name = "n";
  command.uuid = "u";
  command.source_type = type;
  command.parameters = parameters;
  return command;
}

DataSourcePlan Plan(const DataSourceCommand& command) {
  auto plan = PlanDataSource(command);
  if (plan.ok()) return *plan;
  ADD_FAILURE() << plan.status().message();
  return {};
}

std::string Problem(const DataSourceCommand& command,
                    base::Code code = base::Code::kInvalidArgument) {
  const auto plan = PlanDataSource(command);
  if (plan.ok()) return "(no problem)";
  EXPECT_EQ(plan.status().code(), code) << plan.status().message();
  return plan.status().message();
}

const Parameters kExport = {{"snapshot-name", "s-1"},
                            {"sender-address", "10.0.0.1:10000"}};

// `kExport` with another value, or without the key when that is empty.
DataSourceCommand Export(const std::string& key, const std::string& value) {
  Parameters parameters = kExport;
  parameters[key] = value;
  if (value.empty()) parameters.erase(key);
  return Command("export-from-volume", parameters);
}

TEST(PlanDataSource, ReadsADownload) {
  DataSourceCommand command = Command(
      "download", {{"url", "https://h/a?b=c"}, {"volume-name", "ignored"}});
  command.checksum = std::string(128, 'A');
  const DataSourcePlan plan = Plan(command);
  EXPECT_EQ(plan.type, SourceType::kDownload);
  EXPECT_EQ(plan.name, "n");
  EXPECT_EQ(plan.uuid, "u");
  EXPECT_EQ(plan.url, "https://h/a?b=c");
  EXPECT_EQ(plan.data_engine, DataEngine::kV1);
  ASSERT_TRUE(plan.sha512);
  EXPECT_EQ(plan.sha512->Hex(), std::string(128, 'a'));
  EXPECT_THAT(
      Problem(Command("download")),
      HasSubstr("--parameters url=... is required for --source-type download"));
  EXPECT_THAT(Problem(Command("download", {{"url", ""}})),
              HasSubstr("url=... is required"));
  for (const char* url : {"file:///etc/passwd", "ftp://h/a", "h/a"}) {
    EXPECT_THAT(Problem(Command("download", {{"url", url}})),
                HasSubstr("--parameters url"));
  }
  // What may be a secret is not shown.
  EXPECT_THAT(Problem(Command("download", {{"url", "http://a:s3cret@h/"}})),
              testing::Not(HasSubstr("s3cret")));
}

TEST(PlanDataSource, ReadsAnUpload) {
  const DataSourcePlan plan = Plan(Command("upload", {{"data-engine", "v2"}}));
  EXPECT_EQ(plan.type, SourceType::kUpload);
  EXPECT_EQ(plan.data_engine, DataEngine::kV2);
  EXPECT_FALSE(plan.sha512);
  EXPECT_EQ(Plan(Command("upload", {{"data-engine", ""}})).data_engine,
            DataEngine::kV1);
  EXPECT_THAT(Problem(Command("upload", {{"data-engine", "v3"}})),
              HasSubstr("--parameters data-engine: expected v1 or v2, found "
                        "\"v3\""));
}

TEST(PlanDataSource, ReadsAnExport) {
  const DataSourcePlan least = Plan(Command("export-from-volume", kExport));
  EXPECT_EQ(least.type, SourceType::kExportFromVolume);
  EXPECT_EQ(least.snapshot_name, "s-1");
  EXPECT_EQ(least.sender_host, "10.0.0.1");
  EXPECT_EQ(least.sender_port, 10000);
  EXPECT_EQ(least.volume_size, std::nullopt);
  EXPECT_EQ(least.file_type, WantedFormat::kRaw);
  EXPECT_EQ(least.sync_timeout, std::chrono::seconds(60));
  EXPECT_EQ(Plan(Export("volume-size", "1048576")).volume_size, 1048576u);
  EXPECT_EQ(Plan(Export("file-type", "qcow2")).file_type, WantedFormat::kQcow2);
  EXPECT_EQ(Plan(Export("file-type", "raw")).file_type, WantedFormat::kRaw);
  EXPECT_EQ(Plan(Export("sender-address", "[fd00::1]:65533")).sender_host,
            "fd00::1");
  EXPECT_EQ(Plan(Export("file-sync-http-client-timeout", "5")).sync_timeout,
            std::chrono::seconds(5));
}

TEST(PlanDataSource, TakesWhatIsNoNumberAsUnknown) {
  for (const char* text :
       {"many", "-1", "1.5", "10Gi", " 1", "18446744073709551616"}) {
    EXPECT_EQ(Plan(Export("volume-size", text)).volume_size, std::nullopt)
        << text;
  }
  for (const char* text : {"many", "-1", "0", "5s", "2147483648"}) {
    EXPECT_EQ(Plan(Export("file-sync-http-client-timeout", text)).sync_timeout,
              std::chrono::seconds(60))
        << text;
  }
}

TEST(PlanDataSource, RefusesAnExportWithoutItsSource) {
  EXPECT_THAT(Problem(Export("snapshot-name", "")),
              HasSubstr("snapshot-name=... is required"));
  EXPECT_THAT(Problem(Export("sender-address", "")),
              HasSubstr("sender-address=... is required"));
  // The service asked is at the port + 2.
  for (const char* address :
       {"h", ":1", "h:0", "h:65534", "h:x", "unix:/s", "a b:1"}) {
    EXPECT_THAT(Problem(Export("sender-address", address)),
                HasSubstr("--parameters sender-address: expected a replica's"))
        << address;
  }
  EXPECT_THAT(Problem(Export("snapshot-name", "../x")),
              HasSubstr("--parameters snapshot-name"));
  EXPECT_THAT(Problem(Export("snapshot-name", std::string(256, 's'))),
              HasSubstr("--parameters snapshot-name"));
  EXPECT_THAT(Problem(Export("file-type", "vmdk")),
              HasSubstr("expected raw or qcow2, found \"vmdk\""));
}

TEST(PlanDataSource, ReadsAClone) {
  Parameters parameters = {{"backing-image", "other"},
                           {"backing-image-uuid", "o-1"}};
  const DataSourcePlan plan = Plan(Command("clone", parameters));
  EXPECT_EQ(plan.type, SourceType::kClone);
  EXPECT_EQ(plan.source_name, "other");
  EXPECT_EQ(plan.source_uuid, "o-1");
  parameters["encryption"] = "ignore";
  EXPECT_EQ(Plan(Command("clone", parameters)).source_name, "other");
  parameters["encryption"] = "rot13";
  EXPECT_THAT(Problem(Command("clone", parameters)),
              HasSubstr("--parameters encryption: expected"));
  EXPECT_THAT(Problem(Command("clone", {{"backing-image", "other"}})),
              HasSubstr("backing-image-uuid=... is required"));
  EXPECT_THAT(Problem(Command("clone", {{"backing-image", "../x"},
                                        {"backing-image-uuid", "o"}})),
              HasSubstr("--parameters backing-image"));
}

TEST(PlanDataSource, SaysWhatItCannotDo) {
  EXPECT_EQ(Problem(Command("restore", {{"backup-url", "s3://b@r/"}}),
                    base::Code::kUnimplemented),
            "restore is not supported yet by this manager");
  for (const char* encryption : {"encrypt", "decrypt"}) {
    EXPECT_EQ(Problem(Command("clone", {{"backing-image", "o"},
                                        {"backing-image-uuid", "o"},
                                        {"encryption", encryption}}),
                      base::Code::kUnimplemented),
              std::string("encryption=") + encryption +
                  " is not supported yet by this manager");
  }
}

TEST(PlanDataSource, ChecksTheCommand) {
  const DataSourceCommand good = Command("upload");
  const auto with = [&](auto change) {
    DataSourceCommand command = good;
    change(command);
    return Problem(command);
  };
  EXPECT_THAT(with([](auto& c) { c.name = "../x"; }), HasSubstr("--name"));
  EXPECT_THAT(with([](auto& c) { c.uuid = ""; }), HasSubstr("--uuid"));
  EXPECT_THAT(with([](auto& c) { c.checksum = "ab"; }),
              HasSubstr("--checksum"));
  EXPECT_THAT(with([](auto& c) { c.listen = "8000"; }), HasSubstr("--listen"));
  EXPECT_THAT(with([](auto& c) { c.sync_listen = "unix:/s"; }),
              HasSubstr("--sync-listen"));
  EXPECT_THAT(with([](auto& c) { c.receive_listen = ""; }),
              HasSubstr("--receive-listen"));
  EXPECT_THAT(with([](auto& c) { c.disk_path = "data"; }),
              HasSubstr("--disk: expected an absolute path"));
  EXPECT_THAT(with([](auto& c) { c.source_type = "magic"; }),
              HasSubstr("--source-type: expected download, upload, "
                        "export-from-volume, restore or clone, found "
                        "\"magic\""));
}

}  // namespace
}  // namespace bim::daemon
