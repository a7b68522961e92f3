// The commands of Longhorn's command line: calls of its API (proto/bimrpc), of
// this daemon or of any other manager, and how their answers are printed.
#pragma once

#include <optional>
#include <string>

#include "bimrpc/bimrpc.pb.h"
#include "daemon/command_line.h"
#include "daemon/connection.h"

namespace bim::daemon {

// Makes one call and prints its answer to standard output. Blocks.
CommandEnd RunLonghornCommand(const ClientOptions& options,
                              const LonghornCommand& command);
// Prints both versions; that of the server is null when it is not asked, or
// does not answer, which is a failure. Blocks.
CommandEnd ShowLonghornVersion(const ClientOptions& options,
                               const VersionCommand& command);

// What is printed: JSON indented with a tab, the keys in a fixed order. Pure.
std::string RenderLonghornImage(const ::bimrpc::BackingImageResponse& image);
std::string RenderLonghornList(const ::bimrpc::ListResponse& images);
std::string RenderLonghornVersion(
    const std::optional<::bimrpc::VersionResponse>& server);

}  // namespace bim::daemon
