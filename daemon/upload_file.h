// Brings a local file to the data port, and goes on where it was when the
// connection breaks. Blocks. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>

#include "pkg/base/status.h"
#include "pkg/http/client.h"

namespace bim::daemon {

struct UploadOptions {
  int max_tries = 5;  // without a byte of progress in between
  std::chrono::milliseconds first_wait{1'000};  // doubles each time
  std::chrono::milliseconds max_wait{10'000};
};

struct UploadResult {
  uint64_t size = 0;  // of the file, in bytes
  uint64_t sent = 0;  // by this call; less when it went on with an upload
  // The image was ready before: nothing was sent, nothing compared.
  bool was_ready = false;
};

// http::Put, or what a test has instead.
using HttpPut = std::function<http::PutResult(
    const http::PutRequest&, const http::BodyReader&, std::stop_token)>;

// `url` is that of .../upload (pkg/api/data_server.h). `on_progress` is told
// the bytes so far, often; the number falls when the daemon has fewer than
// were sent. INVALID_ARGUMENT: no regular file, or a size that no image has.
// NOT_FOUND: no such image. FAILED_PRECONDITION: its source is no upload, or
// the upload that has begun is of another size. DATA_LOSS: the bytes are no
// image, or not the one that is wanted. RESOURCE_EXHAUSTED: the daemon's disk
// is full. ABORTED: another upload of it did not end. UNAVAILABLE: the
// connection broke too often. CANCELLED: `stop`. INTERNAL: the file cannot be
// read.
base::Result<UploadResult> UploadFile(
    const std::string& url, const std::string& file,
    const std::function<void(uint64_t done, uint64_t total)>& on_progress,
    std::stop_token stop, const UploadOptions& options = {},
    const HttpPut& put = http::Put);

}  // namespace bim::daemon
