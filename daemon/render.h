// What the daemon answered, as tables for people and as JSON. Pure.
#pragma once

#include <string>

#include "bim/v1/node.pb.h"

namespace bim::daemon {

// One line an image.
std::string RenderImages(const bim::v1::ListResponse& images);
// Everything about one, its copies as a table.
std::string RenderImage(const bim::v1::Image& image);
// One line a disk.
std::string RenderDisks(const bim::v1::ListDisksResponse& disks);

// One line a limit.
std::string RenderAdopted(const bim::v1::AdoptDiskResponse& adopted,
                          bool dry_run);
std::string RenderHandover(const bim::v1::Handover& handover);
std::string RenderHandoverHistory(
    const bim::v1::HandoverHistoryResponse& history);
std::string RenderLimits(const bim::v1::Limits& limits);

// "ready", "in-progress 45%", "failed: cannot ...".
std::string RenderState(const bim::v1::Image& image);
// 0 to 100, over the wanted copies.
int ProgressPercent(const bim::v1::Image& image);

// Proto3 JSON with snake_case keys and every field, on one line or indented.
std::string ToJson(const google::protobuf::Message& message, bool indented);

}  // namespace bim::daemon
