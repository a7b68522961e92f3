#include "daemon/data_source.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>
#include <string_view>
#include <system_error>

#include "pkg/api/address.h"
#include "pkg/base/names.h"
#include "pkg/http/client.h"

namespace bim::daemon {
namespace {

constexpr char kDownload[] = "download";
constexpr char kUpload[] = "upload";
constexpr char kExport[] = "export-from-volume";
constexpr char kRestore[] = "restore";
constexpr char kClone[] = "clone";
constexpr size_t kMaxSnapshotName = 255;  // a file name
// The service that is asked listens so much above the sender's port.
constexpr uint16_t kSyncPortOffset = 2;

base::Status Wrong(std::string_view where, std::string_view expected,
                   std::string_view found) {
  return base::InvalidArgumentError(fmt::format("{}: expected {}, found \"{}\"",
                                                where, expected,
                                                base::Printable(found)));
}

base::Status NotYet(std::string_view what) {
  return base::UnimplementedError(
      fmt::format("{} is not supported yet by this manager", what));
}

template <typename Number>
std::optional<Number> ParseNumber(std::string_view text) {
  Number number{};
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return number;
}

base::Status CheckListenAddress(std::string_view flag,
                                const std::string& text) {
  const auto address = api::ParseAddress(text);
  if (address.ok() && !address->is_unix) return base::OkStatus();
  return Wrong(flag, "a TCP address such as \":8000\"", text);
}

// The parameters of one command.
class Parameters {
 public:
  explicit Parameters(const DataSourceCommand& command) : command_(command) {}

  // Empty when it is not there.
  std::string Get(const std::string& key) const {
    const auto found = command_.parameters.find(key);
    return found == command_.parameters.end() ? "" : found->second;
  }
  base::Result<std::string> Require(const std::string& key) const {
    std::string value = Get(key);
    if (!value.empty()) return value;
    return base::InvalidArgumentError(
        fmt::format("--parameters {}=... is required for --source-type {}", key,
                    command_.source_type));
  }

 private:
  const DataSourceCommand& command_;
};

std::string Where(std::string_view key) {
  return fmt::format("--parameters {}", key);
}

base::Status PlanDownload(const Parameters& parameters, DataSourcePlan& plan) {
  plan.type = SourceType::kDownload;
  BIM_ASSIGN_OR_RETURN(plan.url, parameters.Require("url"));
  return http::CheckUrl(plan.url).WithContext(Where("url"));
}

base::Status PlanExport(const Parameters& parameters, DataSourcePlan& plan) {
  plan.type = SourceType::kExportFromVolume;
  BIM_ASSIGN_OR_RETURN(plan.snapshot_name, parameters.Require("snapshot-name"));
  if (plan.snapshot_name.size() > kMaxSnapshotName ||
      plan.snapshot_name.find_first_of(std::string_view("/\0", 2)) !=
          std::string::npos) {
    return Wrong(Where("snapshot-name"), "the name of a snapshot",
                 plan.snapshot_name);
  }
  BIM_ASSIGN_OR_RETURN(const std::string sender,
                       parameters.Require("sender-address"));
  const auto address = api::ParsePeerAddress(sender);
  if (!address.ok() ||
      address->port > std::numeric_limits<uint16_t>::max() - kSyncPortOffset) {
    return Wrong(Where("sender-address"), "a replica's host:port", sender);
  }
  plan.sender_host = address->host;
  plan.sender_port = address->port;
  plan.volume_size = ParseNumber<uint64_t>(parameters.Get("volume-size"));
  const std::string file_type = parameters.Get("file-type");
  if (file_type == "qcow2") {
    plan.file_type = WantedFormat::kQcow2;
  } else if (!file_type.empty() && file_type != "raw") {
    return Wrong(Where("file-type"), "raw or qcow2", file_type);
  }
  // It goes over the wire as an int32.
  const auto seconds =
      ParseNumber<int32_t>(parameters.Get("file-sync-http-client-timeout"));
  if (seconds && *seconds > 0) {
    plan.sync_timeout = std::chrono::seconds(*seconds);
  }
  return base::OkStatus();
}

base::Status PlanClone(const Parameters& parameters, DataSourcePlan& plan) {
  plan.type = SourceType::kClone;
  BIM_ASSIGN_OR_RETURN(plan.source_name, parameters.Require("backing-image"));
  BIM_RETURN_IF_ERROR(
      base::CheckName(plan.source_name, Where("backing-image")));
  BIM_ASSIGN_OR_RETURN(plan.source_uuid,
                       parameters.Require("backing-image-uuid"));
  BIM_RETURN_IF_ERROR(
      base::CheckName(plan.source_uuid, Where("backing-image-uuid")));
  const std::string encryption = parameters.Get("encryption");
  if (encryption == "encrypt" || encryption == "decrypt") {
    return NotYet(fmt::format("encryption={}", encryption));
  }
  if (encryption.empty() || encryption == "ignore") return base::OkStatus();
  return Wrong(Where("encryption"), "ignore, encrypt or decrypt", encryption);
}

base::Status PlanSource(const DataSourceCommand& command,
                        DataSourcePlan& plan) {
  const Parameters parameters(command);
  const std::string engine = parameters.Get("data-engine");
  if (engine == "v2") {
    plan.data_engine = DataEngine::kV2;
  } else if (!engine.empty() && engine != "v1") {
    return Wrong(Where("data-engine"), "v1 or v2", engine);
  }
  const std::string& type = command.source_type;
  if (type == kDownload) return PlanDownload(parameters, plan);
  if (type == kExport) return PlanExport(parameters, plan);
  if (type == kClone) return PlanClone(parameters, plan);
  if (type == kRestore) return NotYet(kRestore);
  plan.type = SourceType::kUpload;
  if (type == kUpload) return base::OkStatus();
  return Wrong("--source-type",
               fmt::format("{}, {}, {}, {} or {}", kDownload, kUpload, kExport,
                           kRestore, kClone),
               type);
}

}  // namespace

base::Result<DataSourcePlan> PlanDataSource(const DataSourceCommand& command) {
  DataSourcePlan plan;
  BIM_RETURN_IF_ERROR(base::CheckName(command.name, "--name"));
  BIM_RETURN_IF_ERROR(base::CheckName(command.uuid, "--uuid"));
  plan.name = command.name;
  plan.uuid = command.uuid;
  BIM_RETURN_IF_ERROR(CheckListenAddress("--listen", command.listen));
  BIM_RETURN_IF_ERROR(CheckListenAddress("--sync-listen", command.sync_listen));
  BIM_RETURN_IF_ERROR(
      CheckListenAddress("--receive-listen", command.receive_listen));
  if (!command.disk_path.starts_with('/') ||
      command.disk_path.find('\0') != std::string::npos) {
    return Wrong("--disk", "an absolute path", command.disk_path);
  }
  if (!command.checksum.empty()) {
    auto digest =
        base::Digest::FromHex(base::DigestAlgorithm::kSha512, command.checksum);
    if (!digest.ok()) return digest.status().WithContext("--checksum");
    plan.sha512 = *digest;
  }
  BIM_RETURN_IF_ERROR(PlanSource(command, plan));
  return plan;
}

}  // namespace bim::daemon
