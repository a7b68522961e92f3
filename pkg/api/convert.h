// Messages of proto/bim/v1 to the manager's values and back. Pure functions.
//
// What is judged here is only what a message must hold to make sense (fields
// that are missing or exclude each other, digests that are no hex, addresses of
// peers); names, uuids, URLs, disks and limits are judged by the manager. All
// failures are INVALID_ARGUMENT and begin with the name of the field.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "bim/v1/node.pb.h"
#include "pkg/base/status.h"
#include "pkg/handover/control.h"
#include "pkg/manager/manager.h"
#include "pkg/manager/types.h"

namespace bim::api {

inline constexpr int kMaxPeers = 64;

// The spec of an EnsureRequest. `disks` is passed down as it is given (uuids,
// paths, the word "all"), an empty list as {"all"}; all_disks stays false.
//
// The source is a URL, peers (at most kMaxPeers, each once), both, or an
// upload; peers without a URL need a uuid.
base::Result<manager::ImageSpec> ToSpec(const v1::EnsureRequest& request);

// INVALID_ARGUMENT "<field> is missing" for an empty value.
base::Status CheckPresent(const char* field, const std::string& value);
// Missing name, or an empty string among the disks.
base::Status CheckRequest(const v1::VerifyRequest& request);

// Sets what is present in `wanted`.
void Apply(const v1::Limits& wanted, manager::Limits& limits);

void ToProto(const manager::ImageSpec& spec, v1::ImageSpec* proto);
void ToProto(const manager::CopyStatus& copy, v1::Copy* proto);
void ToProto(const manager::ImageStatus& image, v1::Image* proto);
void ToProto(const manager::DiskStatus& disk, v1::Disk* proto);
void ToProto(const manager::Event& event, v1::WatchResponse* proto);
// Leaves `image` unset.
void ToProto(const manager::VerifyProgress& progress,
             v1::VerifyResponse* proto);
void ToProto(const manager::Limits& limits, v1::Limits* proto);
void ToProto(std::chrono::system_clock::time_point time,
             google::protobuf::Timestamp* proto);

void ToProto(const manager::AdoptedImage& image,
             v1::AdoptDiskResponse::Image* proto);
void ToProto(const handover::Control::Situation& situation,
             v1::Handover* handover);
void ToProto(const handover::Control::Event& event, v1::HandoverEvent* proto);

}  // namespace bim::api
