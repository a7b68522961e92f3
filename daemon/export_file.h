// Writes the body of one GET to a file or to standard output, and proves it.
//
// A file is written as FILE.part, sparse, and renamed when every byte is there
// and the digest fits; whatever goes wrong, FILE is untouched and FILE.part is
// removed. Blocks. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>

#include "pkg/base/digest.h"
#include "pkg/base/status.h"
#include "pkg/http/client.h"

namespace bim::daemon {

struct ExportTarget {
  std::string file;    // "-": standard output
  bool force = false;  // replace an existing file
  // The body is one zstd stream and is written as it comes; what is proven is
  // the image in it.
  bool zstd = false;
};

// `expected` and `size_bytes` are what must arrive. `on_progress` is told the
// bytes of the image so far, often. ALREADY_EXISTS: the file is there, and no
// force. DATA_LOSS: the bytes are not those of the digest, or too few or many.
// CANCELLED: `stop`. ABORTED: another export writes FILE.part.
base::Status Export(const http::GetRequest& request,
                    const base::Digest& expected, uint64_t size_bytes,
                    const ExportTarget& target,
                    const std::function<void(uint64_t)>& on_progress,
                    std::stop_token stop);

}  // namespace bim::daemon
