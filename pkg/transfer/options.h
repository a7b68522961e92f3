// Settings of all transfers. A value.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "pkg/http/client.h"

namespace bim::transfer {

// Quick retries of one attempt before it counts as failed.
struct RetryOptions {
  int max_tries = 5;  // without progress in between
  std::chrono::milliseconds first{1'000};
  std::chrono::milliseconds max{30'000};
};

struct Options {
  // file:// sources are refused unless allowed; with roots, only below one of
  // them.
  bool allow_file = false;
  std::vector<std::string> file_roots;
  std::string proxy;  // for http and https sources; see http::GetRequest
  std::string no_proxy;
  std::string ca_file;
  std::string credentials_dir;  // empty: no credentials
  // The largest file accepted, in bytes.
  uint64_t max_image_size = uint64_t{16} << 40;
  http::Deadlines deadlines;
  RetryOptions retry;
};

}  // namespace bim::transfer
