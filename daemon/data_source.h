// `bim data-source`: the process that Longhorn's control plane starts beside
// the daemon to make the first file of one image on a disk. Here is what its
// arguments say; daemon/run_data_source.cc does the work.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "daemon/load_config.h"
#include "pkg/base/digest.h"
#include "pkg/base/status.h"

namespace bim::daemon {

// As given, nothing checked.
struct DataSourceCommand {
  std::string listen = ":8000";          // the service for this one file
  std::string sync_listen = ":8001";     // the service for files by path
  std::string receive_listen = ":8002";  // where an exporting replica sends
  std::string disk_path = "/data";
  std::string name, uuid;
  std::string source_type;
  std::map<std::string, std::string> parameters;
  std::string checksum;  // SHA-512 in hex; may be empty
  std::map<std::string, std::string> credentials;
  bool debug = false;
};

enum class SourceType { kDownload, kUpload, kExportFromVolume, kClone };
enum class DataEngine { kV1, kV2 };
enum class WantedFormat { kRaw, kQcow2 };

// What there is to do: the command's values, checked.
struct DataSourcePlan {
  SourceType type = SourceType::kDownload;
  std::string name, uuid;
  std::optional<base::Digest> sha512;  // that the file must have
  DataEngine data_engine = DataEngine::kV1;
  // Of a download: http or https.
  std::string url;
  // Of an export: a snapshot of a volume, by the replica that has it.
  std::string snapshot_name;
  std::string sender_host;
  uint16_t sender_port = 0;             // sender_port + 2 is a port, too
  std::optional<uint64_t> volume_size;  // bytes, if known
  WantedFormat file_type = WantedFormat::kRaw;
  std::chrono::seconds sync_timeout{60};
  // Of a clone: another image on this disk, copied as it is.
  std::string source_name, source_uuid;
};

// Pure. Parameters that no source of the type has are ignored; a volume-size
// or a timeout that is no number is as if it were not there.
// INVALID_ARGUMENT names the flag or the parameter that is missing or wrong;
// UNIMPLEMENTED: a restore, or a clone that encrypts or decrypts.
base::Result<DataSourcePlan> PlanDataSource(const DataSourceCommand& command);

// Makes the file of `plan` and serves it until the first SIGTERM or SIGINT. Of
// `config` it takes [sources], [limits] and how this node is reached. Blocks.
// What goes wrong with the file is told by the services, not here.
// INVALID_ARGUMENT and FAILED_PRECONDITION: addresses or a disk that cannot be
// used.
base::Status RunDataSource(const DataSourceCommand& command,
                           const DataSourcePlan& plan,
                           const EffectiveConfig& effective);

}  // namespace bim::daemon
