// The client commands that wait: ensure --wait, watch, verify. Each shows
// progress on a terminal and ends by itself, by --timeout or by Ctrl-C; none
// of these ends cancels work of the daemon.
#pragma once

#include "bim/v1/node.grpc.pb.h"
#include "daemon/command_line.h"
#include "daemon/connection.h"
#include "daemon/interrupt.h"

namespace bim::daemon {

// Waits until every copy of `image` is ready (kOk), or one failed and none is
// being worked on (kImageFailed). `image` gets the last state seen. Survives a
// restart of the daemon that takes less than 30 s.
CommandEnd AwaitImage(Connection& connection, const Interrupt& interrupt,
                      bim::v1::Image& image);

CommandEnd WatchImages(Connection& connection, const Interrupt& interrupt,
                       const ImageWatchCommand& command, OutputFormat output);

// Shows the hand-over at once and whenever it changes, until it is interrupted.
CommandEnd WatchHandover(Connection& connection, const Interrupt& interrupt,
                         bim::v1::HandoverService::Stub& stub,
                         OutputFormat output);

CommandEnd VerifyImage(Connection& connection, const Interrupt& interrupt,
                       const ImageVerifyCommand& command, OutputFormat output);

}  // namespace bim::daemon
