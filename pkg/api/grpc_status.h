// Status as gRPC carries it, and back. Pure functions.
#pragma once

#include <grpcpp/support/status.h>

#include <string>
#include <string_view>

#include "pkg/base/status.h"

namespace bim::api {

// The same code; the message is made valid UTF-8 and cut to 2 KiB, because it
// travels in a header and clients take 8 KiB of headers.
grpc::Status ToGrpc(const base::Status& status);

// The same code. What gRPC says when the connection itself broke is put into
// words: UNAVAILABLE "the connection to the daemon broke: ...".
base::Status FromGrpc(const grpc::Status& status);

// `text` with each byte that is no part of valid UTF-8 replaced by U+FFFD, as
// proto3 strings must be valid and paths and error texts may not be.
std::string ValidUtf8(std::string_view text);

}  // namespace bim::api
