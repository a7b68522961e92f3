#include "pkg/longhorn/file_info.h"

#include "pkg/store/record.h"

namespace bim::longhorn {

nlohmann::ordered_json FileInfo(const manager::DirectedStatus& status,
                                const std::string& file_path) {
  using manager::CopyState;
  const bool ready = status.copy.state == CopyState::kReady;
  const auto hex = [](const std::optional<base::Digest>& digest) {
    return digest ? digest->Hex() : std::string();
  };
  // As with the gRPC service: any text there is taken for an error.
  const bool wrong = status.copy.state == CopyState::kFailed ||
                     status.copy.state == CopyState::kUnknown;
  return {
      {"diskUUID", status.copy.disk_uuid},
      {"expectedChecksum", hex(status.expected_sha512)},
      {"filePath", file_path},
      {"uuid", status.uuid},
      {"size", status.size},
      {"virtualSize", status.virtual_size},
      {"realSize", ready ? status.copy.real_size : 0},
      {"state", manager::CopyStateName(status.copy.state)},
      {"progress", status.copy.progress},
      {"processedSize", ready ? status.size : status.copy.processed_bytes},
      {"modificationTime",
       ready ? store::FormatModificationTime(status.mtime_ns) : ""},
      {"currentChecksum", hex(status.current_sha512)},
      {"message", wrong ? status.copy.message : ""},
      {"sendingReference", status.readers},
  };
}

std::string ToText(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false,
                   nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

}  // namespace bim::longhorn
