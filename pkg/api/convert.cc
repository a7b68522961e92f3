#include "pkg/api/convert.h"

#include <set>
#include <string_view>

#include "pkg/api/address.h"
#include "pkg/api/grpc_status.h"
#include "pkg/base/digest.h"

namespace bim::api {
namespace {

base::Result<std::optional<base::Digest>> ToDigest(
    const char* field, base::DigestAlgorithm algorithm,
    const std::string& hex) {
  if (hex.empty()) return std::optional<base::Digest>();
  base::Result<base::Digest> digest = base::Digest::FromHex(algorithm, hex);
  if (!digest.ok()) return digest.status().WithContext(field);
  return std::optional<base::Digest>(*digest);
}

template <typename Disks>
base::Status CheckDisks(const char* field, const Disks& disks) {
  for (const std::string& disk : disks) {
    if (disk.empty()) {
      return base::InvalidArgumentError(
          std::string(field) +
          " holds an empty string: expected uuids or paths of disks");
    }
  }
  return base::OkStatus();
}

base::Status CheckPeers(const v1::Source& source) {
  if (source.peers_size() > kMaxPeers) {
    return base::InvalidArgumentError("source.peers: expected at most " +
                                      std::to_string(kMaxPeers) + ", found " +
                                      std::to_string(source.peers_size()));
  }
  std::set<std::string> seen;
  for (const std::string& peer : source.peers()) {
    const base::Result<Address> address = ParsePeerAddress(peer);
    if (!address.ok()) return address.status().WithContext("source.peers");
    if (!seen.insert(ToString(*address)).second) {
      return base::InvalidArgumentError(
          "source.peers: expected each peer once, found " + peer + " twice");
    }
  }
  return base::OkStatus();
}

base::Status CheckSource(const v1::ImageSpec& spec) {
  const v1::Source& source = spec.source();
  const bool has_url = !source.url().empty();
  if (source.upload()) {
    if (has_url || !source.credential().empty() || source.peers_size() > 0) {
      return base::InvalidArgumentError(
          "source.upload excludes source.url, source.credential and "
          "source.peers: the bytes come by HTTP then");
    }
    return base::OkStatus();
  }
  if (!has_url && source.peers_size() == 0) {
    return base::InvalidArgumentError(
        "source.url, source.peers and source.upload are missing: expected "
        "http://, https:// or file://, other daemons' host:port, or an "
        "upload");
  }
  if (!has_url && !source.credential().empty()) {
    return base::InvalidArgumentError(
        "source.credential is for a source.url, which is missing");
  }
  BIM_RETURN_IF_ERROR(CheckPeers(source));
  if (!has_url && spec.uuid().empty()) {
    return base::InvalidArgumentError(
        "spec.uuid is missing: with source.peers alone it says which image is "
        "meant");
  }
  return base::OkStatus();
}

std::string_view VerifyStateName(manager::VerifyState state) {
  switch (state) {
    case manager::VerifyState::kNever:
      return "";
    case manager::VerifyState::kRunning:
      return "running";
    case manager::VerifyState::kOk:
      return "ok";
    case manager::VerifyState::kFailed:
      return "failed";
  }
  return "";
}

v1::WatchResponse::Type EventType(manager::Event::Type type) {
  switch (type) {
    case manager::Event::Type::kSnapshotBegin:
      return v1::WatchResponse::TYPE_SNAPSHOT_BEGIN;
    case manager::Event::Type::kImage:
      return v1::WatchResponse::TYPE_IMAGE;
    case manager::Event::Type::kSnapshotEnd:
      return v1::WatchResponse::TYPE_SNAPSHOT_END;
    case manager::Event::Type::kRemoved:
      return v1::WatchResponse::TYPE_REMOVED;
  }
  return v1::WatchResponse::TYPE_UNSPECIFIED;
}

}  // namespace

base::Status CheckPresent(const char* field, const std::string& value) {
  if (!value.empty()) return base::OkStatus();
  return base::InvalidArgumentError(std::string(field) + " is missing");
}

base::Status CheckRequest(const v1::VerifyRequest& request) {
  BIM_RETURN_IF_ERROR(CheckPresent("name", request.name()));
  return CheckDisks("disks", request.disks());
}

base::Result<manager::ImageSpec> ToSpec(const v1::EnsureRequest& request) {
  if (!request.has_spec()) return base::InvalidArgumentError("spec is missing");
  const v1::ImageSpec& proto = request.spec();
  BIM_RETURN_IF_ERROR(CheckPresent("spec.name", proto.name()));
  BIM_RETURN_IF_ERROR(CheckSource(proto));
  manager::ImageSpec spec;
  spec.name = proto.name();
  spec.uuid = proto.uuid();
  spec.source.url = proto.source().url();
  spec.source.credential = proto.source().credential();
  spec.source.peers.assign(proto.source().peers().begin(),
                           proto.source().peers().end());
  spec.source.upload = proto.source().upload();
  BIM_ASSIGN_OR_RETURN(
      spec.sha512,
      ToDigest("spec.sha512", base::DigestAlgorithm::kSha512, proto.sha512()));
  BIM_ASSIGN_OR_RETURN(
      spec.sha256,
      ToDigest("spec.sha256", base::DigestAlgorithm::kSha256, proto.sha256()));
  BIM_RETURN_IF_ERROR(CheckDisks("spec.disks", proto.disks()));
  spec.disks.assign(proto.disks().begin(), proto.disks().end());
  if (spec.disks.empty()) spec.disks = {"all"};
  spec.size = proto.size();
  return spec;
}

void ToProto(const manager::ImageSpec& spec, v1::ImageSpec* proto) {
  proto->Clear();
  proto->set_name(spec.name);
  proto->set_uuid(spec.uuid);
  if (spec.source != manager::SourceSpec()) {
    v1::Source* source = proto->mutable_source();
    source->set_url(ValidUtf8(spec.source.url));
    source->set_credential(ValidUtf8(spec.source.credential));
    for (const std::string& peer : spec.source.peers) {
      source->add_peers(ValidUtf8(peer));
    }
    source->set_upload(spec.source.upload);
  }
  if (spec.sha512.has_value()) proto->set_sha512(spec.sha512->Hex());
  if (spec.sha256.has_value()) proto->set_sha256(spec.sha256->Hex());
  if (spec.all_disks) {
    proto->add_disks("all");
  } else {
    for (const std::string& disk : spec.disks) {
      proto->add_disks(ValidUtf8(disk));
    }
  }
  proto->set_size(spec.size);
  proto->set_directed(spec.directed);
}

void ToProto(const manager::CopyStatus& copy, v1::Copy* proto) {
  proto->Clear();
  proto->set_disk_uuid(ValidUtf8(copy.disk_uuid));
  proto->set_disk_path(ValidUtf8(copy.disk_path));
  proto->set_state(std::string(manager::CopyStateName(copy.state)));
  proto->set_message(ValidUtf8(copy.message));
  proto->set_progress(copy.progress);
  proto->set_processed_bytes(copy.processed_bytes);
  proto->set_real_size(copy.real_size);
  proto->set_file_path(ValidUtf8(copy.file_path));
  if (copy.next_attempt.has_value()) {
    ToProto(*copy.next_attempt, proto->mutable_next_attempt());
  }
  proto->set_attempts(copy.attempts);
  proto->set_verification(std::string(VerifyStateName(copy.verify)));
  proto->set_verification_progress(copy.verify_progress);
  if (copy.verified_at.has_value()) {
    ToProto(*copy.verified_at, proto->mutable_verified_at());
  }
  proto->set_origin(copy.origin);
  proto->set_wire_bytes(copy.wire_bytes);
  proto->set_reused_bytes(copy.reused_bytes);
  proto->set_encoding(copy.encoding);
  proto->set_encoded_size(copy.encoded_size);
  proto->set_sha512_pending(copy.sha512_pending);
}

void ToProto(const manager::ImageStatus& image, v1::Image* proto) {
  proto->Clear();
  ToProto(image.spec, proto->mutable_spec());
  proto->set_state(std::string(manager::CopyStateName(image.state)));
  proto->set_message(ValidUtf8(image.message));
  for (const manager::CopyStatus& copy : image.copies) {
    ToProto(copy, proto->add_copies());
  }
  proto->set_format(image.format);
  proto->set_size(image.size);
  proto->set_virtual_size(image.virtual_size);
  proto->set_real_size(image.real_size);
  if (image.current_sha512.has_value()) {
    proto->set_current_sha512(image.current_sha512->Hex());
  }
  if (image.current_sha256.has_value()) {
    proto->set_current_sha256(image.current_sha256->Hex());
  }
  proto->set_revision(image.revision);
}

void ToProto(const manager::DiskStatus& disk, v1::Disk* proto) {
  proto->Clear();
  proto->set_uuid(ValidUtf8(disk.uuid));
  proto->set_path(ValidUtf8(disk.path));
  proto->set_state(disk.state);
  proto->set_message(ValidUtf8(disk.message));
  proto->set_total_bytes(disk.total_bytes);
  proto->set_available_bytes(disk.available_bytes);
  proto->set_epoch(disk.epoch);
  proto->set_format_version(disk.format_version);
  proto->set_compatible(disk.compatible);
  proto->set_images(disk.images);
}

void ToProto(const manager::Event& event, v1::WatchResponse* proto) {
  proto->Clear();
  proto->set_type(EventType(event.type));
  proto->set_resume_token(event.resume_token);
  if (event.type == manager::Event::Type::kImage) {
    ToProto(event.image, proto->mutable_image());
  } else if (event.type == manager::Event::Type::kRemoved) {
    v1::ImageSpec* spec = proto->mutable_image()->mutable_spec();
    spec->set_name(event.image.spec.name);
    spec->set_uuid(event.image.spec.uuid);
  }
}

void ToProto(const manager::VerifyProgress& progress,
             v1::VerifyResponse* proto) {
  proto->Clear();
  proto->set_verified_bytes(progress.verified_bytes);
  proto->set_total_bytes(progress.total_bytes);
  proto->set_done(progress.done);
  proto->set_ok(progress.done && progress.ok);
  proto->set_message(ValidUtf8(progress.message));
  proto->set_repaired_chunks(progress.done ? progress.repaired_chunks : 0);
}

void ToProto(const manager::Limits& limits, v1::Limits* proto) {
  proto->set_download_rate(limits.download_rate);
  proto->set_peer_rate(limits.peer_rate);
  proto->set_background_read_rate(limits.background_read_rate);
  proto->set_transfers(limits.transfers);
  proto->set_transfers_per_disk(limits.transfers_per_disk);
}

void Apply(const v1::Limits& wanted, manager::Limits& limits) {
  if (wanted.has_download_rate()) limits.download_rate = wanted.download_rate();
  if (wanted.has_peer_rate()) limits.peer_rate = wanted.peer_rate();
  if (wanted.has_background_read_rate()) {
    limits.background_read_rate = wanted.background_read_rate();
  }
  if (wanted.has_transfers()) limits.transfers = wanted.transfers();
  if (wanted.has_transfers_per_disk()) {
    limits.transfers_per_disk = wanted.transfers_per_disk();
  }
}

void ToProto(std::chrono::system_clock::time_point time,
             google::protobuf::Timestamp* proto) {
  const auto since = time.time_since_epoch();
  const auto seconds = std::chrono::floor<std::chrono::seconds>(since);
  proto->set_seconds(seconds.count());
  proto->set_nanos(static_cast<int32_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(since - seconds)
          .count()));
}

