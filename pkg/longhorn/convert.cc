#include "pkg/longhorn/convert.h"

#include "pkg/api/grpc_status.h"

namespace bim::longhorn {

using base::Result;
using base::Status;

Status CheckPresent(const char* field, const std::string& value) {
  if (!value.empty()) return base::OkStatus();
  return base::InvalidArgumentError(std::string(field) + " is missing");
}

Result<manager::DirectedSpec> ToDirected(
    bool has_spec, const ::bimrpc::BackingImageSpec& spec) {
  if (!has_spec) return base::InvalidArgumentError("spec is missing");
  BIM_RETURN_IF_ERROR(CheckPresent("spec.name", spec.name()));
  BIM_RETURN_IF_ERROR(CheckPresent("spec.uuid", spec.uuid()));
  if (spec.size() < 0) {
    return base::InvalidArgumentError(
        "spec.size: expected a number of bytes, found " +
        std::to_string(spec.size()));
  }
  manager::DirectedSpec directed;
  directed.name = spec.name();
  directed.uuid = spec.uuid();
  directed.size = static_cast<uint64_t>(spec.size());
  if (!spec.checksum().empty()) {
    auto digest =
        base::Digest::FromHex(base::DigestAlgorithm::kSha512, spec.checksum());
    if (!digest.ok()) return digest.status().WithContext("spec.checksum");
    directed.sha512 = *digest;
  }
  return directed;
}

void ToProto(const manager::DirectedStatus& status,
             ::bimrpc::BackingImageResponse* proto) {
  using manager::CopyState;
  const bool ready = status.copy.state == CopyState::kReady;
  auto* spec = proto->mutable_spec();
  spec->set_name(status.name);
  spec->set_uuid(status.uuid);
  spec->set_size(static_cast<int64_t>(status.size));
  if (status.expected_sha512) spec->set_checksum(status.expected_sha512->Hex());
  spec->set_virtualsize(static_cast<int64_t>(status.virtual_size));
  if (ready) spec->set_realsize(static_cast<int64_t>(status.copy.real_size));
  auto* now = proto->mutable_status();
  now->set_state(std::string(manager::CopyStateName(status.copy.state)));
  // Callers take any text here for an error.
  if (status.copy.state == CopyState::kFailed ||
      status.copy.state == CopyState::kUnknown) {
    now->set_error_msg(api::ValidUtf8(status.copy.message));
  }
  now->set_sending_reference(static_cast<int32_t>(status.readers));
  now->set_sender_manager_address(api::ValidUtf8(status.sender));
  now->set_progress(static_cast<int32_t>(status.copy.progress));
  if (status.current_sha512) now->set_checksum(status.current_sha512->Hex());
}

}  // namespace bim::longhorn