void ToProto(const manager::AdoptedImage& image,
             v1::AdoptDiskResponse::Image* proto) {
  proto->set_directory(image.directory);
  proto->set_name(image.name);
  proto->set_uuid(image.uuid);
  proto->set_result(image.known         ? "known"
                    : image.status.ok() ? "adopted"
                                        : "broken");
  proto->set_message(image.status.message());
}

void ToProto(const handover::Control::Situation& situation,
             v1::Handover* handover) {
  const auto party = [](const handover::Party& from, v1::HandoverParty* to) {
    to->set_manager_id(from.manager_id);
    to->set_version(from.version);
    to->set_endpoint(from.endpoint);
  };
  const handover::Status& status = situation.status;
  handover->set_id(status.id);
  handover->set_role(situation.role);
  handover->set_phase(status.phase);
  if (!situation.role.empty()) {
    party(status.owner, handover->mutable_owner());
    party(status.candidate, handover->mutable_candidate());
  }
  handover->set_ready(status.ready);
  handover->set_automatic(status.automatic);
  handover->set_message(status.message);
}

void ToProto(const handover::Control::Event& event, v1::HandoverEvent* proto) {
  const store::HistoryEntry& entry = event.entry;
  ToProto(std::chrono::system_clock::time_point(
              std::chrono::nanoseconds(entry.time_ns)),
          proto->mutable_time());
  proto->set_disk(event.disk);
  proto->set_event(std::string(store::HistoryEventName(entry.what)));
  proto->set_message(entry.message);
  proto->set_manager_id(entry.manager_id);
  proto->set_version(entry.version);
  proto->set_epoch(entry.epoch);
}

}  // namespace bim::api
